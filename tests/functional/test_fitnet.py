import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import fitnet_loss


def by_loops(student, teacher):
    return sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)) / 2


@pytest.mark.parametrize('shape', [(2, 3), (2, 5, 3), (2, 3, 4, 2)])
def test_value(shape):
    student, teacher = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    total = by_loops(student, teacher)
    assert fitnet_loss(student, teacher).item() == pytest.approx(total / student.numel())
    assert fitnet_loss(student, teacher, 'sum').item() == pytest.approx(total / 2)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_gradcheck(reduction):
    student = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: fitnet_loss(s, teacher, reduction), (student,))


def test_larger_maps_are_pooled():
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 6)
    expected = fitnet_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)))
    torch.testing.assert_close(fitnet_loss(student, teacher), expected)


def test_equal():
    student = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = fitnet_loss(student, student)
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize(
    ('student', 'teacher', 'say'),
    [
        ((2, 3, 4, 4), (2, 5, 4, 4), "add adapter='auto' to the term"),
        ((2, 3), (2, 5), "add adapter='auto' to the term"),
        ((2, 3), (2, 3, 4, 4), 'two maps (B, C, H, W), two sequences'),
        ((2, 4, 3), (2, 5, 3), 'the same number of tokens'),
        ((2, 4, 3), (2, 4, 5), "add adapter='auto' to the term"),
        ((2, 3, 1, 1, 1), (2, 3, 1, 1, 1), 'two maps (B, C, H, W), two sequences'),
        ((2, 3), (1, 3), 'same images'),
    ],
)
def test_mismatch(student, teacher, say):
    with pytest.raises(ValueError) as error:
        fitnet_loss(torch.ones(student), torch.ones(teacher))
    assert say in str(error.value)
    assert f'student {student} and teacher {teacher}' in str(error.value)


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction: expected one of 'mean', 'sum', got 'none'"):
        fitnet_loss(torch.ones(1, 1), torch.ones(1, 1), 'none')
