from math import log

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import vid_loss


def by_loops(student, teacher, variance):
    """Compare features (N, C), one number at a time."""
    terms = [
        ((a - b) ** 2 / v + log(v)) / 2
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
        for a, b, v in zip(s, t, variance.tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize('shape', [(4, 3), (2, 5, 3), (2, 3, 4, 2)])
def test_value_and_gradient(shape):
    student, teacher = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    variance = torch.tensor([0.1, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    vectors = [x.movedim(1, -1) if x.ndim == 4 else x for x in (student, teacher)]
    expected = by_loops(*(x.reshape(-1, 3) for x in vectors), variance)
    assert vid_loss(student, teacher, variance).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda s, v: vid_loss(s, teacher, v), (student, variance))


def test_the_best_variance_is_the_mean_square():
    student, teacher = torch.zeros(500, 2), torch.randn(500, 2) * torch.tensor([1.0, 3.0])
    variance = teacher.square().mean(0).requires_grad_()
    vid_loss(student, teacher, variance).backward()
    assert variance.grad.abs().max() < 1e-6
    assert vid_loss(student, teacher, variance * 1.1) > vid_loss(student, teacher, variance)


def test_limits():
    student, teacher = torch.zeros(1, 2, requires_grad=True), torch.full((1, 2), 1e4)
    far = vid_loss(student, teacher, torch.full((2,), 1e-5))
    far.backward()
    assert far.item() == pytest.approx(1e13 / 2, rel=1e-5)
    assert student.grad.isfinite().all()
    assert vid_loss(teacher, teacher, torch.full((2,), 1e-5)).item() == pytest.approx(log(1e-5) / 2)


def test_larger_maps_are_pooled():
    student, teacher, variance = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 6), torch.rand(3) + 0.1
    expected = vid_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)), variance)
    torch.testing.assert_close(vid_loss(student, teacher, variance), expected)


def test_mismatch():
    with pytest.raises(ValueError, match='vid_loss: expected the same number of channels'):
        vid_loss(torch.ones(2, 3), torch.ones(2, 4), torch.ones(4))
    with pytest.raises(ValueError, match=r'vid_loss: expected variances of shape \(3,\), got \(4,\)'):
        vid_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4))
