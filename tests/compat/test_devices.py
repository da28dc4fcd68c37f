"""mmcv's operators on the device under test, beside float64 on a CPU."""

import pytest
import torch
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction


def roi_align(x, boxes):
    return ops.roi_align(x, boxes, (3, 2), 0.5, 0, 'avg', True)


def roi_pool(x, boxes):
    return ops.roi_pool(x, boxes, (2, 3), 0.5)


def deform_conv(x, offset, weight):
    return ops.deform_conv2d(x, offset, weight, 1, 1, 1, 1, 2)


def modulated_deform_conv(x, offset, mask, weight, bias):
    return ops.modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1, 1, 1, 2)


def deform_conv_of_a_diverged_run(x, offset, weight):
    return ops.deform_conv2d(x, offset, weight, 1, 1, 1, 1, 2).nan_to_num()


def roi_align_of_a_diverged_run(x, boxes):
    return ops.roi_align(x, boxes, 2, 0.5, 0).nan_to_num()


def deformable_attention(value, locations, weights):
    shapes, starts = (torch.tensor(x, device=value.device) for x in ([[4, 5], [2, 3]], [0, 20]))
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def masked_conv(x, weight, bias):
    return ops.masked_conv2d(x, x[:, 0] > 0, weight, bias, 1) + 0 * x.sum()  # it has no backward pass


def sigmoid_focal_loss(x, target):
    return ops.sigmoid_focal_loss(x, target.flatten().long() % 5, 2.0, 0.25, None, 'none')


def softmax_focal_loss(x, target):
    # For 'none', mmcv has no backward pass.
    return ops.softmax_focal_loss(x, target.flatten().long() % 4, 2.0, 0.25, None, 'sum')


def drawn(*shapes):
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


MAP, BOXES = (2, 4, 9, 8), torch.tensor([[0, 1.2, 1, 11, 13.5], [1, 0, 3.1, 15.5, 17], [0, 4, 4.3, 6.7, 9]]).double()
OPERATORS = [
    (roi_align, lambda: [*drawn(MAP), BOXES]),
    (roi_pool, lambda: [*drawn(MAP), BOXES]),
    (deform_conv, lambda: drawn(MAP, (2, 36, 9, 8), (6, 4, 3, 3))),
    (modulated_deform_conv, lambda: drawn(MAP, (2, 36, 9, 8), (2, 18, 9, 8), (6, 4, 3, 3), (6,))),
    # At whole numbers, many points lie at -1, where mmcv has no gradient.
    (deform_conv, lambda: [x.round() if x.shape[1] == 36 else x for x in drawn(MAP, (2, 36, 9, 8), (6, 4, 3, 3))]),
    (
        deform_conv_of_a_diverged_run,
        lambda: [
            x.masked_fill(x > 2, torch.nan) if x.shape[1] == 36 else x for x in drawn(MAP, (2, 36, 9, 8), (6, 4, 3, 3))
        ],
    ),
    (roi_align_of_a_diverged_run, lambda: [*drawn(MAP), BOXES.masked_fill(BOXES == 11, torch.nan)]),
    (
        deformable_attention,
        lambda: [*drawn((2, 26, 2, 3)), torch.rand(2, 3, 2, 2, 2, 2).double() * 1.4 - 0.2, *drawn((2, 3, 2, 2, 2))],
    ),
    (masked_conv, lambda: drawn((1, 4, 9, 8), (6, 4, 3, 3), (6,))),
    (sigmoid_focal_loss, lambda: [*drawn((7, 4)), torch.arange(7.0)]),
    (softmax_focal_loss, lambda: [*drawn((7, 4)), torch.arange(7.0)]),
]


@pytest.fixture
def usual_algorithms():
    """torchvision has another RoIAlign for deterministic ones: compiled for two minutes, and of another NaN."""
    asked, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(asked, warn_only=warned)


@pytest.mark.usefixtures('usual_algorithms')
@pytest.mark.parametrize(('operator', 'inputs'), OPERATORS, ids=lambda x: getattr(x, '__name__', ''))
def test_value_and_gradients_are_those_of_float64_on_a_cpu(operator, inputs, device):
    tensors = inputs()

    def run(place, dtype):
        leaves = [x.to(place, dtype, copy=True).requires_grad_() for x in tensors]
        out = operator(*leaves)
        out.square().sum().backward()
        assert out.device.type == torch.device(place).type
        return [x.detach().cpu().double() for x in (out, *(leaf.grad for leaf in leaves if leaf.grad is not None))]

    for found, expected in zip(run(device, torch.float32), run('cpu', torch.float64), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_boxes_that_stay_are_those_of_a_cpu(device):
    corners = 20 * torch.rand(60, 2)
    boxes, scores = torch.cat([corners, corners + 1 + 9 * torch.rand(60, 2)], 1), torch.rand(60)
    for suppress in (ops.nms, lambda *x: ops.soft_nms(*x, sigma=0.3, min_score=0.05)):
        (dets, kept), (expected, indices) = (
            suppress(boxes.to(place), scores.to(place), 0.5) for place in (device, 'cpu')
        )
        assert 1 < len(indices) < 60
        assert torch.equal(kept.cpu(), indices)
        torch.testing.assert_close(dets.cpu(), expected)
