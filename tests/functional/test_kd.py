from math import exp, log
from statistics import mean, stdev

import pytest
import torch

from kd_plugins.functional import gram, kd_loss


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


def standardised(rows):
    """Standardise logits (N, K) over the classes that are not masked, one row at a time."""
    result = []
    for row in rows.tolist():
        kept = [x for x in row if x > -torch.inf]
        m, deviation = mean(kept), stdev(kept)
        result.append([(x - m) / deviation for x in row])
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize('masks', [(False, False), (False, True), (True, True)])
def test_standardised_value(masks):
    mask = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], dtype=torch.bool)
    student, teacher = (
        torch.randn(3, 5, dtype=torch.float64).masked_fill(mask & masked, -torch.inf) for masked in masks
    )
    expected = by_loops(standardised(student), standardised(teacher), 2.0)
    student.requires_grad_()
    loss = kd_loss(student, teacher, 2.0, standardize=True)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert student.grad.isfinite().all()
    torch.testing.assert_close(student.grad.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_standardised_gradcheck():
    student, teacher = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    for masked in (mask & False, mask):

        def loss(s, masked=masked):
            return kd_loss(*(x.masked_fill(masked, -torch.inf) for x in (s, teacher)), 1.5, standardize=True)

        assert torch.autograd.gradcheck(loss, (student.clone().requires_grad_(),))


def test_standardised_logits_have_no_size():
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    expected = kd_loss(student, teacher, standardize=True)
    assert expected > 0.01
    size = torch.rand(2, 3, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(kd_loss(3 + size * student, size * teacher - 7, standardize=True), expected)
    torch.testing.assert_close(kd_loss(1e4 * student, 1e-4 * teacher, standardize=True), expected)
    assert kd_loss(student, 5 * student + 1, standardize=True).item() == pytest.approx(0, abs=1e-15)
    flat = kd_loss(student.flatten(0, 1), teacher.flatten(0, 1), standardize=True)
    torch.testing.assert_close(flat, expected)


def test_two_standardised_logits_have_an_order_only():
    student = torch.tensor([[0.0, 3.0], [2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.1], [1.0, 5.0]], dtype=torch.float64)
    loss = kd_loss(student, teacher, 1.0, standardize=True)
    loss.backward()
    # 1/sqrt 2 and -1/sqrt 2; of the second image the other way round.
    p = 1 / (1 + exp(-(2**0.5)))
    assert loss.item() == pytest.approx((2 * p - 1) * log(p / (1 - p)) / 2)
    assert student.grad.abs().max() < 1e-15


@pytest.mark.parametrize('value', [0.0, 0.1, 2.3, 1e4])
def test_equal_logits_of_an_image_have_nothing_to_standardise(value):
    student = torch.tensor([[value] * 7, [*range(7)]], requires_grad=True)
    loss = kd_loss(student, torch.arange(14.0).view(2, 7) ** 2, 1.0, standardize=True)
    loss.backward()
    assert loss.isfinite()
    assert not student.grad[0].any()
    assert student.grad[1].any()
    assert student.grad.isfinite().all()
    assert kd_loss(student.detach(), torch.full((2, 7), value), standardize=True).isfinite()


def by_classes(student, teacher, tau):
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        p, q = 1 / (1 + exp(-t / tau)), 1 / (1 + exp(-s / tau))
        total += p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))
    return tau**2 * total / student[..., 0].numel()


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('shape', [(3, 5), (2, 3, 4), (4, 1)])
def test_independent_classes(shape, tau):
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    loss = kd_loss(student.requires_grad_(), teacher, tau, use_sigmoid=True)
    assert loss.item() == pytest.approx(by_classes(student.detach(), teacher, tau), rel=1e-12)
    loss.backward()
    expected = tau * ((student / tau).sigmoid() - (teacher / tau).sigmoid()) / student[..., 0].numel()
    torch.testing.assert_close(student.grad, expected.detach())


def test_independent_classes_that_the_teacher_masks_are_a_sure_no():
    student = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    loss = kd_loss(student, torch.tensor([[1.0, -torch.inf]], dtype=torch.float64), 1.0, use_sigmoid=True)
    assert loss.item() == pytest.approx(log(1 + exp(2)))
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0, 1 / (1 + exp(-2))]], dtype=torch.float64))


@pytest.mark.parametrize('shape', [(4, 1), (2, 3, 1)])
def test_one_class_is_no_softmax(shape):
    with pytest.raises(
        ValueError, match=r'^kd_loss: expected logits of two classes or more, got .*use_sigmoid=True\)$'
    ):
        kd_loss(torch.ones(shape), torch.ones(shape))


def test_independent_classes_are_not_standardised():
    with pytest.raises(ValueError, match='kd_loss: standardize=True compares the classes of a softmax'):
        kd_loss(torch.ones(2, 3), torch.ones(2, 3), standardize=True, use_sigmoid=True)


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [((4, 10), (4, 100)), ((4, 10), (3, 10)), ((4,), (4,)), ((0, 5), (0, 5)), ((4, 10, 2, 2),) * 2],
)
def test_mismatch(student, teacher):
    with pytest.raises(ValueError) as error:
        kd_loss(torch.ones(student), torch.ones(teacher))
    message = str(error.value)
    assert f'student {student}' in message
    assert f'teacher {teacher}' in message
    assert ('the same classes' if student != teacher else 'tap the layer that predicts the classes') in message
    assert '\n' not in message


def test_parts_of_many_rows_are_the_whole(monkeypatch):
    student, teacher = torch.randn(2, 7, 5)
    found = []
    for size in (2**16, 10):  # of the parts, the last has one row
        monkeypatch.setattr(gram, '_PART', size)
        value = kd_loss(student.requires_grad_(), teacher)
        found.append((value.detach(), torch.autograd.grad(value, student)[0]))
    torch.testing.assert_close(*found)
