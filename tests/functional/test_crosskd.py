from math import exp, log

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from kd_plugins.functional import box_distribution_loss, giou_loss, kd_loss, soft_focal_loss


def sigmoid(x):
    return 1 / (1 + exp(-x))


def boxes(count, dtype=torch.float64):
    low = 10 * torch.rand(count, 2, dtype=dtype)
    return torch.cat([low, low + 1 + 5 * torch.rand(count, 2, dtype=dtype)], 1)


CASES = {
    'focal': (soft_focal_loss, lambda: torch.randn(5, 3, dtype=torch.float64)),
    'giou': (giou_loss, lambda: boxes(5)),
    'distributions': (box_distribution_loss, lambda: torch.randn(5, 4, 6, dtype=torch.float64)),
}
each = pytest.mark.parametrize(('function', 'draw'), CASES.values(), ids=CASES)


@pytest.mark.parametrize('beta', [1.0, 2.0])
def test_focal_value(beta):
    student, teacher, weight = 2 * torch.randn(2, 3).double(), 2 * torch.randn(2, 3).double(), torch.tensor([0.5, 2.0])
    expected = 0.0
    for i in range(2):
        for k in range(3):
            p, q = sigmoid(student[i, k].item()), sigmoid(teacher[i, k].item())
            expected -= weight[i].item() * abs(p - q) ** beta * (q * log(p) + (1 - q) * log(1 - p))
    assert soft_focal_loss(student, teacher, weight, beta).item() == pytest.approx(expected)


def test_giou_value():
    student, teacher, weight = boxes(6), boxes(6), torch.rand(6)
    expected = weight.double() @ generalized_box_iou_loss(student, teacher)
    assert giou_loss(student, teacher, weight).item() == pytest.approx(expected.item(), rel=1e-5)
    apart = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]])  # the hull is half empty
    assert giou_loss(*apart, torch.ones(1)).item() == pytest.approx(1.5)


def test_distribution_value():
    student, teacher, weight = torch.randn(2, 4, 6).double(), torch.randn(2, 4, 6).double(), torch.tensor([0.5, 2.0])
    for tau in (1.0, 10.0):
        expected = sum(w * kd_loss(s, t, tau) for s, t, w in zip(student, teacher, weight, strict=True))
        torch.testing.assert_close(box_distribution_loss(student, teacher, weight, tau), expected)


@each
def test_gradcheck(function, draw):
    teacher, weight = draw(), torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: function(s, teacher, weight), (draw().requires_grad_(),))


@each
def test_limits(function, draw):
    student, weight = draw().requires_grad_(), torch.rand(5)
    same = function(student, student.detach(), weight)
    same.backward()
    assert same.item() == pytest.approx(0, abs=1e-9)
    assert student.grad.isfinite().all()
    assert function(student, draw(), torch.zeros(5)) == 0
    empty = student[:0]
    assert function(empty, empty, weight[:0]) == 0


@each
def test_computes_in_float32(function, draw):
    student, teacher, weight = draw().float(), draw().float().requires_grad_(), torch.rand(5)
    expected = function(student, teacher, weight)
    assert expected.dtype == torch.float32
    assert not expected.requires_grad
    with torch.autocast(student.device.type, dtype=torch.bfloat16):
        assert torch.equal(function(student, teacher, weight), expected)
        assert function(student.bfloat16(), teacher.bfloat16(), weight).dtype == torch.float32


@each
def test_other_shapes_end_in_one_line(function, draw):
    for student, teacher, weight in (
        (draw(), draw()[:4], torch.rand(5)),
        (draw(), draw(), torch.rand(4)),
        (draw()[..., None], draw()[..., None], torch.rand(5)),
    ):
        with pytest.raises(ValueError, match=r'loss: expected .* got student .*; give both networks'):
            function(student, teacher, weight)


def test_extreme_logits_and_degenerate_boxes():
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = soft_focal_loss(student, -student.detach(), torch.ones(1))
    assert loss.item() == pytest.approx(2e4)
    bins = torch.tensor([[[1e4, -1e4]] * 4], requires_grad=True)
    assert box_distribution_loss(bins, -bins.detach(), torch.ones(1)).item() == pytest.approx(2e4)
    point = torch.ones(1, 4, requires_grad=True)
    area = giou_loss(point, torch.zeros(1, 4), torch.ones(1))
    (loss + area).backward()
    assert student.grad.isfinite().all()
    assert point.grad.isfinite().all()
    assert 1 <= area.item() <= 2
