"""RoIAlign and RoIPool against plain loops in float64."""

import math

import pytest
import torch
from mmcv import ops

from kd_plugins.compat.ops.roi import roi_pool_forward
from kd_plugins.errors import UserError

ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 14.7, 9.4],
        [1, -3.0, -2.0, 6.2, 25.0],  # beyond the border
        [1, 4.0, 4.0, 4.3, 4.2],  # smaller than a pixel
        [0, 30.0, 30.0, 40.0, 40.0],  # outside
    ],
    dtype=torch.float64,
)


def bilinear(plane: torch.Tensor, y: float, x: float) -> torch.Tensor:
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(())
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, h = y - top, x - left
    upper = (1 - h) * plane[top, left] + h * plane[top, right]
    lower = (1 - h) * plane[bottom, left] + h * plane[bottom, right]
    return (1 - v) * upper + v * lower


def loop_roi_align(feature, rois, size, scale, ratio, aligned):
    bins = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0) for c in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        bin_height, bin_width = height / size[0], width / size[1]
        rows = ratio or math.ceil(bin_height)
        columns = ratio or math.ceil(bin_width)
        for plane in feature[int(image)]:
            for i in range(size[0]):
                for j in range(size[1]):
                    samples = [
                        bilinear(
                            plane, y1 + (i + (r + 0.5) / rows) * bin_height, x1 + (j + (c + 0.5) / columns) * bin_width
                        )
                        for r in range(rows)
                        for c in range(columns)
                    ]
                    bins.append(torch.stack(samples).mean())
    return torch.stack(bins).reshape(len(rois), feature.shape[1], *size)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 3])
def test_roi_align(ratio, aligned):
    feature = torch.randn(2, 2, 7, 9, dtype=torch.float64, requires_grad=True)
    expected = loop_roi_align(feature, ROIS, (2, 3), 0.5, ratio, aligned)
    output = ops.roi_align(feature, ROIS, (2, 3), 0.5, ratio, 'avg', aligned)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    gradients = [torch.autograd.grad(y, feature, direction)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_roi_align_gradcheck():
    feature = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.roi_align(x, ROIS[:2], 2, 0.4, 0), feature)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float32, 1e-5)])
def test_roi_align_types(dtype, tolerance):
    feature = torch.rand(2, 2, 7, 9).to(dtype).requires_grad_()
    rois = ROIS.to(dtype)
    output = ops.roi_align(feature, rois, 2, 0.5)
    output.sum().backward()
    reference = feature.detach().double().requires_grad_()
    expected = ops.roi_align(reference, rois.double(), 2, 0.5)
    expected.sum().backward()
    assert output.dtype == feature.grad.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(feature.grad.double(), reference.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('place', [1, 4])
def test_a_roi_that_is_no_number_does_not_end_the_process(value, place):
    feature, rois = torch.randn(2, 2, 7, 9, requires_grad=True), ROIS.float()
    expected = ops.roi_align(feature, rois, 2, 0.5, 0)
    rois[1, place] = value
    output = ops.roi_align(feature, rois, 2, 0.5, 0)
    assert output[1].isnan().all()
    torch.testing.assert_close(output[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=0)
    output.nansum().backward()
    assert feature.grad.isfinite().all()


def test_roi_align_has_no_maximum():
    with pytest.raises(UserError, match="pool_mode='max'"):
        ops.roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2, 1.0, 0, 'max')


def loop_roi_pool(feature, rois, size, scale):
    height, width = feature.shape[2:]
    output = feature.new_zeros(len(rois), feature.shape[1], *size)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        for i in range(size[0]):
            for j in range(size[1]):
                top = max(0, math.floor(y1 + i * (y2 - y1) / size[0]))
                bottom = min(height, math.ceil(y1 + (i + 1) * (y2 - y1) / size[0]))
                left = max(0, math.floor(x1 + j * (x2 - x1) / size[1]))
                right = min(width, math.ceil(x1 + (j + 1) * (x2 - x1) / size[1]))
                if top < bottom and left < right:
                    output[k, :, i, j] = feature[int(image), :, top:bottom, left:right].amax((1, 2))
    return output


@pytest.mark.parametrize('scale', [0.5, 0.3])
def test_roi_pool(scale):
    malformed = torch.tensor([[0, 9.6, 2.0, 8.5, 6.0]], dtype=torch.float64)
    rois = torch.cat([ROIS, malformed])
    feature = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    expected = loop_roi_pool(feature, rois, (2, 3), scale)
    output = ops.roi_pool(feature, rois, (2, 3), scale)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert (output[3:] == 0).all()
    direction = torch.randn_like(output)
    gradients = [torch.autograd.grad(y, feature, direction)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


def test_roi_pool_argmax_is_the_cell_in_its_plane():
    feature, rois = torch.randn(2, 3, 7, 9), ROIS.float()
    output, argmax = torch.zeros(4, 3, 2, 3), torch.zeros(4, 3, 2, 3, dtype=torch.int)
    roi_pool_forward(feature, rois, output, argmax, pooled_height=2, pooled_width=3, spatial_scale=0.5)
    assert (argmax[3] == -1).all()
    planes = feature[rois[:, 0].long()].flatten(2)
    found = planes.gather(2, argmax.clamp(min=0).long().flatten(2)).reshape(output.shape)
    assert (argmax >= 0)[:3].any()
    torch.testing.assert_close(torch.where(argmax >= 0, found, 0), output, rtol=0, atol=0)


@pytest.mark.parametrize('pool', [ops.roi_align, ops.roi_pool])
def test_no_rois(pool):
    feature = torch.randn(2, 3, 7, 9, requires_grad=True)
    output = pool(feature, torch.zeros(0, 5), 2, 0.5)
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert (feature.grad == 0).all()
