from math import sqrt

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd_plugins.functional import cosine_loss


def by_loops(student, teacher, w):
    """Compare features (N, C), one vector at a time."""
    cosines, values = [], []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(s, t, strict=True))
        cosines.append(1 - dot / sqrt(sum(a * a for a in s)) / sqrt(sum(b * b for b in t)))
        values += [abs(a - b) - 0.5 if abs(a - b) >= 1 else (a - b) ** 2 / 2 for a, b in zip(s, t, strict=True)]
    return (1 - w) * sum(cosines) / len(cosines) + w * sum(values) / len(values)


@pytest.mark.parametrize('w', [0.0, 0.1, 1.0])
@pytest.mark.parametrize('shape', [(4, 3), (2, 5, 3), (2, 3, 4, 2)])
def test_value(shape, w):
    student, teacher = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    vectors = [x.movedim(1, -1) if x.ndim == 4 else x for x in (student, teacher)]
    expected = by_loops(*(x.reshape(-1, 3) for x in vectors), w)
    assert cosine_loss(student, teacher, w).item() == pytest.approx(expected)


@pytest.mark.parametrize('shape', [(2, 3), (2, 4, 3), (2, 3, 2, 2)])
def test_gradcheck(shape):
    student = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: cosine_loss(s, teacher), (student,))


def test_limits():
    student = torch.randn(2, 3, 4, 4)
    assert cosine_loss(student, student).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(student, 5 * student, 0).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(student, -student, 0).item() == pytest.approx(2)
    assert cosine_loss(student, 5 * student).item() > 0.1


def test_a_vector_of_zeros_has_no_direction():
    student = torch.zeros(1, 3, requires_grad=True)
    loss = cosine_loss(student, torch.ones(1, 3), 0)
    loss.backward()
    assert loss.item() == 1
    assert not student.grad.any()


def test_maps_and_their_positions_as_tokens_are_the_same():
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    tokens = [x.flatten(2).mT for x in (student, teacher)]
    torch.testing.assert_close(cosine_loss(student, teacher), cosine_loss(*tokens))


def test_larger_maps_are_pooled():
    student, teacher = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 4, 6)
    expected = cosine_loss(adaptive_avg_pool2d(student, (4, 4)), adaptive_avg_pool2d(teacher, (4, 4)))
    torch.testing.assert_close(cosine_loss(student, teacher), expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'say'),
    [
        ((2, 3, 4, 4), (2, 5, 4, 4), "add adapter='auto' to the term"),
        ((2, 4, 3), (2, 4, 5), "add adapter='auto' to the term"),
        ((2, 3), (2, 5), "add adapter='auto' to the term"),
        ((2, 4, 3), (2, 5, 3), 'the same number of tokens'),
        ((2, 3), (2, 3, 4, 4), 'tap layers of the same kind'),
        ((2, 3, 1, 1, 1), (2, 3, 1, 1, 1), 'two maps (B, C, H, W), two sequences of tokens (B, N, C)'),
        ((2, 3), (1, 3), 'same images'),
    ],
)
def test_mismatch(student, teacher, say):
    with pytest.raises(ValueError) as error:
        cosine_loss(torch.ones(student), torch.ones(teacher))
    assert say in str(error.value)
