"""Focal losses against plain loops in float64."""

import pytest
import torch
from mmcv import ops


def loop_sigmoid_focal(logits, target, gamma, alpha, weight=None):
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        for c, x in enumerate(row):
            p = 1 / (1 + torch.exp(-x))
            loss = (
                -alpha * (1 - p) ** gamma * torch.log(p) if c == label else -(1 - alpha) * p**gamma * torch.log(1 - p)
            )
            rows.append(loss if weight is None or label == len(row) else loss * weight[label])
    return torch.stack(rows).reshape(logits.shape)


def loop_softmax_focal(logits, target, gamma, alpha, weight=None):
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        p = torch.exp(row[label]) / torch.exp(row).sum()
        loss = -alpha * (1 - p) ** gamma * torch.log(p)
        if weight is not None:
            loss = loss * weight[label]
        rows.append(loss if label >= 0 else loss * 0)
    return torch.stack(rows)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.5, 0.6), (0.0, 0.5)])
@pytest.mark.parametrize('name', ['sigmoid', 'softmax'])
def test_focal_loss(name, gamma, alpha, weighted):
    logits = (torch.randn(6, 4, dtype=torch.float64) * 3).requires_grad_()
    # 4: the background, for the sigmoid; -1: ignored, for the softmax.
    target = torch.tensor([0, 3, 1, 2, 2, 4 if name == 'sigmoid' else -1])
    weight = torch.rand(4, dtype=torch.float64) if weighted else None
    function = getattr(ops, f'{name}_focal_loss')
    loop = loop_sigmoid_focal if name == 'sigmoid' else loop_softmax_focal
    expected = loop(logits, target, gamma, alpha, weight)
    output = function(logits, target, gamma, alpha, weight, 'none')
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-14)
    for reduction, total in (('sum', expected.sum()), ('mean', expected.sum() / 6)):
        output = function(logits, target, gamma, alpha, weight, reduction)
        torch.testing.assert_close(output, total)
        gradients = [torch.autograd.grad(y, logits, retain_graph=True)[0] for y in (output, total)]
        torch.testing.assert_close(*gradients)


def test_sigmoid_focal_loss_gradcheck():
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, 1.5, 0.3, None, 'none'), logits)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('name', ['sigmoid', 'softmax'])
def test_focal_loss_of_extreme_logits(name, gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    output = getattr(ops, f'{name}_focal_loss')(logits, torch.tensor([0, 0]), gamma, 0.25, None, 'sum')
    (gradient,) = torch.autograd.grad(output, logits)
    assert torch.isfinite(gradient).all()
    # The first row is right beyond doubt; the second is as wrong as can be, and only log's argument is bounded.
    torch.testing.assert_close(gradient[0], torch.zeros(2))
    assert gradient[1, 0] < -0.2
    if name == 'sigmoid':
        torch.testing.assert_close(output, torch.tensor(0.25 * 200 + 0.75 * 200))


def test_focal_loss_in_half_precision():
    logits = torch.randn(6, 4).half().requires_grad_()
    target = torch.tensor([0, 3, 1, 2, 2, 4])
    output = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    assert output.dtype == torch.float16
    expected = loop_sigmoid_focal(logits.detach().double(), target, 2.0, 0.25)
    torch.testing.assert_close(output.double(), expected, rtol=2e-3, atol=1e-5)


def test_no_samples():
    logits, target = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.long)
    output = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'sum')
    assert output == 0
    output.backward()
    assert logits.grad.shape == (0, 4)
