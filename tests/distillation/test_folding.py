"""A frozen teacher whose convolutions compute the BatchNorm behind them is the same teacher."""

import pytest
import torch
from torch import Tensor, nn

from kd_plugins.distillation.teacher import Teacher


class Network(nn.Module):
    """Pairs to fold, and pairs that must not be: a shared convolution, and an output that is used twice."""

    def __init__(self, reuse: bool = False) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.depthwise_norm = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8, affine=False)
        self.shared, self.norms = nn.Conv2d(8, 8, 1), nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.reuse = reuse

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.stem_norm(x).relu_() + (x if self.reuse else 0)
        x = self.depthwise_norm(self.depthwise(x))
        return self.norms[0](self.shared(x)) + self.norms[1](self.shared(x))


def network(reuse: bool = False) -> Network:
    torch.manual_seed(0)
    model = Network(reuse)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_()
    return model


def ran(monkeypatch: pytest.MonkeyPatch, teacher: Teacher, images: Tensor) -> int:
    """Return how many BatchNorms compute in a pass."""
    calls: list[int] = []
    own = torch.nn.functional.batch_norm
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.nn.functional, 'batch_norm', lambda x, *args, **kw: (calls.append(1), own(x, *args, **kw))[1]
        )
        teacher(images, None)
    return len(calls)


@pytest.mark.parametrize(('reuse', 'taps', 'left'), [(False, [''], 2), (False, ['', 'stem'], 3), (True, [''], 4)])
def test_folded_features_are_those_of_the_network(
    monkeypatch: pytest.MonkeyPatch, reuse: bool, taps: list[str], left: int
) -> None:
    images, plain, model = torch.randn(4, 3, 9, 9), network(reuse).eval(), network(reuse)
    teacher = Teacher(model, taps)
    assert ran(monkeypatch, teacher, images) == 4
    probed = teacher.probe(images, None)
    assert ran(monkeypatch, teacher, images) == left
    features = teacher(images, None)
    for tap in taps:
        assert features[tap][0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(features[tap][0], probed[tap][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features[''][0], plain(images), rtol=1e-5, atol=1e-5)
    state, expected = model.state_dict(), plain.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_a_teacher_that_is_converted_or_moved_computes_with_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = torch.randn(2, 3, 9, 9), network()
    teacher = Teacher(model, [''])
    teacher.probe(images, None)
    teacher.apply(lambda x: x.double() if x.is_floating_point() else x)
    assert ran(monkeypatch, teacher, images.double()) == 2
    torch.testing.assert_close(teacher(images.double(), None)[''][0], network().double().eval()(images.double()))
    assert not model.stem.weight.is_contiguous()
    teacher.apply(lambda x: x.to('meta'))
    assert not any('forward' in vars(module) for module in model.modules())
    assert model.stem.weight.is_contiguous()


class Rows(nn.Module):
    """A network that views its maps as rows, which channels-last maps do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4 * 7 * 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        return self.fc(maps.view(len(maps), -1))


def test_a_network_that_views_its_maps_as_rows_runs_as_it_did() -> None:
    images, model = torch.randn(2, 3, 9, 9), Rows().eval()
    expected = model(images)
    teacher = Teacher(model, ['', 'body'])
    torch.testing.assert_close(teacher.probe(images, None)[''][0], expected)
    assert torch.equal(teacher(images, None)[''][0], expected)
    assert not any('forward' in vars(module) for module in model.modules())


def test_others_see_what_a_convolution_is_named_for() -> None:
    images, model = torch.randn(2, 3, 9, 9), network()
    seen: list[Tensor] = []
    teacher = Teacher(model, [''])
    teacher.probe(images, None)
    with teacher.unfolded():
        model.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
        model(images)
    model(images)
    torch.testing.assert_close(seen[0], nn.Conv2d.forward(model.stem, images))
    assert not torch.allclose(seen[0], seen[1])  # what is hooked later on sees the folded one
    hooked = network()
    hooked.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    teacher = Teacher(hooked, [''])
    teacher.probe(images, None)
    teacher(images, None)
    torch.testing.assert_close(seen[-1], nn.Conv2d.forward(hooked.stem, images))


def test_the_gradient_in_the_inputs_is_that_of_the_network() -> None:
    """Which BSS and CrossKD need."""
    images, plain, teacher = torch.randn(2, 3, 9, 9), network().eval(), Teacher(network(), [''])
    teacher.probe(images, None)
    own, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    teacher.features(own, None)[''][0].square().sum().backward()
    plain(other).square().sum().backward()
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_folded_features_of_a_bfloat16_teacher_are_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are folded in float32 and rounded once, by autocast; folding is compared in float32, too."""
    images, taps = torch.randn(16, 3, 9, 9), ['', 'depthwise_norm']
    exact = Teacher(network().double(), taps)(images.double(), None)
    plain, folded = (Teacher(network(), taps, bf16=True) for _ in range(2))
    folded.probe(images, None)
    assert ran(monkeypatch, folded, images) == 2
    for tap in taps:
        expected = exact[tap][0]
        errors = [(x(images, None)[tap][0].double() - expected).norm() / expected.norm() for x in (plain, folded)]
        assert 1e-3 < errors[0] < 5e-3
        assert errors[1] < 1.25 * errors[0]


def test_a_tap_that_the_next_layer_overwrites_is_folded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    images, taps = torch.randn(2, 3, 9, 9), ['stem_norm', '']
    expected = network().eval()
    teacher = Teacher(network(), taps)
    probed = teacher.probe(images, None)
    assert ran(monkeypatch, teacher, images) == 2
    for features in (probed, teacher(images, None)):
        torch.testing.assert_close(
            features['stem_norm'][0], expected.stem_norm(expected.stem(images)), atol=1e-5, rtol=1e-5
        )


def test_layers_behind_the_taps_run_once_in_a_dry_run() -> None:
    """They may take minutes, as a head that computes masks for all boxes."""
    model, runs = network(), []
    model.shared.register_forward_hook(lambda *_: runs.append(1))
    Teacher(model, ['depthwise_norm']).probe(torch.randn(2, 3, 9, 9), None)
    assert len(runs) == 2  # it runs twice in a pass


class Biased(nn.Module):
    """A network that keeps what follows from its parameters outside of its buffers, as LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.kept = nn.Linear(3, 3), None

    def train(self, mode: bool = True) -> 'Biased':
        super().train(mode)
        self.kept = None if mode else 2 * self.fc.bias.detach()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.kept


def test_what_a_network_computes_on_entering_evaluation_follows_its_parameters() -> None:
    teacher = Teacher(Biased(), [''])
    teacher.apply(lambda x: x.double())
    assert teacher.features(torch.randn(2, 3).double(), None)[''][0].dtype == torch.float64
    teacher.apply(lambda x: x.to('meta'))
    assert teacher.model.kept.is_meta
