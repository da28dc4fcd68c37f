"""The stand-in operators against their definitions, in plain loops and float64."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kd_plugins  # noqa: F401
from kd_plugins.compat import check_operators, mmcv_ext, provide_mmcv_ops
from kd_plugins.errors import UserError

ops = pytest.importorskip('mmcv.ops')
if not importlib.util.find_spec('mmcv._ext').origin.endswith('mmcv_ext.py'):
    pytest.skip('mmcv is compiled here', allow_module_level=True)

REPOSITORY = Path(__file__).parents[2]


def run(code: str, *path: Path) -> str:
    sys_path = [str(p) for p in (*path, REPOSITORY)]
    return subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path[:0] = {sys_path}\n{code}'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


# -- finding the module ----------------------------------------------------------------------------------------------


def test_import_is_cheap():
    code = "import kd_plugins; print([m for m in ('torch', 'mmcv', 'mmengine', 'numpy') if m in sys.modules])"
    assert run(code) == '[]'


def test_spec_is_real_and_the_finder_stands_last_once():
    provide_mmcv_ops()
    finders = [f for f in sys.meta_path if getattr(f, '__name__', '') == '_MMCVOpsFinder']
    assert len(finders) == 1
    code = 'import kd_plugins; print(sys.meta_path[-1].__name__)'
    assert run(code) == '_MMCVOpsFinder'
    spec = importlib.util.find_spec('mmcv._ext')
    assert spec.origin == mmcv_ext.__file__
    assert finders[0].find_spec('mmcv._other') is None
    assert finders[0].find_spec('_ext') is None


def test_compiled_module_is_not_shadowed(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    (tmp_path / 'mmcv/_ext.py').write_text('compiled = True')
    code = 'import kd_plugins, mmcv._ext; print(mmcv._ext.compiled, mmcv._ext.__file__)'
    assert run(code, tmp_path) == f'True {tmp_path / "mmcv/_ext.py"}'


def test_unknown_operator_names_itself_and_the_build():
    with pytest.raises(UserError) as info:
        ops.knn(3, torch.zeros(1, 4, 3), torch.zeros(1, 4, 3))
    message = str(info.value)
    assert 'knn_forward' in message
    for part in ('MMCV_WITH_OPS=1', '--no-binary onedl-mmcv', '--no-cache-dir', '--no-build-isolation'):
        assert part in message
    assert '\n' not in message
    assert not hasattr(mmcv_ext, '__path__')


def test_an_operator_that_a_model_will_lack_is_told_before_it_is_called(monkeypatch):
    def check(*modules):
        check_operators(torch.nn.ModuleDict({f'part{i}': module for i, module in enumerate(modules)}))

    check(
        ops.MaskedConv2d(2, 2, 1),
        ops.RoIAlign(7),
        ops.RoIPool(7, 1.0),
        ops.DeformConv2d(2, 2, 1),
        ops.ModulatedDeformConv2dPack(2, 2, 1),
        ops.MultiScaleDeformableAttention(8, 2),
        ops.SimpleRoIAlign(7, 1.0),
    )
    with pytest.raises(UserError, match=r'^part1 is a CARAFEPack: mmcv operator carafe_\w+: .*MMCV_WITH_OPS=1'):
        check(torch.nn.Identity(), ops.CARAFEPack(8, 2))
    with pytest.raises(UserError, match=r"^part0 is a RoIAlign: mmcv operator roi_align with pool_mode='max'"):
        check(ops.RoIAlign(7, pool_mode='max'))
    monkeypatch.setitem(sys.modules, 'mmcv._ext', torch)  # as a compiled one, another file
    check(ops.RoIAlign(7, pool_mode='max'))


def test_environment_report_is_honest():
    from mmcv.utils import collect_env

    report = collect_env()
    assert 'torchvision' in report['MMCV Compiler']
    assert report['MMCV CUDA Compiler'].startswith('none')


# -- non-maximum suppression -----------------------------------------------------------------------------------------


def random_boxes(count: int, generator: torch.Generator, size: float = 20) -> torch.Tensor:
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size / 2], 1)


def iou(a, b, offset: int) -> float:
    a, b = [float(v) for v in a], [float(v) for v in b]
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    union = sum(area) - width * height
    return width * height / union if union else 0.0


def loop_nms(boxes, scores, threshold: float, offset: int = 0, labels=None) -> list[int]:
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [j for j in kept if labels is None or labels[i] == labels[j]]
        if all(iou(boxes[i], boxes[j], offset) <= threshold for j in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.6])
def test_nms(offset, threshold):
    generator = torch.Generator().manual_seed(1)
    boxes, scores = random_boxes(60, generator), torch.rand(60, generator=generator)
    expected = loop_nms(boxes, scores.tolist(), threshold, offset)
    assert 3 < len(expected) < 60
    dets, kept = ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == expected
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[expected], rtol=0, atol=0)
    array_dets, array_kept = ops.nms(boxes.numpy(), scores.numpy(), threshold, offset=offset)
    assert isinstance(array_dets, np.ndarray)
    assert array_kept.tolist() == expected


def test_nms_offset_changes_the_outcome():
    # IoU of [0, 1] x [0, 1] and [1, 2] x [0, 1]: 0 as an edge shared, 1/3 as pixels shared.
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]]), torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]


def test_nms_keeps_a_box_exactly_at_the_threshold():
    boxes, scores = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]]), torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.3)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.29)[1].tolist() == [0]


def test_nms_score_threshold_and_maximum():
    generator = torch.Generator().manual_seed(2)
    boxes, scores = random_boxes(40, generator), torch.rand(40, generator=generator)
    expected = [i for i in loop_nms(boxes, scores.tolist(), 0.5) if scores[i] > 0.4]
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.4)[1].tolist() == expected
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=5)[1].tolist() == expected[:5]


@pytest.mark.parametrize('split_thr', [10000, 10])
def test_batched_nms_keeps_classes_apart(split_thr):
    generator = torch.Generator().manual_seed(3)
    boxes, scores = random_boxes(60, generator, size=8), torch.rand(60, generator=generator)
    labels = torch.randint(3, (60,), generator=generator)
    expected = loop_nms(boxes, scores.tolist(), 0.3, labels=labels.tolist())
    agnostic = loop_nms(boxes, scores.tolist(), 0.3)
    assert expected != agnostic
    config = dict(type='nms', iou_threshold=0.3, split_thr=split_thr)
    dets, kept = ops.batched_nms(boxes, scores, labels, config)
    assert kept.tolist() == expected
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[expected], rtol=0, atol=0)
    if split_thr > 60:
        assert ops.batched_nms(boxes, scores, labels, config, class_agnostic=True)[1].tolist() == agnostic


def loop_softnms(boxes, scores, threshold, sigma, min_score, method, offset):
    scores = [float(s) for s in scores]
    remaining, kept = list(range(len(boxes))), []
    while remaining:
        best = max(remaining, key=lambda i: scores[i])
        kept.append((best, scores[best]))
        remaining.remove(best)
        for i in list(remaining):
            overlap = iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                scores[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                scores[i] *= 1 - overlap if method == 'linear' else 0
            if scores[i] < min_score:
                remaining.remove(i)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method, offset):
    generator = torch.Generator().manual_seed(4)
    boxes, scores = random_boxes(40, generator, size=10), torch.rand(40, generator=generator)
    expected = loop_softnms(boxes, scores, 0.3, 0.4, 0.05, method, offset)
    assert 3 < len(expected) < 40
    dets, kept = ops.soft_nms(boxes, scores, 0.3, 0.4, 0.05, method, offset)
    assert kept.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, :4], boxes[kept], rtol=0, atol=0)
    torch.testing.assert_close(dets[:, 4], torch.tensor([s for _, s in expected]), rtol=1e-5, atol=1e-6)


def test_nms_match():
    generator = torch.Generator().manual_seed(5)
    dets = torch.cat([random_boxes(30, generator, size=8), torch.rand(30, 1, generator=generator)], 1)
    expected, taken = [], set()
    order = sorted(range(30), key=lambda i: -dets[i, 4].item())
    for position, i in enumerate(order):
        if i not in taken:
            group = [i] + [j for j in order[position + 1 :] if j not in taken and iou(dets[i], dets[j], 0) >= 0.2]
            taken.update(group)
            expected.append(group)
    assert any(len(group) > 2 for group in expected)
    assert [group.tolist() for group in ops.nms_match(dets, 0.2)] == expected


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_types(dtype):
    generator = torch.Generator().manual_seed(6)
    boxes, scores = random_boxes(40, generator).to(dtype), torch.rand(40, generator=generator).to(dtype)
    # Ties, which half precision makes, go by position.
    expected = loop_nms(boxes, scores.tolist(), 0.5)
    dets, kept = ops.nms(boxes, scores, 0.5)
    assert kept.tolist() == expected
    assert dets.dtype == dtype
    # Automatic mixed precision yields float32 boxes with half scores.
    assert ops.nms(boxes.float(), scores, 0.5)[1].tolist() == loop_nms(boxes.float(), scores.tolist(), 0.5)


def test_no_boxes():
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)
    for function in (ops.nms, ops.soft_nms):
        dets, kept = function(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.long
    config = dict(type='nms', iou_threshold=0.5, class_agnostic=True)
    assert ops.batched_nms(boxes, scores, labels, config)[1].shape == (0,)
    assert ops.nms_match(torch.zeros(0, 5), 0.5) == []


# -- regions of interest ---------------------------------------------------------------------------------------------

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
    mmcv_ext.roi_pool_forward(feature, rois, output, argmax, pooled_height=2, pooled_width=3, spatial_scale=0.5)
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


# -- deformable convolution ------------------------------------------------------------------------------------------

GEOMETRY = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))


def deformable_inputs(groups: int, deform_groups: int):
    feature = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64)
    height, width = F.conv2d(feature, weight, groups=groups, **GEOMETRY).shape[2:]
    offset = torch.randn(2, deform_groups * 12, height, width, dtype=torch.float64)
    mask = torch.rand(2, deform_groups * 6, height, width, dtype=torch.float64)
    return [t.requires_grad_() for t in (feature, offset, mask, weight, torch.randn(6, dtype=torch.float64))]


def loop_deform_conv(feature, offset, mask, weight, bias, groups, deform_groups):
    """Every sample by hand, zeros outside the image; the channels of a group at a time."""
    padded = F.pad(feature, (1, 1, 1, 1))
    height, width = feature.shape[2:]
    kernel_height, kernel_width = weight.shape[2:]
    (stride_y, stride_x), (pad_y, pad_x), (dilation_y, dilation_x) = GEOMETRY.values()
    output = []
    in_group, out_group, deform_group = (n // g for n, g in ((4, groups), (6, groups), (4, deform_groups)))
    for b in range(len(feature)):
        for row in range(offset.shape[2]):
            for column in range(offset.shape[3]):
                total = bias
                for c in range(4):
                    for i in range(kernel_height):
                        for j in range(kernel_width):
                            point = (c // deform_group) * kernel_height * kernel_width + i * kernel_width + j
                            dy, dx = offset[b, 2 * point : 2 * point + 2, row, column]
                            y = row * stride_y - pad_y + i * dilation_y + dy
                            x = column * stride_x - pad_x + j * dilation_x + dx
                            if not (-1 < y < height and -1 < x < width):
                                continue
                            top, left = math.floor(y.item()), math.floor(x.item())
                            v, h = y - top, x - left
                            patch = padded[b, c, top + 1 : top + 3, left + 1 : left + 3]
                            value = torch.stack([1 - v, v]) @ patch @ torch.stack([1 - h, h])
                            if mask is not None:
                                value = value * mask[b, point, row, column]
                            group = c // in_group
                            inside = torch.arange(6) // out_group == group
                            total = total + torch.where(inside, weight[:, c % in_group, i, j], 0) * value
                output.append(total)
    return torch.stack(output).reshape(len(feature), *offset.shape[2:], 6).permute(0, 3, 1, 2)


@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_deform_conv_without_offset_is_convolution(groups, deform_groups):
    feature, offset, mask, weight, bias = deformable_inputs(groups, deform_groups)
    zero, one = torch.zeros_like(offset), torch.ones_like(mask)
    geometry = (*GEOMETRY.values(), groups, deform_groups)
    expected = F.conv2d(feature, weight, groups=groups, **GEOMETRY)
    torch.testing.assert_close(ops.deform_conv2d(feature, zero, weight, *geometry), expected)
    modulated = ops.modulated_deform_conv2d(feature, zero, one / 2, weight, bias, *geometry)
    torch.testing.assert_close(modulated, expected / 2 + bias[:, None, None])


def test_integer_offset_shifts_the_input():
    # Every kernel point one down and two to the left: the same as convolving the image moved the other way.
    feature, weight = torch.randn(1, 3, 8, 8), torch.randn(2, 3, 3, 3)
    offset = torch.tensor([1.0, -2.0]).repeat(9)[None, :, None, None].expand(1, 18, 8, 8)
    shifted = F.pad(feature, (2, 0, 0, 1))[:, :, 1:, :8]
    expected = F.conv2d(shifted, weight, padding=1)
    output = ops.deform_conv2d(feature, offset, weight, 1, 1)
    torch.testing.assert_close(output[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('groups', 'deform_groups'), [(1, 2), (2, 1)])
def test_deform_conv_by_hand(groups, deform_groups):
    feature, offset, _, weight, bias = inputs = deformable_inputs(groups, deform_groups)
    geometry = (*GEOMETRY.values(), groups, deform_groups)
    expected = loop_deform_conv(*inputs, groups, deform_groups)
    output = ops.modulated_deform_conv2d(*inputs, *geometry)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    for got, want in zip(*(torch.autograd.grad(y, inputs, direction) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want)
        assert got.abs().sum() > 0

    without_mask = (feature, offset, weight)
    expected = loop_deform_conv(feature, offset, None, weight, torch.zeros_like(bias), groups, deform_groups)
    output = ops.deform_conv2d(*without_mask, *geometry)
    torch.testing.assert_close(output, expected)
    for got, want in zip(*(torch.autograd.grad(y, without_mask, direction) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want)


def test_a_point_at_the_border_of_the_padding_has_no_gradient():
    # All offsets are whole numbers, as where a layer starts from 0: many points lie at -1 and at the size of the input.
    inputs = list(deformable_inputs(1, 1))
    inputs[1] = torch.randint(-1, 2, inputs[1].shape, dtype=torch.float64).requires_grad_()
    expected = loop_deform_conv(*inputs, 1, 1)
    output = ops.modulated_deform_conv2d(*inputs, *GEOMETRY.values())
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    for got, want in zip(*(torch.autograd.grad(y, inputs, direction) for y in (output, expected)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e30])
def test_an_offset_that_is_no_number_does_not_end_the_process(value):
    feature, offset, mask, weight, bias = (x.detach().requires_grad_() for x in deformable_inputs(1, 1))
    expected = ops.modulated_deform_conv2d(feature, offset, mask, weight, bias, *GEOMETRY.values())
    with torch.no_grad():
        offset[0, 4, 1, 2] = value
    output = ops.modulated_deform_conv2d(feature, offset, mask, weight, bias, *GEOMETRY.values())
    output.nansum().backward()
    changed = output != expected
    assert changed[0, :, 1, 2].all()
    assert changed.sum() == 6
    assert output[0, :, 1, 2].isnan().all() == math.isnan(value)
    assert all(x.grad.isfinite().all() for x in (feature, offset, mask, weight, bias))
    assert offset.grad[0, 4:6, 1, 2].tolist() == [0, 0]  # the point is outside, in both directions


def test_larger_offset_maps_are_read_as_mmcv_reads_them():
    # mmcv takes a sample's first numbers for maps of the output's size, and DyHead trains with that.
    feature, offset, mask, weight, bias = deformable_inputs(1, 1)
    large = [F.pad(x.detach(), (0, 3, 0, 2), value=0.3).requires_grad_() for x in (offset, mask)]
    small = [
        torch.stack([sample.flatten()[: x[0].numel()].view_as(x[0]) for sample in y])
        for x, y in zip((offset, mask), large, strict=True)
    ]
    outputs = [ops.modulated_deform_conv2d(feature, *maps, weight, bias, *GEOMETRY.values()) for maps in (large, small)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    direction = torch.randn_like(outputs[0])
    for got, want in zip(*(torch.autograd.grad(y, large, direction) for y in outputs), strict=True):
        torch.testing.assert_close(got, want)
        assert got.any()


def test_modulated_deform_conv_without_bias():
    feature, offset, mask, weight, _ = deformable_inputs(1, 1)
    inputs = (feature[:1, :, :4, :4], offset[:1, :, :2, :6], mask[:1, :, :2, :6], weight)
    inputs = [t.detach().requires_grad_() for t in inputs]

    def convolve(*tensors):
        return ops.modulated_deform_conv2d(*tensors, None, *GEOMETRY.values())

    assert torch.autograd.gradcheck(convolve, inputs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deform_conv_in_half_precision(dtype):
    feature, offset, _, weight, _ = (t.detach().to(dtype).requires_grad_() for t in deformable_inputs(1, 1))
    inputs = (feature, offset, weight)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    outputs = [ops.deform_conv2d(*tensors, *GEOMETRY.values()) for tensors in (inputs, wide)]
    assert outputs[0].dtype == dtype
    tolerance = dict(rtol=2e-2, atol=1e-1)
    torch.testing.assert_close(outputs[0].double(), outputs[1], **tolerance)
    for y in outputs:
        y.sum().backward()
    for narrow, reference in zip(inputs, wide, strict=True):
        torch.testing.assert_close(narrow.grad.double(), reference.grad, **tolerance)


def test_wrong_deform_groups_do_not_pass_unseen():
    feature, offset, _, weight, _ = deformable_inputs(1, 1)
    with pytest.raises(RuntimeError, match='offset'):
        ops.deform_conv2d(feature, offset, weight, *GEOMETRY.values(), 1, 2)


# -- masked convolution, attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize(('kernel', 'padding'), [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((3, 1), (1, 0))])
def test_masked_conv_is_the_convolution_where_the_mask_is(kernel, padding):
    convolution = ops.MaskedConv2d(3, 5, kernel, padding=padding)
    feature, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.6
    with torch.no_grad():
        expected = convolution(feature) * mask
        torch.testing.assert_close(convolution(feature, mask), expected)
        assert not convolution(feature, torch.zeros_like(mask)).any()


def test_deformable_attention_by_hand():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = torch.tensor([[4, 5], [2, 3]])
    value = torch.randn(2, 26, 2, 3, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(2, 3, 2, 2, 2, 2, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for b, query, head, level, point in np.ndindex(2, 3, 2, 2, 2):
        height, width = shapes[level].tolist()
        plane = value[b, :20] if level == 0 else value[b, 20:]
        plane = F.pad(plane[:, head].T.reshape(3, height, width), (1, 1, 1, 1))
        x, y = locations[b, query, head, level, point] * torch.tensor([width, height]) - 0.5
        if -1 < y < height and -1 < x < width:
            top, left = math.floor(y.item()), math.floor(x.item())
            v, h = y - top, x - left
            patch = plane[:, top + 1 : top + 3, left + 1 : left + 3]
            sample = torch.stack([1 - v, v]) @ patch @ torch.stack([1 - h, h])
            expected[b, query, head] = expected[b, query, head] + weights[b, query, head, level, point] * sample
    starts = torch.tensor([0, 20])
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    torch.testing.assert_close(output, expected.flatten(2))
    direction, inputs = torch.randn_like(output), (value, locations, weights)
    gradients = (torch.autograd.grad(y, inputs, direction) for y in (output, expected.flatten(2)))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


# -- focal loss ------------------------------------------------------------------------------------------------------


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
