"""Non-maximum suppression against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from mmcv import ops


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
