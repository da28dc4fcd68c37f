from math import exp, log

import pytest
import torch

from kd_plugins.functional import nkd_loss

LABELS = torch.tensor([0, 3, 4])


def logits(*size):
    return [torch.randn(size, dtype=torch.float64) for _ in range(2)]


def by_loops(student, teacher, labels, gamma, tau):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p_s, p_t = (exp(x[y]) / sum(map(exp, x)) for x in (s, t))
        total -= p_t * log(p_s)
        others = [k for k in range(len(s)) if k != y]
        rest_s, rest_t = (sum(exp(x[k] / tau) for k in others) for x in (s, t))
        for k in others:
            if q_t := exp(t[k] / tau) / rest_t:
                total -= gamma * tau**2 * q_t * log(exp(s[k] / tau) / rest_s)
    return total / len(student)


@pytest.mark.parametrize(('gamma', 'tau'), [(1.5, 1.0), (3.5, 3.0), (0.0, 0.5)])
def test_value(gamma, tau):
    student, teacher = logits(3, 5)
    expected = by_loops(student, teacher, LABELS, gamma, tau)
    assert nkd_loss(student, teacher, LABELS, gamma, tau).item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_those_of_the_authors():
    student, teacher = logits(3, 5)
    assert torch.equal(nkd_loss(student, teacher, LABELS), nkd_loss(student, teacher, LABELS, 1.5, 1.0))


def test_gradcheck():
    student, teacher = logits(3, 5)
    assert torch.autograd.gradcheck(lambda s: nkd_loss(s, teacher, LABELS, tau=2.0), (student.requires_grad_(),))


def test_the_order_of_the_classes_and_a_constant_do_not_matter():
    student, teacher = logits(3, 5)
    order = torch.tensor([2, 4, 0, 1, 3])
    expected = nkd_loss(student, teacher, LABELS)
    torch.testing.assert_close(nkd_loss(student[:, order], teacher[:, order], order.argsort()[LABELS]), expected)
    torch.testing.assert_close(nkd_loss(student + 7, teacher - 3, LABELS), expected)


@pytest.mark.parametrize('masked', ['', 'teacher', 'both'])
def test_of_two_classes_there_is_no_part_of_the_others(masked):
    student, teacher = logits(3, 2)
    labels = torch.tensor([0, 1, 0])
    mask = torch.tensor([[0, 0], [0, 0], [0, 1]]).bool()
    teacher = teacher.masked_fill(mask & bool(masked), -torch.inf)
    student = student.masked_fill(mask & (masked == 'both'), -torch.inf).requires_grad_()
    loss = nkd_loss(student, teacher, labels)
    assert torch.equal(loss, nkd_loss(student, teacher, labels, gamma=0.0))
    p_s, p_t = (x.softmax(1).gather(1, labels[:, None])[:, 0] for x in (student, teacher))
    torch.testing.assert_close(loss, -(p_t * p_s.log()).mean())
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    # In the label's logit: -p_T,y (1 - p_S,y) / N.
    torch.testing.assert_close(gradient.gather(1, labels[:, None])[:, 0], (-p_t * (1 - p_s) / 3).detach())


@pytest.mark.parametrize('both', [False, True])
def test_masked_classes(both):
    mask = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    student, teacher = logits(3, 5)
    teacher = teacher.masked_fill(mask, -torch.inf)
    student = (student.masked_fill(mask, -torch.inf) if both else student).requires_grad_()
    loss = nkd_loss(student, teacher, LABELS, tau=2.0)
    assert loss.item() == pytest.approx(by_loops(student, teacher, LABELS, 1.5, 2.0), rel=1e-12)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_extreme_logits():
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    loss = nkd_loss(student, -student, torch.tensor([0]))
    loss.backward()
    # p_T,y is 1 and log p_S,y is -2e4; q_T is (0, 1) and log q_S (0, -1e4).
    assert loss.item() == pytest.approx(2e4 + 1.5e4)
    torch.testing.assert_close(student.grad, torch.tensor([[-1.0, 1 + 1.5, -1.5]]))


def test_equal_logits_are_where_it_is_least():
    student, teacher = logits(3, 5)
    equal = teacher.clone().requires_grad_()
    nkd_loss(equal, teacher, LABELS).backward()
    others = torch.ones(3, 5).scatter_(1, LABELS[:, None], 0).bool()
    probabilities = teacher.softmax(1)
    label = probabilities.gather(1, LABELS[:, None])
    # The part of the other classes has no gradient there; that of the label pushes its probability to 1.
    torch.testing.assert_close(equal.grad[others], (probabilities * label / 3)[others])
    assert nkd_loss(student, teacher, LABELS, gamma=100.0) > nkd_loss(teacher, teacher, LABELS, gamma=100.0)


def test_constant_logits():
    loss = nkd_loss(torch.full((2, 4), 3.0), torch.zeros(2, 4), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(log(4) / 4 + 1.5 * log(3))


@pytest.mark.parametrize(
    ('student', 'teacher', 'labels', 'say'),
    [
        ((3, 5), (3, 6), LABELS, 'give both networks the same images'),
        ((3, 2, 5), (3, 2, 5), LABELS, 'expected non-empty logits (N, K) of the same shape'),
        ((3, 1), (3, 1), LABELS * 0, 'expected logits of two classes or more'),
        ((3, 5), (3, 5), torch.eye(5)[LABELS], 'expected labels (3,) of type int64'),
        ((3, 5), (3, 5), LABELS + 1, 'got labels from 1 to 5'),
    ],
)
def test_mismatch(student, teacher, labels, say):
    with pytest.raises(ValueError, match=r'^nkd_loss: [^\n]*$') as error:
        nkd_loss(torch.ones(student), torch.ones(teacher), labels)
    assert say in str(error.value)
