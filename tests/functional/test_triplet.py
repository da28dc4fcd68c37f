"""The batch-hard triplet loss against loops."""

import math

import pytest
import torch
from torch import Tensor

from kd_plugins.functional import batch_hard_triplet_loss


def loops(x: Tensor, labels: Tensor, margin: float | None) -> Tensor:
    losses = []
    for a in range(len(x)):
        distances = [(x[a] - x[j]).pow(2).sum().sqrt() for j in range(len(x))]
        positive = [d for j, d in enumerate(distances) if labels[j] == labels[a] and j != a]
        negative = [d for j, d in enumerate(distances) if labels[j] != labels[a]]
        if positive and negative:
            gap = max(positive) - min(negative)
            losses.append(torch.log1p(gap.exp()) if margin is None else (gap + margin).clamp(min=0))
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize('margin', [0.3, 0.0, None])
@pytest.mark.parametrize('labels', [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 1], [3, 1, 1, 1, 1, 1]])
def test_value_and_gradient_are_those_of_loops(labels: list[int], margin: float | None) -> None:
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(labels)
    own, expected = batch_hard_triplet_loss(x, labels, margin), loops(x, labels, margin)
    assert own.item() == pytest.approx(expected.item(), rel=1e-12)
    own_grad, expected_grad = (torch.autograd.grad(loss, x)[0] for loss in (own, expected))
    torch.testing.assert_close(own_grad, expected_grad)


def test_gradcheck() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: batch_hard_triplet_loss(y, torch.tensor([0, 0, 1, 1, 2, 2]), None), x)


@pytest.mark.parametrize('labels', [[0, 1, 2, 3], [5, 5, 5, 5]])
def test_without_a_triplet_the_loss_and_its_gradient_are_zero(labels: list[int]) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    loss = batch_hard_triplet_loss(x, torch.tensor(labels), None)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, x)[0].abs().max() == 0


def test_equal_embeddings_give_the_margin_and_a_finite_gradient() -> None:
    x = torch.ones(6, 4, requires_grad=True)
    loss = batch_hard_triplet_loss(x, torch.tensor([0, 0, 1, 1, 2, 2]), 0.3)
    assert loss.item() == pytest.approx(0.3)
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_near_embeddings_far_from_the_origin_keep_their_distances() -> None:
    x = 1000 + torch.tensor([[0.0], [1.0], [0.5], [3.0]])
    loss = batch_hard_triplet_loss(x.repeat(1, 2048) / math.sqrt(2048), torch.tensor([0, 0, 1, 1]), 0.3)
    assert loss.item() == pytest.approx((2 * (1 + 0.3 - 0.5) + 2.5 - 0.5 + 0.3 + 2.5 - 2 + 0.3) / 4, rel=1e-3)


def test_half_precision_computes_in_float32() -> None:
    x, labels = torch.randn(16, 64), torch.arange(16) // 4
    with torch.autocast(x.device.type, torch.bfloat16):
        loss = batch_hard_triplet_loss(x.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(batch_hard_triplet_loss(x.bfloat16().float(), labels).item(), rel=1e-6)


def test_mistakes_are_reported() -> None:
    with pytest.raises(ValueError, match=r'embeddings \(N, D\) and labels \(N,\)'):
        batch_hard_triplet_loss(torch.ones(2, 3, 4, 4), torch.zeros(2))
    with pytest.raises(ValueError, match='margin'):
        batch_hard_triplet_loss(torch.ones(2, 3), torch.zeros(2), -1.0)
