import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from kd_plugins.errors import UserError
from kd_plugins.models import CifarResNet, WideResNet

pytestmark = pytest.mark.usefixtures('on_device')
CLASSES = 10


def parameters(model: nn.Module) -> int:
    """Parameters of the network with its linear classifier."""
    return sum(p.numel() for p in model.parameters()) + (model.num_features + 1) * CLASSES


def resnet_formula(depth: int, width: int) -> int:
    n = (depth - 2) // 6
    total = 27 * width + 2 * width
    for stage in range(3):
        out = width * 2**stage
        first = out if stage == 0 else out // 2
        total += 9 * first * out + 9 * out * out + 4 * out + (n - 1) * (18 * out * out + 4 * out)
    return total + 4 * width * CLASSES + CLASSES


def wrn_formula(depth: int, k: int) -> int:
    n = (depth - 4) // 6
    total, first = 27 * 16, 16
    for out in (16 * k, 32 * k, 64 * k):
        total += 9 * first * out + 9 * out * out + 2 * first + 2 * out
        total += first * out if first != out else 0
        total += (n - 1) * (18 * out * out + 4 * out)
        first = out
    return total + 2 * 64 * k + 64 * k * CLASSES + CLASSES


@pytest.mark.parametrize(('depth', 'published'), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnet_has_the_papers_parameters(depth: int, published: float) -> None:
    model = CifarResNet(depth)
    # Table 6 of He et al. prints two digits, in millions.
    assert parameters(model) / 1e6 == pytest.approx(published, abs=0.05 if published > 1 else 0.006)
    assert parameters(model) == resnet_formula(depth, 16)
    # Layers with weights: the convolutions and the classifier.
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) + 1 == depth


@pytest.mark.parametrize(('depth', 'width'), [(8, 16), (14, 16), (26, 16), (8, 32), (14, 64)])
def test_resnet_width_multiplies_every_stage(depth: int, width: int) -> None:
    model = CifarResNet(depth, width=width)
    assert model.num_features == 4 * width
    assert parameters(model) == resnet_formula(depth, width)


@pytest.mark.parametrize(
    ('depth', 'widen_factor', 'published'),
    [(16, 1, 0.2), (40, 1, 0.6), (16, 2, 0.7), (40, 2, 2.2), (28, 10, 36.5), (10, 2, None), (28, 2, None)],
)
def test_wide_resnet_has_the_papers_parameters(depth: int, widen_factor: int, published: float | None) -> None:
    with torch.device('meta'):
        model = WideResNet(depth, widen_factor)
    assert parameters(model) == wrn_formula(depth, widen_factor)
    if published is not None:
        assert parameters(model) / 1e6 == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize('model', [CifarResNet(14), CifarResNet(8, width=8), WideResNet(16, 1), WideResNet(10, 2)])
@pytest.mark.parametrize('size', [32, 64])
def test_three_stages_halve_the_map_and_double_the_channels(model: nn.Module, size: int) -> None:
    shapes, images = {}, torch.randn(2, 3, size, size)
    for name in ('stage1', 'stage2', 'stage3'):
        model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: shapes.update({name: o.shape[1:]}))
    (out,) = model.to(images.device)(images)
    c = model.num_features
    assert shapes == {
        'stage1': (c // 4, size, size),
        'stage2': (c // 2, size // 2, size // 2),
        'stage3': (c, size // 4, size // 4),
    }
    assert out.shape == (2, *shapes['stage3'])


def resnet_by_hand(model: CifarResNet, x: Tensor) -> Tensor:
    w = dict(model.named_parameters())

    def conv_bn(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, w[f'{conv}.weight'], stride=stride, padding=1)
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = w[f'{norm}.weight'], w[f'{norm}.bias']
        return (x - mean) / (var + 1e-5).sqrt() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    x = conv_bn(x, 'stem.0', 'stem.1').clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(len(model.get_submodule(f'stage{stage}'))):
            stride = 2 if stage > 1 and block == 0 else 1
            name = f'stage{stage}.{block}'
            y = conv_bn(x, f'{name}.conv1', f'{name}.norm1', stride).clamp(min=0)
            y = conv_bn(y, f'{name}.conv2', f'{name}.norm2')
            y[:, : x.shape[1]] += x[:, :, ::stride, ::stride]
            x = y.clamp(min=0)
    return x


def test_resnet_equals_its_formula() -> None:
    model = CifarResNet(14, width=4).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(x)[0], resnet_by_hand(model, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['stage1.0', 'stage2.0'])
def test_the_gradient_through_shortcut_a_keeps_the_memory_layout(name: str) -> None:
    block = CifarResNet(8, width=4).get_submodule(name)
    block.conv1.register_forward_hook(lambda module, args, output: output.detach())  # the shortcut alone has a gradient
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = block(x)
    weights = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    stride, expected = block.conv1.stride[0], torch.zeros_like(x)
    expected[..., ::stride, ::stride] = (weights * (out > 0))[:, :4]
    assert torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_shortcut_b_is_a_strided_convolution_with_batchnorm_where_the_shape_changes() -> None:
    model = CifarResNet(14, width=8, stem_channels=4, shortcut='B').double().eval()
    projected = {name for name, module in model.named_modules() if getattr(module, 'shortcut', None) is not None}
    assert projected == {'stage1.0', 'stage2.0', 'stage3.0'}
    assert CifarResNet(14, shortcut='B').stage1[0].shortcut is None  # as many channels as the stem
    block, x = model.stage2[0], torch.randn(2, 8, 8, 8, dtype=torch.float64)
    for norm in (block.norm1, block.norm2, block.shortcut[1]):
        nn.init.normal_(norm.running_mean)
    residual = block.norm2(block.conv2(F.relu(block.norm1(block.conv1(x)))))
    weight = block.shortcut[0].weight[:, :, 0, 0]
    expected = torch.einsum('oc,bchw->bohw', weight, x[..., ::2, ::2]) - block.shortcut[1].running_mean.view(-1, 1, 1)
    torch.testing.assert_close(block(x), F.relu(residual + expected / (1 + 1e-5) ** 0.5))


def test_a_tap_before_the_activation_is_the_sum() -> None:
    model, seen = CifarResNet(14, shortcut='B'), {}
    assert model.stage2[1].sum is model.sum2
    for name in ('sum2', 'stage2'):
        model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    model(torch.randn(2, 3, 8, 8))
    assert seen['sum2'].min() < 0
    torch.testing.assert_close(seen['stage2'], seen['sum2'].clamp(min=0))


def test_wide_resnet_stage_is_input_plus_residual() -> None:
    model = WideResNet(16, 1).double().eval()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    block = model.stage1[0]
    residual = block.conv2(F.relu(block.norm2(block.conv1(F.relu(block.norm1(x))))))
    torch.testing.assert_close(block(x), x + residual)
    # Where channels change, the shortcut reads the activated input, not the raw one.
    block = model.stage2[0]
    active = F.relu(block.norm1(x))
    expected = block.conv2(F.relu(block.norm2(block.conv1(active)))) + F.conv2d(active, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize('model', [CifarResNet(14), WideResNet(16, 2)])
def test_no_later_layer_overwrites_what_a_tap_recorded(model: nn.Module) -> None:
    seen, images = [], torch.randn(2, 3, 16, 16)
    for module in model.to(images.device).modules():
        if module is not model:
            module.register_forward_hook(lambda m, i, o: seen.append((o, o.detach().clone())))
    model(images)[0].sum().backward()
    assert len(seen) > 20
    assert all(torch.equal(now, then) for now, then in seen)


def test_taps_yield_what_the_docstrings_say() -> None:
    x = torch.randn(4, 3, 16, 16)
    taps = {}

    def record(model: nn.Module, *names: str) -> None:
        taps.clear()
        for name in names:
            model.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: taps.update({name: o}))
        taps['output'] = model(x)[0]

    record(CifarResNet(8), 'stage1', 'stage2', 'stage3')
    assert all(tap.min() >= 0 for tap in taps.values())
    wide = WideResNet(16, 2)
    record(wide, 'stage1', 'stage2', 'stage3', 'relu', 'stage2.0.relu1', 'stage3.0.relu1')
    for stage, active, norm in (
        ('stage1', 'stage2.0.relu1', wide.stage2[0].norm1),
        ('stage2', 'stage3.0.relu1', wide.stage3[0].norm1),
        ('stage3', 'relu', wide.norm),
    ):
        assert taps[stage].min() < 0
        torch.testing.assert_close(taps[active], F.relu(norm(taps[stage])))
    assert taps['output'] is taps['relu']


@pytest.mark.parametrize('model', [CifarResNet(20), WideResNet(16, 4)])
def test_weights_start_as_he_et_al_propose(model: nn.Module) -> None:
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


@pytest.mark.parametrize(
    ('build', 'form'),
    [(lambda: CifarResNet(18), '6n+2'), (lambda: CifarResNet(2), '6n+2'), (lambda: WideResNet(26, 2), '6n+4')],
)
def test_a_wrong_depth_is_one_line(build: object, form: str) -> None:
    with pytest.raises(UserError) as error:
        build()
    message = str(error.value)
    assert form in message
    assert '\n' not in message


def test_a_wrong_shortcut_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^CifarResNet: shortcut must be 'A' \(.*\) or 'B' \(.*\), got 'C'$"):
        CifarResNet(8, shortcut='C')


def test_an_image_classifier_of_mmpretrain_takes_it() -> None:
    import mmpretrain.models  # noqa: F401

    model = MODELS.build(
        {
            'type': 'mmpretrain.ImageClassifier',
            'backbone': {'type': 'kd_plugins.WideResNet', 'depth': 10, 'widen_factor': 1},
            'neck': {'type': 'mmpretrain.GlobalAveragePooling'},
            'head': {'type': 'mmpretrain.LinearClsHead', 'num_classes': 10, 'in_channels': 64},
        }
    )
    names = dict(model.named_modules())
    assert {'backbone.stage1', 'backbone.stage2', 'backbone.stage3', 'neck', 'head.fc'} <= names.keys()
    x = torch.randn(2, 3, 32, 32)
    expected = model.head.fc(model.backbone(x)[0].mean((2, 3)))
    torch.testing.assert_close(model(x), expected)


def test_a_block_has_no_other_attributes_than_those_of_caches_that_are_there():
    """The name of a teacher's cache depends on them."""
    plain = vars(CifarResNet(8, width=4).get_submodule('stage2.0')).keys() - vars(nn.Module()).keys()
    assert plain == {'padding', 'shortcut'}
