from math import exp, sqrt

import pytest
import torch

from kd_plugins.functional import dist_loss

EPS = 1e-8


def logits(*size):
    return [torch.randn(size, dtype=torch.float64) for _ in range(2)]


def pearson(x, y, eps):
    x, y = ([a - sum(z) / len(z) for a in z] for z in (x, y))
    product = sum(a * b for a, b in zip(x, y, strict=True))
    return product / (sqrt(sum(a * a for a in x)) * sqrt(sum(b * b for b in y)) + eps)


def by_loops(student, teacher, beta, gamma, tau, eps):
    s, t = (
        [[exp(x / tau) / sum(exp(z / tau) for z in row) for x in row] for row in logits.tolist()]
        for logits in (student, teacher)
    )
    rows = [pearson(a, b, eps) for a, b in zip(s, t, strict=True)]
    columns = [pearson(a, b, eps) for a, b in zip(zip(*s, strict=True), zip(*t, strict=True), strict=True)]
    return tau**2 * (beta * (1 - sum(rows) / len(rows)) + gamma * (1 - sum(columns) / len(columns)))


@pytest.mark.parametrize(
    ('beta', 'gamma', 'tau', 'eps'), [(1.0, 1.0, 1.0, EPS), (2.0, 0.0, 4.0, 0.01), (0.0, 0.5, 0.5, 0.1)]
)
def test_value(beta, gamma, tau, eps):
    student, teacher = logits(4, 3)
    expected = by_loops(student, teacher, beta, gamma, tau, eps)
    assert dist_loss(student, teacher, beta, gamma, tau, eps).item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_those_of_the_authors():
    student, teacher = logits(4, 3)
    assert torch.equal(dist_loss(student, teacher), dist_loss(student, teacher, 1.0, 1.0, 1.0, EPS))


def test_gradcheck():
    student, teacher = logits(4, 3)
    student.requires_grad_()
    for options in ({}, dict(beta=0.0, tau=2.0), dict(gamma=0.0, eps=0.1)):
        assert torch.autograd.gradcheck(lambda s, o=options: dist_loss(s, teacher, **o), (student,))


@pytest.mark.parametrize(('scale', 'tau'), [(10, 1.0), (20, 1.0), (1, 0.1)])
def test_rare_classes_are_no_rounding_noise(scale, tau):
    student, teacher = (scale * x for x in logits(8, 100))
    found = []
    for dtype in (torch.float64, torch.float32):
        leaf = student.detach().to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(dist_loss(leaf, teacher.to(dtype), tau=tau), leaf)
        found.append(gradient.double())
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()


def test_positions_are_samples():
    student, teacher = logits(2, 3, 4)
    torch.testing.assert_close(dist_loss(student, teacher), dist_loss(student.flatten(0, 1), teacher.flatten(0, 1)))


def test_the_order_of_samples_and_classes_and_a_constant_do_not_matter():
    student, teacher = logits(5, 4)
    expected = dist_loss(student, teacher)
    torch.testing.assert_close(dist_loss(student[:, [2, 0, 3, 1]], teacher[:, [2, 0, 3, 1]]), expected)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(dist_loss(student[order], teacher[order]), expected)
    torch.testing.assert_close(dist_loss(student + 3, teacher - torch.rand(5, 1)), expected)


def test_probabilities_need_only_be_proportional():
    # Moved halfway to uniform: not the same probabilities, but correlated ones.
    teacher = torch.rand(5, 4, dtype=torch.float64).softmax(1)
    student = (teacher + 1 / 4) / 2
    assert dist_loss(student.log(), teacher.log()).item() == pytest.approx(0, abs=1e-4)
    assert dist_loss((1 / 2 - teacher).log(), teacher.log()).item() == pytest.approx(4, abs=1e-4)  # the most there is


def test_the_second_part_is_of_the_batch():
    student, teacher = logits(6, 4)
    halves = [dist_loss(s, t) for s, t in zip(student.split(3), teacher.split(3), strict=True)]
    assert abs(sum(halves) / 2 - dist_loss(student, teacher)) > 1e-3
    halves = [dist_loss(s, t, gamma=0.0) for s, t in zip(student.split(3), teacher.split(3), strict=True)]
    torch.testing.assert_close(sum(halves) / 2, dist_loss(student, teacher, gamma=0.0))


def test_a_batch_of_one_has_no_second_part():
    student, teacher = logits(1, 4)
    student.requires_grad_()
    loss, first = dist_loss(student, teacher), dist_loss(student, teacher, gamma=0.0)
    torch.testing.assert_close(loss, first + 1)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (loss, first)))


def test_of_two_classes_the_first_part_is_the_order():
    student, teacher = logits(6, 2)
    student.requires_grad_()
    wrong = (student.argmax(1) != teacher.argmax(1)).double().mean().item()
    loss = dist_loss(student, teacher, gamma=0.0)
    assert loss.item() == pytest.approx(2 * wrong, abs=1e-5)
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-5


@pytest.mark.parametrize('value', [0.0, 2.3])
def test_constant_rows_have_no_gradient(value):
    """As those of a classifier that starts at zero: dividing by eps alone, they would get one of 1e8."""
    student = torch.full((3, 4), value, requires_grad=True)
    loss = dist_loss(student, torch.randn(3, 4))
    loss.backward()
    assert loss.item() == 2
    assert not student.grad.any()
    assert dist_loss(torch.randn(3, 4), student).item() == 2


@pytest.mark.parametrize('both', [False, True])
def test_masked_classes(both):
    student, teacher = logits(5, 4)
    mask = torch.zeros(5, 4, dtype=torch.bool)
    mask[:, 1], mask[0, 2] = True, True
    teacher = teacher.masked_fill(mask, -torch.inf)
    student = student.masked_fill(mask & both, -torch.inf).requires_grad_()
    loss = dist_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(by_loops(student, teacher, 1.0, 1.0, 1.0, EPS), rel=1e-12)
    assert student.grad.isfinite().all()


def test_extreme_logits():
    student = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = dist_loss(student, student.flip(0))
    loss.backward()
    # Rows (1, 0, 0) and (0, 1, 0) against each other: -1/2. Columns -1, -1, and 0 for the class that is never likely.
    assert loss.item() == pytest.approx(1.5 + 1 + 2 / 3)
    assert student.grad.isfinite().all()


def test_one_class_correlates_with_nothing():
    with pytest.raises(ValueError, match=r'^dist_loss: expected logits of two classes or more, got \(4, 1\): '):
        dist_loss(torch.ones(4, 1), torch.ones(4, 1))


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [((4, 10), (4, 100)), ((4, 10), (3, 10)), ((4,), (4,)), ((0, 5), (0, 5)), ((2, 3, 4, 4),) * 2],
)
def test_mismatch(student, teacher):
    with pytest.raises(ValueError, match=r'^dist_loss: expected non-empty logits \(N, K\) or \(N, L, K\) [^\n]*$'):
        dist_loss(torch.ones(student), torch.ones(teacher))
