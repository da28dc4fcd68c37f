from math import exp, log

import pytest
import torch

from kd_plugins.functional import kd_loss


def by_loops(student, teacher, tau):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        zs, zt = sum(exp(x / tau) for x in s), sum(exp(x / tau) for x in t)
        for a, b in zip(s, t, strict=True):
            p, q = exp(b / tau) / zt, exp(a / tau) / zs
            total += p * (log(p) - log(q)) if p else 0
    return tau**2 * total / len(student)


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_value(tau):
    student, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    assert kd_loss(student, teacher, tau).item() == pytest.approx(by_loops(student, teacher, tau), rel=1e-12)


def test_default_temperature():
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(kd_loss(student, teacher), kd_loss(student, teacher, 4.0))


def test_leading_dimensions_are_averaged():
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(kd_loss(student, teacher), kd_loss(student.flatten(0, 1), teacher.flatten(0, 1)))


def test_gradcheck():
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, teacher, 3.0), (student,))


def test_class_mean_is_k_times_less():
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    pointwise = torch.nn.functional.kl_div(student.log_softmax(1), teacher.softmax(1), reduction='none')
    torch.testing.assert_close(kd_loss(student, teacher, 1.0), 7 * pointwise.mean())


def test_gradient_size_constant_in_temperature():
    # For large tau it tends to (s - t) / K of the centred logits, whatever tau is.
    student = torch.randn(1, 6, dtype=torch.float64)
    teacher = torch.randn(1, 6, dtype=torch.float64)
    student, teacher = student - student.mean(), teacher - teacher.mean()
    student.requires_grad_()
    for tau in (100.0, 400.0):
        (gradient,) = torch.autograd.grad(kd_loss(student, teacher, tau), student)
        torch.testing.assert_close(gradient, (student - teacher).detach() / 6, rtol=0.05, atol=0.08 / tau)


@pytest.mark.parametrize('both', [False, True])
def test_masked_classes(both):
    mask = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    student, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    teacher = teacher.masked_fill(mask, -torch.inf)
    student = (student.masked_fill(mask, -torch.inf) if both else student).requires_grad_()
    loss = kd_loss(student, teacher, 2.0)
    assert loss.item() == pytest.approx(by_loops(student, teacher, 2.0), rel=1e-12)
    # In the logits: tau (q - p) / N.
    expected = 2 / 3 * ((student / 2).softmax(1) - (teacher / 2).softmax(1)).detach()
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected)


def test_a_class_that_the_student_alone_masks_is_infinitely_far():
    assert kd_loss(torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2)).item() == torch.inf


@pytest.mark.parametrize('size', [1e4, 1e30])
def test_extreme_logits(size):
    student = torch.tensor([[size, 0.0, -size]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[-size, 0.0, size]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2 * size)
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, 0.0, -1.0]]))


def test_equal_logits():
    student = torch.randn(1, 5, requires_grad=True)
    loss = kd_loss(student, student)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ('student', 'teacher'), [((4, 10), (4, 100)), ((4, 10), (3, 10)), ((4,), (4,)), ((0, 5), (0, 5))]
)
def test_mismatch(student, teacher):
    with pytest.raises(ValueError) as error:
        kd_loss(torch.ones(student), torch.ones(teacher))
    message = str(error.value)
    assert f'student {student}' in message
    assert f'teacher {teacher}' in message
    assert 'the same classes' in message
    assert '\n' not in message
