from math import exp, log

import pytest
import torch

from kd_plugins.functional import crd, crd_loss
from kd_plugins.functional.gram import unit

TAU, NEGATIVES = 0.3, 6


def vectors(n, d=5, **options):
    return unit(torch.randn(n, d, dtype=torch.float64, **options))


@pytest.fixture
def case():
    """Return anchors, positives, a bank, and the classes of the anchors and of the bank's entries."""
    return vectors(4), vectors(4), vectors(9), torch.tensor([0, 1, 1, 7]), torch.tensor([0, 0, 1, -1, 2, 2, 1, 0, -1])


def h(anchor, entry, negatives=NEGATIVES, entries=9):
    z = entries * exp(1 / (2 * len(anchor) * TAU**2))
    e = exp(sum(a * b for a, b in zip(anchor.tolist(), entry.tolist(), strict=True)) / TAU) / z
    return e / (e + negatives / entries)


def by_loops(student, teacher, bank, labels, bank_labels):
    """Compute the paper's objective, one entry at a time."""
    total = 0
    for s, t, label in zip(student, teacher, labels, strict=True):
        noise = [log(1 - h(s, entry)) for entry, other in zip(bank, bank_labels, strict=True) if other != label]
        total -= log(h(s, t)) + NEGATIVES * sum(noise) / len(noise)
    return total / len(student)


@pytest.mark.parametrize('part', [1, 8, 2**20])
def test_value_and_gradient(case, part, monkeypatch):
    monkeypatch.setattr(crd, '_PART', part)
    student, *others = case
    assert crd_loss(student, *others, NEGATIVES, TAU).item() == pytest.approx(by_loops(*case), rel=1e-12)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: crd_loss(s, *others, NEGATIVES, TAU), (student,))


def test_it_is_what_the_authors_estimate_by_drawn_negatives(case):
    student, teacher, bank, labels, bank_labels = case
    draws = 4000
    scores = (student @ bank.mT / TAU).exp() / (9 * exp(1 / (2 * 5 * TAU**2)))
    chances = (labels[:, None] != bank_labels).double()
    drawn = scores.gather(1, chances.multinomial(NEGATIVES * draws, replacement=True)).view(4, draws, NEGATIVES)
    noise = -(NEGATIVES / 9 / (drawn + NEGATIVES / 9)).log().sum(2)
    positives = [-log(h(s, t)) for s, t in zip(student, teacher, strict=True)]
    estimate, error = noise.mean(1).mean().item(), noise.std().item() / (4 * draws) ** 0.5
    expected = crd_loss(*case, NEGATIVES, TAU).item() - sum(positives) / 4
    assert abs(expected - estimate) < 4 * error < 0.1 * expected


def test_a_change_of_the_bank_does_not_change_the_gradient(case):
    student, teacher, bank, *classes = case
    student.requires_grad_()
    expected = torch.autograd.grad(crd_loss(student, teacher, bank, *classes, NEGATIVES, TAU), student)[0]
    loss = crd_loss(student, teacher, bank, *classes, NEGATIVES, TAU)
    bank.zero_()
    assert torch.equal(torch.autograd.grad(loss, student)[0], expected)


def test_limits(case):
    student, teacher, bank, *_ = case
    one_class = torch.zeros(4, dtype=torch.long), torch.zeros(9, dtype=torch.long)
    expected = -sum(log(h(s, t)) for s, t in zip(student, teacher, strict=True)) / 4
    assert crd_loss(student, teacher, bank, *one_class, NEGATIVES, TAU).item() == pytest.approx(expected)
    alone = [x[:1] for x in case]
    assert crd_loss(*alone, NEGATIVES, TAU).item() == pytest.approx(-log(h(student[0], teacher[0])), rel=1e-6)
    # Images that are all alike, in a bank where all others are opposite: the estimate is sure and right.
    same = torch.ones(2, 4, dtype=torch.float64) / 2
    sure = crd_loss(same, same, -same, torch.arange(2), torch.arange(2) + 2, 1, 0.02)
    assert sure.item() == pytest.approx(log(1 + exp(1 / (2 * 4 * 0.02**2) - 50)), rel=1e-6)


@pytest.mark.parametrize('tau', [1e-3, 1e4])
def test_extreme_temperatures(case, tau):
    student, *others = case
    student.requires_grad_()
    loss = crd_loss(student, *others, NEGATIVES, tau)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_invariances(case):
    student, teacher, bank, labels, bank_labels = case
    rotation, expected = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0], crd_loss(*case, NEGATIVES, TAU)
    turned = [x @ rotation for x in (student, teacher, bank)]
    torch.testing.assert_close(crd_loss(*turned, labels, bank_labels, NEGATIVES, TAU), expected)
    order, images = torch.randperm(9), torch.tensor([2, 0, 3, 1])
    moved = student[images], teacher[images], bank[order], labels[images], bank_labels[order]
    torch.testing.assert_close(crd_loss(*moved, NEGATIVES, TAU), expected)
    twice = student, teacher, bank.repeat(2, 1), labels, bank_labels.repeat(2)
    torch.testing.assert_close(crd_loss(*twice, NEGATIVES, TAU), expected)


def test_mismatch(case):
    student, teacher, bank, labels, bank_labels = case
    with pytest.raises(ValueError, match=r'got \(4, 5\), \(9, 5\), \(4,\), \(8,\); give a class'):
        crd_loss(student, teacher, bank, labels, bank_labels[1:])
    with pytest.raises(ValueError, match='give embeddings'):
        crd_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 4), bank, labels, bank_labels)
    with pytest.raises(ValueError, match='the same number of channels'):
        crd_loss(torch.ones(4, 5), torch.ones(4, 6), bank, labels, bank_labels)
