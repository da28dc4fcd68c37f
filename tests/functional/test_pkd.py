from concurrent.futures import ThreadPoolExecutor
from statistics import fmean, pstdev
from threading import Barrier

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import pkd_loss


def by_loops(student, teacher):
    """Standardise the values of one channel at a time."""
    losses = []
    for s, t in zip(*(x.movedim(1, 0).flatten(1).tolist() for x in (student, teacher)), strict=True):
        s, t = ([(v - fmean(x)) / pstdev(x) for v in x] for x in (s, t))
        losses += [(a - b) ** 2 / 2 for a, b in zip(s, t, strict=True)]
    return fmean(losses)


def test_value():
    student, teacher = torch.randn(3, 4, 5, 2, dtype=torch.float64), torch.randn(3, 4, 5, 2, dtype=torch.float64)
    assert pkd_loss(student, teacher).item() == pytest.approx(by_loops(student, teacher))


def test_it_is_one_minus_the_correlation_of_a_channel():
    student, teacher = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    pairs = zip(student.movedim(1, 0).flatten(1), teacher.movedim(1, 0).flatten(1), strict=True)
    expected = sum(1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs) / 4
    torch.testing.assert_close(pkd_loss(student, teacher), expected)


@pytest.mark.parametrize('size', [(3, 2), (6, 4), (2, 5)])
def test_gradcheck(size):
    student = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: 3 * pkd_loss(s, teacher), (student,))


def test_limits():
    student = torch.randn(2, 3, 4, 4)
    assert pkd_loss(student, student) == 0
    assert pkd_loss(student, -student).item() == pytest.approx(2)
    assert pkd_loss(student, 1e4 * student - 1e4).item() == pytest.approx(0, abs=1e-5)
    assert pkd_loss(1e4 * student, 1e-4 * student).item() == pytest.approx(0, abs=1e-6)


def test_scale_and_offset_of_a_channel_play_no_role():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    scales, offsets = torch.tensor([0.1, 2.0, 30.0])[:, None, None], torch.tensor([-5.0, 0.0, 7.0])[:, None, None]
    torch.testing.assert_close(pkd_loss(student * scales + offsets, teacher), pkd_loss(student, teacher))
    order = torch.randperm(4)
    torch.testing.assert_close(pkd_loss(student[..., order], teacher[..., order]), pkd_loss(student, teacher))


@pytest.mark.parametrize('value', [0.0, 0.1, -1e4])
def test_a_constant_channel_gets_no_gradient(value):
    student, teacher = torch.randn(2, 3, 7, 9), torch.randn(2, 3, 7, 9)
    expected = pkd_loss(student[:, 1:], teacher[:, 1:])
    student[:, 0] = value
    student.requires_grad_()
    loss = pkd_loss(student, teacher)
    loss.backward()
    torch.testing.assert_close(loss, (0.5 + 2 * expected) / 3)
    assert not student.grad[:, 0].any()
    assert student.grad[:, 1:].all()
    assert pkd_loss(torch.full_like(teacher, value), torch.full_like(teacher, 3.3)) == 0


def test_one_pixel():
    student = torch.randn(1, 3, 1, 1, requires_grad=True)
    loss = pkd_loss(student, torch.randn(1, 3, 1, 1))
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_parts_of_a_batch_of_other_sizes_are_one_batch():
    sizes = (2, 3, 4, 5), (3, 3, 2, 2)
    students = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    teachers = [torch.randn(size, dtype=torch.float64) for size in sizes]
    whole = [
        torch.cat([x.movedim(1, 0).flatten(1) for x in parts], 1)[None, ..., None] for parts in (students, teachers)
    ]
    expected = pkd_loss(*whole)
    gradients = torch.autograd.grad(expected, students)
    both, parts = Barrier(2), [None, None]

    def process(rank):
        def total(x):
            parts[rank] = x
            both.wait()
            found = parts[0] + parts[1]
            both.wait()
            return found

        loss = pkd_loss(students[rank], teachers[rank], total)
        return loss, torch.autograd.grad(loss, students[rank])[0]

    with ThreadPoolExecutor(2) as pool:
        for (loss, gradient), other in zip(pool.map(process, range(2)), gradients, strict=True):
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(gradient, 2 * other)  # which data-parallel divides by the number of processes


def test_larger_maps_are_pooled():
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 6)
    expected = pkd_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)))
    torch.testing.assert_close(pkd_loss(student, teacher), expected)


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
        pkd_loss(torch.ones(student), torch.ones(teacher))
    assert say in str(error.value)
