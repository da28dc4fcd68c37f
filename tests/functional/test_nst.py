from math import exp

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, normalize

from kd_plugins.functional import nst, nst_loss

KERNELS = [
    {},
    {'kernel': 'linear'},
    {'kernel': 'poly', 'c': 0.5},
    {'kernel': 'poly', 'degree': 1},
    {'kernel': 'poly', 'degree': 3, 'c': 0.2},
    {'kernel': 'gaussian'},
    {'kernel': 'gaussian', 'bandwidth': 'all'},
    {'kernel': 'gaussian', 'bandwidth': 0.7},
]
# Channels of the student, of the teacher, height, width: for either Gram side of the square kernel.
SHAPES = [(2, 3, 4, 3), (4, 5, 2, 1)]
kernels = pytest.mark.parametrize('options', KERNELS, ids=lambda x: '-'.join(map(str, x.values())) or 'default')
shapes = pytest.mark.parametrize('shape', SHAPES, ids=['channels', 'positions'])


def by_loops(student, teacher, kernel='poly', degree=2, c=0.0, bandwidth='cross'):
    def dot(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True))

    def square(x, y):
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    total = 0.0
    for maps in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        s, t = ([[a / dot(x, x) ** 0.5 for a in x] for x in channels] for channels in maps)
        if bandwidth == 'cross':
            pairs = [square(x, y) for x in s for y in t]
        elif bandwidth == 'all':
            pairs = [square(x, y) for x in s + t for y in s + t]
        else:
            pairs = [bandwidth]
        variance = sum(pairs) / len(pairs)
        k = {
            'poly': lambda x, y: (dot(x, y) + c) ** degree,
            'linear': dot,
            'gaussian': lambda x, y, v=variance: exp(-square(x, y) / (2 * v)),
        }[kernel]
        for sign, first, second in ((1, s, s), (1, t, t), (-2, s, t)):
            total += sign * sum(k(x, y) for x in first for y in second) / (len(first) * len(second))
    return total / len(student)


def maps(shape, size=2, **options):
    c_s, c_t, h, w = shape
    student = torch.randn(size, c_s, h, w, dtype=torch.float64, **options)
    return student, torch.randn(size, c_t, h, w, dtype=torch.float64)


def unit(x):
    return normalize(x.flatten(2), dim=2)


@kernels
@shapes
def test_value(shape, options):
    student, teacher = maps(shape)
    assert nst_loss(student, teacher, **options).item() == pytest.approx(
        by_loops(student, teacher, **options), rel=1e-9
    )


@kernels
@shapes
def test_gradcheck(shape, options):
    student, teacher = maps(shape, requires_grad=True)
    if 'gaussian' in options.values() and not isinstance(options.get('bandwidth'), float):
        # The bandwidth has no gradient: hold it where it is.
        x, y = unit(student.detach()), unit(teacher)
        pool = (x, y) if options.get('bandwidth', 'cross') == 'cross' else (torch.cat((x, y), 1),) * 2
        fixed = [torch.cdist(a[None], b[None]).square().mean().item() for a, b in zip(*pool, strict=True)]
        (gradient,) = torch.autograd.grad(nst_loss(student, teacher, **options), student)
        parts = [
            nst_loss(student[i : i + 1], teacher[i : i + 1], kernel='gaussian', bandwidth=fixed[i]) for i in (0, 1)
        ]
        torch.testing.assert_close(torch.autograd.grad(sum(parts) / 2, student)[0], gradient)
    else:
        assert torch.autograd.gradcheck(lambda s: nst_loss(s, teacher, **options), (student,))


@shapes
def test_square_is_the_distance_of_position_grams(shape):
    student, teacher = maps(shape)
    s, t = unit(student), unit(teacher)
    gram = t.mT @ t / t.shape[1] - s.mT @ s / s.shape[1]
    torch.testing.assert_close(nst_loss(student, teacher), gram.square().sum((1, 2)).mean())


def test_linear_is_the_distance_of_means():
    student, teacher = maps(SHAPES[0])
    expected = (unit(student).mean(1) - unit(teacher).mean(1)).square().sum(1).mean()
    torch.testing.assert_close(nst_loss(student, teacher, kernel='linear'), expected)
    torch.testing.assert_close(nst_loss(student, teacher, kernel='poly', degree=1, c=3.0), expected)


def test_both_gram_sides_agree(monkeypatch):
    shape = (5, 6, 3, 2)
    student, teacher = maps(shape, requires_grad=True)
    positions = nst_loss(student, teacher, c=0.3)
    gradient = torch.autograd.grad(positions, student)[0]
    seen = []
    mmd = nst._mmd
    monkeypatch.setattr(nst, '_mmd', lambda *x: seen.append(1) or mmd(*x))
    nst_loss(student, teacher, c=0.3)
    assert not seen
    # Zeros beside the maps change no inner product, but make the channels the cheaper side.
    wide = [torch.nn.functional.pad(x, (0, 30)) for x in (student, teacher)]
    channels = nst_loss(*wide, c=0.3)
    assert seen
    torch.testing.assert_close(channels, positions)
    torch.testing.assert_close(torch.autograd.grad(channels, student)[0], gradient)


@kernels
@shapes
def test_permuted_channels_are_the_same_set(shape, options):
    student = maps(shape, requires_grad=True)[0]
    loss = nst_loss(student, student.flip(1) * torch.rand(student.shape[1], 1, 1), **options)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-13)
    assert student.grad.abs().max() < 1e-12


@kernels
def test_equal_single_and_never_below_zero_by_more_than_rounding(options):
    student = torch.randn(1, 6, 4, 4, requires_grad=True)
    nst_loss(student, student, **options).backward()
    assert student.grad.abs().max() < 1e-5
    for distance in (0.0, 1e-4, 1e-2, 1.0):
        assert nst_loss(student, student + distance * torch.randn(1, 6, 4, 4), **options) > -1e-6


@kernels
def test_zero_maps(options):
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 4, 2, 2)
    student[0], student[1, 1], teacher[1, 0] = 0, 0, 0
    student.requires_grad_()
    loss = nst_loss(student, teacher, **options)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert not student.grad[0].any()
    assert not student.grad[1, 1].any()
    assert student.grad[1, 0].any()


def test_gaussian_distance_of_a_zero_map():
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]]])
    assert nst_loss(student, teacher, 'gaussian', bandwidth=0.5).item() == pytest.approx(2 - 2 * exp(-1))


def test_gaussian_of_one_pattern():
    # No distance to take a bandwidth from; rounding must not become one.
    student = torch.rand(1, 1, 8, 8).repeat(1, 5, 1, 1).requires_grad_()
    loss = nst_loss(student, 3.7 * student, kernel='gaussian')
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-2)
    assert student.grad.abs().max() < 1


@pytest.mark.parametrize('bandwidth', [1e-3, 1e-8, 1e-30])
def test_a_narrow_gaussian_knows_each_pattern_alone(bandwidth):
    """As sigma goes to 0, k(x, y) is 1 for x = y and else 0, and MMD^2 is 1 / C_S + 1 / C_T."""
    student, teacher = (x.float() for x in maps((8, 6, 5, 5)))
    student.requires_grad_()
    loss = nst_loss(student, teacher, 'gaussian', bandwidth=bandwidth)
    assert loss.item() == pytest.approx(1 / 8 + 1 / 6, rel=1e-3)
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-3


def test_scale_of_a_channel_does_not_matter():
    student, teacher = maps(SHAPES[0])
    for kernel in nst.KERNELS:
        scaled = student * torch.tensor([0.01, 50.0])[:, None, None]
        torch.testing.assert_close(nst_loss(scaled, teacher, kernel), nst_loss(student, teacher, kernel))


@kernels
def test_larger_maps_are_pooled(options):
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 5, 4, 6)
    expected = nst_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)), **options)
    torch.testing.assert_close(nst_loss(student, teacher, **options), expected)


def test_no_large_intermediate():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        nst_loss(torch.randn(2, 64, 50, 76, requires_grad=True), torch.randn(2, 64, 50, 76))
        nst_loss(torch.randn(2, 512, 7, 7, requires_grad=True), torch.randn(2, 1024, 7, 7))
    assert max(kept) <= 2 * 64 * 50 * 76


def test_wrong_use():
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r'nst_loss: expected feature maps \(B, C, H, W\), got student \(2, 3\)'):
        nst_loss(x[:, :, 0, 0], x)
    with pytest.raises(ValueError, match=r'same B, got student \(2, 3, 4, 4\) and teacher \(1, 3, 4, 4\)'):
        nst_loss(x, x[:1])
    with pytest.raises(ValueError, match="kernel: expected one of 'poly', 'linear', 'gaussian', got 'rbf'"):
        nst_loss(x, x, 'rbf')
    with pytest.raises(ValueError, match="bandwidth: expected one of 'cross', 'all', got 'median'"):
        nst_loss(x, x, 'gaussian', bandwidth='median')


@pytest.mark.parametrize('bandwidth', ['cross', 'all', 0.7])
def test_a_gaussian_kernel_some_samples_at_a_time_agrees(monkeypatch, bandwidth):
    student, teacher = torch.randn(7, 3, 2, 2).double().requires_grad_(), torch.randn(7, 5, 2, 2).double()
    whole = nst_loss(student, teacher, 'gaussian', bandwidth=bandwidth)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(nst, '_BLOCK_ELEMENTS', 3 * 5**2)
    parts = nst_loss(student, teacher, 'gaussian', bandwidth=bandwidth)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, student)[0], gradient)


def test_alike_sets_lose_nothing_to_float32():
    # Three means of about 0.4 whose sum is a thousandth of that.
    student, teacher = torch.randn(4, 256, 4, 4).relu(), (torch.randn(4, 256, 4, 4) + 0.5).relu()
    exact = nst_loss(student.double(), teacher.double(), 'gaussian')
    assert exact < 0.1
    assert nst_loss(student, teacher, 'gaussian').item() == pytest.approx(exact.item(), rel=2e-6)
