from math import exp, log

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import cwd_loss


def by_loops(student, teacher, tau):
    """Compare one channel of one image at a time."""

    def log_probabilities(values):
        total = sum(exp(x / tau) for x in values)
        return [x / tau - log(total) for x in values]

    pairs = zip(student.flatten(2).flatten(0, 1).tolist(), teacher.flatten(2).flatten(0, 1).tolist(), strict=True)
    divergences = [
        sum(exp(b) * (b - a) for a, b in zip(log_probabilities(s), log_probabilities(t), strict=True)) for s, t in pairs
    ]
    return tau**2 * sum(divergences) / len(divergences)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_value(tau):
    student, teacher = torch.randn(3, 4, 5, 2, dtype=torch.float64), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    assert cwd_loss(student, teacher, tau).item() == pytest.approx(by_loops(student, teacher, tau))


@pytest.mark.parametrize('size', [(3, 2), (6, 4), (2, 5)])
def test_gradcheck(size):
    student = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: cwd_loss(s, teacher, 2.0), (student,))


def test_limits():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert cwd_loss(student, student) == 0
    assert cwd_loss(student, torch.full_like(student, 7.0)) > 0
    assert cwd_loss(torch.zeros(2, 3, 4, 4), torch.full_like(student, 7.0)) == 0
    # At high temperature: half the mean square of the centred values, over a distribution that is even.
    even = (student - student.mean((2, 3), keepdim=True) - teacher + teacher.mean((2, 3), keepdim=True)).square().mean()
    torch.testing.assert_close(cwd_loss(student.double(), teacher.double(), 1e3), even.double() / 2, rtol=5e-3, atol=0)


def test_offsets_of_channels_and_order_of_positions_play_no_role():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = cwd_loss(student, teacher)
    torch.testing.assert_close(cwd_loss(student + torch.randn(2, 3, 1, 1), teacher), expected)
    order = torch.randperm(4)
    torch.testing.assert_close(cwd_loss(student[..., order], teacher[..., order]), expected)


def test_one_pixel():
    student = torch.randn(1, 3, 1, 1, requires_grad=True)
    loss = cwd_loss(student, torch.randn(1, 3, 1, 1))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_extreme_values_and_masked_positions():
    student, teacher = 1e4 * torch.randn(2, 3, 4, 4), 1e4 * torch.randn(2, 3, 4, 4)
    student.requires_grad_()
    loss = cwd_loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    whole = [torch.randn(2, 3, 4, 4) for _ in range(2)]
    masked = [x.clone() for x in whole]
    for x in masked:
        x[..., 3] = -torch.inf
    masked[0].requires_grad_()
    loss = cwd_loss(*masked)
    loss.backward()
    torch.testing.assert_close(loss, cwd_loss(*(x[..., :3] for x in whole)))
    assert masked[0].grad.isfinite().all()
    assert not masked[0].grad[..., 3].any()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('both', [False, True])
def test_a_channel_that_the_teacher_masks_adds_nothing(both, layout):
    student, teacher = (torch.randn(2, 3, 4, 4).to(memory_format=layout) for _ in range(2))
    rest = cwd_loss(student, teacher) * 6 - cwd_loss(student[:1, 1:2], teacher[:1, 1:2])
    teacher[0, 1] = -torch.inf
    if both:
        student[0, 1] = -torch.inf
    student.requires_grad_()
    loss = cwd_loss(student, teacher)
    loss.backward()
    torch.testing.assert_close(loss, rest / 6)
    assert not student.grad[0, 1].any()
    assert student.grad.isfinite().all()
    assert student.grad[1].all()


def test_larger_maps_are_pooled():
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 6)
    expected = cwd_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)))
    torch.testing.assert_close(cwd_loss(student, teacher), expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'say'),
    [
        ((2, 3, 4, 4), (2, 5, 4, 4), "add adapter='auto' to the term"),
        ((2, 3), (2, 3), 'expected feature maps (B, C, H, W)'),
        ((2, 3, 4, 4), (1, 3, 4, 4), 'same images'),
    ],
)
def test_mismatch(student, teacher, say):
    with pytest.raises(ValueError) as error:
        cwd_loss(torch.ones(student), torch.ones(teacher))
    assert say in str(error.value)
