from math import exp, log

import pytest
import torch
from torch.nn.functional import kl_div

from kd_plugins.functional import dkd_loss, kd_loss

LABELS = torch.tensor([0, 3, 4])


def logits(*size, **options):
    return [torch.randn(size, dtype=torch.float64, **options) for _ in range(2)]


def by_loops(student, teacher, labels, alpha, beta, tau):
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        s, t = ([exp(x / tau) for x in row] for row in (s, t))
        b_s, b_t = s[y] / sum(s), t[y] / sum(t)
        total += alpha * (b_t * log(b_t / b_s) + (1 - b_t) * log((1 - b_t) / (1 - b_s)))
        rest_s, rest_t = sum(s) - s[y], sum(t) - t[y]
        for k in range(len(s)):
            if k != y and t[k]:
                q_t, q_s = t[k] / rest_t, s[k] / rest_s
                total += beta * q_t * log(q_t / q_s)
    return tau**2 * total / len(student)


@pytest.mark.parametrize(('alpha', 'beta', 'tau'), [(1.0, 8.0, 4.0), (0.5, 0.0, 1.0), (0.0, 2.0, 0.5)])
def test_value(alpha, beta, tau):
    student, teacher = logits(3, 5)
    expected = by_loops(student, teacher, LABELS, alpha, beta, tau)
    assert dkd_loss(student, teacher, LABELS, alpha, beta, tau).item() == pytest.approx(expected, rel=1e-12)


def test_defaults_are_those_of_the_authors():
    student, teacher = logits(3, 5)
    assert torch.equal(dkd_loss(student, teacher, LABELS), dkd_loss(student, teacher, LABELS, 1.0, 8.0, 4.0))


def test_an_image_at_a_time_it_is_the_plain_divergence():
    student, teacher = logits(1, 5)
    for y in range(5):
        rest = 1 - (teacher / 2).softmax(1)[0, y].item()
        torch.testing.assert_close(
            dkd_loss(student, teacher, torch.tensor([y]), 1.0, rest, 2.0), kd_loss(student, teacher, 2.0)
        )


def test_gradcheck():
    student, teacher = logits(3, 5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dkd_loss(s, teacher, LABELS, tau=3.0), (student,))


def test_the_order_of_the_classes_and_a_constant_do_not_matter():
    student, teacher = logits(3, 5)
    order = torch.tensor([2, 4, 0, 1, 3])
    expected = dkd_loss(student, teacher, LABELS)
    torch.testing.assert_close(dkd_loss(student[:, order], teacher[:, order], order.argsort()[LABELS]), expected)
    torch.testing.assert_close(dkd_loss(student + 7, teacher - 3, LABELS), expected)


@pytest.mark.parametrize('masked', [False, True])
def test_of_two_classes_there_is_no_part_of_the_others(masked):
    student, teacher = logits(3, 2)
    student.requires_grad_()
    labels = torch.tensor([0, 1, 0])
    if masked:  # the class that is not the label, in the last image, by the teacher or by both
        teacher = teacher.masked_fill(torch.tensor([[0, 0], [0, 0], [0, 1]]).bool(), -torch.inf)
    loss, alone = dkd_loss(student, teacher, labels), dkd_loss(student, teacher, labels, beta=0.0)
    assert torch.equal(loss, alone)
    assert torch.equal(torch.autograd.grad(dkd_loss(student, teacher, labels, alpha=0.0), student)[0], 0 * student)
    # In the logits: tau (b_S - b_T) / N.
    expected = 4 / 3 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)).detach()
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected)


def test_two_classes_of_which_both_networks_mask_one():
    student = torch.tensor([[1.0, -torch.inf], [2.0, 3.0]], requires_grad=True)
    loss = dkd_loss(student, student.detach() * 2, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(dkd_loss(student[1:], 2 * student[1:], torch.tensor([0])).item() / 2)
    assert torch.equal(student.grad[0], torch.zeros(2))
    assert student.grad[1].isfinite().all()


@pytest.mark.parametrize('both', [False, True])
def test_masked_classes(both):
    mask = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    student, teacher = logits(3, 5)
    teacher = teacher.masked_fill(mask, -torch.inf)
    student = (student.masked_fill(mask, -torch.inf) if both else student).requires_grad_()
    loss = dkd_loss(student, teacher, LABELS, tau=2.0)
    assert loss.item() == pytest.approx(by_loops(student, teacher, LABELS, 1.0, 8.0, 2.0), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    assert bool(gradient[mask].any()) != both


def test_a_label_that_the_teacher_masks():
    student, teacher = torch.zeros(1, 3), torch.tensor([[-torch.inf, 0.0, 0.0]])
    assert dkd_loss(student, teacher, torch.tensor([0]), tau=1.0).item() == pytest.approx(log(3 / 2))


def test_extreme_logits():
    student = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = dkd_loss(student, -student, torch.tensor([0]), tau=1.0)
    loss.backward()
    # b_S is (1, e^-1e4), b_T (0, 1); q_S is (1, 0), q_T (0, 1).
    assert loss.item() == pytest.approx(1e4 + 8 * 1e4)
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, 8.0 - 1.0, -8.0]]))


def test_equal_and_constant_logits():
    student = torch.randn(3, 5, requires_grad=True)
    loss = dkd_loss(student, student, LABELS)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() < 1e-6
    assert dkd_loss(torch.full((3, 5), 2.0), torch.zeros(3, 5), LABELS).item() == 0


def test_it_is_the_mean_over_the_images():
    student, teacher = logits(3, 5)
    alone = [dkd_loss(s[None], t[None], y[None]) for s, t, y in zip(student, teacher, LABELS, strict=True)]
    torch.testing.assert_close(dkd_loss(student, teacher, LABELS), sum(alone) / 3)


def test_the_authors_form():
    student, teacher = logits(3, 5)
    label = torch.eye(5, dtype=torch.float64)[LABELS]
    two = [
        torch.stack([((x / 4).softmax(1) * label).sum(1), ((x / 4).softmax(1) * (1 - label)).sum(1)], 1)
        for x in (student, teacher)
    ]
    others = [(x / 4 - 1000 * label) for x in (student, teacher)]
    expected = kl_div(two[0].log(), two[1], reduction='batchmean') + 8 * kl_div(
        others[0].log_softmax(1), others[1].softmax(1), reduction='batchmean'
    )
    torch.testing.assert_close(dkd_loss(student, teacher, LABELS), 16 * expected)


@pytest.mark.parametrize(
    ('student', 'teacher', 'labels', 'say'),
    [
        ((3, 5), (3, 6), LABELS, 'student (3, 5) and teacher (3, 6); give both networks the same images'),
        ((3, 2, 5), (3, 2, 5), LABELS, 'expected non-empty logits (N, K) of the same shape'),
        ((3, 5, 2, 2), (3, 5, 2, 2), LABELS, 'expected non-empty logits (N, K) of the same shape'),
        ((3, 1), (3, 1), LABELS * 0, 'expected logits of two classes or more, got (3, 1)'),
        ((3, 5), (3, 5), LABELS[:2], 'expected labels (3,) of type int64, one for each row of logits, got (2,)'),
        (
            (3, 5),
            (3, 5),
            torch.eye(5)[LABELS],
            'expected labels (3,) of type int64, one for each row of logits, got (3, 5) of type float32',
        ),
        ((3, 5), (3, 5), LABELS.float(), 'of type float32'),
        ((3, 5), (3, 5), LABELS + 1, 'labels from 0 to 4 for logits of 5 classes, got labels from 1 to 5'),
        ((3, 5), (3, 5), LABELS - 1, 'got labels from -1 to 3'),
    ],
)
def test_mismatch(student, teacher, labels, say):
    with pytest.raises(ValueError) as error:
        dkd_loss(torch.ones(student), torch.ones(teacher), labels)
    message = str(error.value)
    assert say in message
    assert message.startswith('dkd_loss: ')
    assert '\n' not in message
