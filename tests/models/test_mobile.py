"""The networks for 32 x 32 images that are not residual: VGG, ShuffleNet and MobileNetV2."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_plugins.errors import UserError
from kd_plugins.models import CifarMobileNetV2, CifarShuffleNetV1, CifarShuffleNetV2, CifarVGG
from kd_plugins.models.mobile import _GroupedUnit, _InvertedResidual, _Shuffle

NETWORKS = [lambda: CifarVGG(13), CifarShuffleNetV1, CifarShuffleNetV2, lambda: CifarMobileNetV2(0.5)]


def awake(model: nn.Module) -> nn.Module:
    """Return the model in float64, in eval mode, with statistics and weights that a BatchNorm shows."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def conv_bn(layers: nn.Sequential, index: int, x: Tensor) -> Tensor:
    """Apply a convolution and the BatchNorm behind it, by their tensors."""
    conv, norm = layers[index], layers[index + 1]
    x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.kernel_size[0] // 2, groups=conv.groups)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    return x * scale.view(-1, 1, 1) + (norm.bias - norm.running_mean * scale).view(-1, 1, 1)


@pytest.mark.parametrize(
    ('build', 'taps'),
    [
        (NETWORKS[0], dict(stem=(64, 32), stage1=(128, 16), stage2=(256, 8), stage3=(512, 4), stage4=(512, 4))),
        (NETWORKS[1], dict(stem=(24, 32), stage1=(240, 16), stage2=(480, 8), stage3=(960, 4))),
        (NETWORKS[2], dict(stem=(24, 32), stage1=(116, 16), stage2=(232, 8), stage3=(464, 4), last=(1024, 4))),
        (NETWORKS[3], dict(conv1=(16, 16), layer2=(12, 16), layer3=(16, 8), layer5=(48, 4), layer7=(160, 2))),
    ],
)
def test_taps_have_the_sizes_of_the_docstrings_and_keep_their_values(build: object, taps: dict) -> None:
    model, seen = build(), {}
    for name, module in model.named_modules():
        if module is not model:
            module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: (o, o.detach().clone())}))
    (out,) = model(torch.randn(2, 3, 32, 32))
    out.sum().backward()
    assert {name: (seen[name][0].shape[1], seen[name][0].shape[2]) for name in taps} == taps
    assert out.shape[1] == model.num_features
    assert all(torch.equal(now, then) for now, then in seen.values())
    signed = {name for name in taps if seen[name][0].min() < 0}
    assert signed == {name for name in taps if name.startswith('layer')}


def test_vgg_equals_its_formula() -> None:
    model, x = awake(CifarVGG(11)), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    (out,) = model(x)
    for name, convolutions, halved in (('stem', 1, 1), ('stage1', 1, 1), ('stage2', 2, 1), ('stage3', 2, 0)):
        for i in range(convolutions):
            x = conv_bn(model.get_submodule(name), 3 * i, x).clamp(min=0)
        if halved:
            x = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    for i in range(2):
        x = conv_bn(model.stage4, 3 * i, x).clamp(min=0)
    torch.testing.assert_close(out, x)


def test_shuffle_takes_the_first_of_each_group_then_the_second() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert _Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert _Shuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize(('before', 'after', 'stride', 'groups'), [(24, 60, 2, 1), (36, 72, 2, 3), (36, 36, 1, 3)])
def test_a_unit_of_shufflenet_equals_its_formula(before: int, after: int, stride: int, groups: int) -> None:
    unit, x = awake(_GroupedUnit(before, after, stride)), torch.randn(2, before, 6, 6, dtype=torch.float64)
    y = conv_bn(unit.residual, 0, x).clamp(min=0)
    size = y.shape[1] // groups
    y = y[:, [group * size + i for i in range(size) for group in range(groups)]]
    y = conv_bn(unit.residual, 4, y).clamp(min=0)
    y = conv_bn(unit.residual, 7, y)
    y = (
        y + x
        if stride == 1
        else torch.cat([y, F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).mean((-1, -2))], 1)
    )
    assert unit.residual[0].groups == groups
    torch.testing.assert_close(unit(x), y.clamp(min=0))


def test_shufflenet_v2_is_mmpretrains_behind_another_stem() -> None:
    from mmpretrain.models.backbones import ShuffleNetV2

    model, other = awake(CifarShuffleNetV2()), ShuffleNetV2().double()
    other.eval()  # returns nothing
    tensors = iter([value for name, value in model.state_dict().items() if not name.startswith('stem.')])
    other.layers.load_state_dict({name: next(tensors) for name in other.layers.state_dict()})
    maps = model.stem(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    expected = maps
    for layer in other.layers:
        expected = layer(expected)
    torch.testing.assert_close(model.last(model.stage3(model.stage2(model.stage1(maps)))), expected)


@pytest.mark.parametrize(('before', 'after', 'stride'), [(8, 8, 1), (8, 8, 2), (8, 12, 1)])
def test_a_block_of_mobilenet_is_mmpretrains_with_relu(before: int, after: int, stride: int) -> None:
    from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual

    block = awake(_InvertedResidual(before, after, stride, expansion=6))
    other = InvertedResidual(before, after, stride, 6, act_cfg=dict(type='ReLU')).double().eval()
    other.load_state_dict(dict(zip(other.state_dict(), block.state_dict().values(), strict=True)))
    x = torch.randn(2, before, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), other(x))


def test_mobilenets_first_stage_expands_to_as_many_channels() -> None:
    model = CifarMobileNetV2()
    assert [model.layer1[0].conv[0].out_channels, model.layer2[0].conv[0].out_channels] == [32, 96]
    assert [CifarMobileNetV2(factor).num_features for factor in (0.5, 1.0, 1.5)] == [1280, 1280, 1920]


@pytest.mark.parametrize('build', NETWORKS)
def test_weights_start_as_the_docstrings_say(build: object) -> None:
    model = build()
    model.init_weights()
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_in, fan_out = (n * module.kernel_size[0] ** 2 for n in module.weight.shape[1::-1])
            plain = isinstance(model, (CifarShuffleNetV1, CifarShuffleNetV2))
            expected = math.sqrt(1 / (3 * fan_in) if plain else 2 / fan_out)
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03)
            checked += 1
    assert checked > 3


def test_a_wrong_depth_of_vgg_is_one_line() -> None:
    with pytest.raises(UserError, match=r'^CifarVGG: depth must be one of 8, 11, 13, 16, 19, got 10$'):
        CifarVGG(10)
