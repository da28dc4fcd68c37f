import copy
from math import exp

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from kd_plugins.functional import crd_loss
from kd_plugins.losses import CRDLoss

STUDENT, TEACHER = torch.randn(4, 3, 2, 1), torch.randn(4, 7)
LABELS, INDICES = torch.tensor([1, 0, 2, 1]), torch.tensor([4, 0, 19, 7])


def test_it_is_the_function_both_ways_and_the_banks_move_after_it():
    loss = CRDLoss(20, dim=5, negatives=10, tau=0.2, momentum=0.25)
    assert loss.labels.tolist() == [-1] * 20
    loss.labels[2:4] = torch.tensor([1, 0])
    before = copy.deepcopy([loss.student_bank, loss.teacher_bank])
    value = loss(STUDENT, TEACHER, LABELS, indices=INDICES)
    s = normalize(STUDENT.flatten(1) @ loss.student_head.weight.T + loss.student_head.bias)
    t = normalize(TEACHER @ loss.teacher_head.weight.T + loss.teacher_head.bias)
    labels = torch.full((20,), -1)
    labels[[2, 3, 4, 0, 19, 7]] = torch.tensor([1, 0, 1, 0, 2, 1])
    assert torch.equal(loss.labels, labels)
    expected = sum(
        crd_loss(x, bank[INDICES], bank, LABELS, labels, 10, 0.2) for x, bank in ((s, before[1]), (t, before[0]))
    )
    torch.testing.assert_close(value, expected)
    for bank, own, x in zip((loss.student_bank, loss.teacher_bank), before, (s, t), strict=True):
        own[INDICES] = normalize(0.25 * own[INDICES] + 0.75 * x.detach())
        torch.testing.assert_close(bank, own)
        assert not bank.requires_grad
    value.backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    assert len(list(loss.parameters())) == 4


def test_start():
    loss, other = CRDLoss(2000), CRDLoss(2000)
    norms = loss.student_bank.norm(dim=1)
    assert norms.mean().item() == pytest.approx(1, abs=0.01)
    assert norms.std() < 0.1
    assert torch.equal(loss.teacher_bank, other.teacher_bank)  # as in another process
    # Z / M as the authors' code measures it on the first batch.
    scores = normalize(torch.randn(64, 128)) @ loss.student_bank.T / loss.tau
    assert scores.exp().mean().item() == pytest.approx(exp(1 / (2 * 128 * loss.tau**2)), rel=0.03)
    assert (loss.student_bank * loss.teacher_bank).sum(1).abs().max() < 0.5


def test_without_gradients_nothing_is_remembered():
    loss = CRDLoss(20, dim=5)
    before = copy.deepcopy(loss.state_dict())
    with torch.no_grad():
        assert loss(STUDENT, TEACHER, LABELS, indices=INDICES) > 1
    assert all(torch.equal(loss.state_dict()[key], value) for key, value in before.items())


def test_an_image_that_comes_twice_is_remembered_as_it_came_last():
    loss = CRDLoss(20, dim=5, momentum=0.0)
    loss(STUDENT, TEACHER, LABELS[[0, 1, 2, 0]], indices=torch.tensor([4, 0, 19, 4]))
    last = normalize(loss.teacher_head(TEACHER[3:]))[0]
    torch.testing.assert_close(loss.teacher_bank[4], last.detach())


def test_own_entries_alone_are_excluded_where_there_are_no_labels():
    loss = CRDLoss(20, dim=5, exclude='sample')
    assert not loss.needs_labels
    assert CRDLoss.needs_labels
    bank = loss.teacher_bank.clone(), loss.student_bank.clone()
    value = loss(STUDENT, TEACHER, indices=INDICES)
    embeddings = loss._embeddings(STUDENT, TEACHER)
    everyone = torch.arange(20)
    expected = sum(crd_loss(x, y[INDICES], y, INDICES, everyone) for x, y in zip(embeddings, bank, strict=True))
    torch.testing.assert_close(value, expected)


def test_a_bank_is_not_copied():
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            view = function.is_view
            if isinstance(result, torch.Tensor) and not view and result.data_ptr() not in banks:
                self.size = max(self.size, result.numel())
            return result

    loss = CRDLoss(4000, dim=64, negatives=4000)
    banks = [x.data_ptr() for x in (loss.student_bank, loss.teacher_bank)]
    with Largest() as largest:
        loss(STUDENT.requires_grad_(), TEACHER, LABELS, indices=INDICES).backward()
    assert 4 * 4000 <= largest.size < 4000 * 64 / 8  # scores, and no bank or (N, n, D)
    assert [x.data_ptr() for x in (loss.student_bank, loss.teacher_bank)] == banks


def test_a_large_bank_is_compared_in_part():
    # At the default temperature an entry of these few numbers tells less than float32 holds.
    loss, whole = CRDLoss(20, dim=5, negatives=1, tau=1.0), CRDLoss(20, dim=5, negatives=3, tau=1.0)
    with torch.no_grad():
        drawn = {round(loss(STUDENT, TEACHER, LABELS, indices=INDICES).item(), 6) for _ in range(20)}
        alike = {round(whole(STUDENT, TEACHER, LABELS, indices=INDICES).item(), 6) for _ in range(3)}
    assert (len(drawn), len(alike)) == (2, 1)  # every second entry, from either start


def test_the_size_of_saved_banks_is_taken_over():
    saved = CRDLoss(20, dim=5)
    saved(STUDENT, TEACHER, LABELS, indices=INDICES)
    loss = CRDLoss(dim=5)
    with torch.no_grad():  # a dry run, before the training set is known
        assert loss(STUDENT, TEACHER, LABELS, indices=INDICES) == 0
    with pytest.raises(ValueError, match='give num_samples'):
        loss(STUDENT, TEACHER, LABELS, indices=INDICES)
    loss.load_state_dict(saved.state_dict())
    assert loss.num_samples == 20
    assert torch.equal(loss.student_bank, saved.student_bank)
    with pytest.raises(RuntimeError, match='size mismatch for labels'):
        CRDLoss(21, dim=5).load_state_dict(saved.state_dict(), strict=False)
