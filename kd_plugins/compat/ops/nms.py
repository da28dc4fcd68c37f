"""Non-maximum suppression."""

import torch
import torchvision
from torch import Tensor
from torchvision.ops import box_iou

from .precision import widen


def _grow(boxes: Tensor, offset: int) -> Tensor:
    """Turn the inclusive corners of ``offset=1`` (width = x2 − x1 + 1) into continuous ones."""
    return boxes + boxes.new_tensor([0, 0, offset, offset])


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression: drop a box whose IoU with a kept, better one is above the threshold.

    Args:
        boxes: Boxes (N, 4), x1 y1 x2 y2.
        scores: Scores (N,).
        iou_threshold: Largest IoU of two kept boxes.
        offset: 0 or 1; widths and heights are x2 − x1 + offset.

    Returns:
        Indices of the kept boxes, best first.
    """
    boxes, scores = widen(boxes, scores)
    # Rounded as the IoUs are: a float32 0.3 is above the double 0.3, yet not above 0.3.
    iou_threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return torchvision.ops.nms(_grow(boxes, offset), scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS: repeatedly take the best box, and scale down the scores of the others by their IoU with it.

    Args:
        boxes: Boxes (N, 4), x1 y1 x2 y2.
        scores: Scores (N,).
        dets: Written, (N, 5): the first rows are the kept boxes and their scores when taken, in that order.
        iou_threshold: Threshold of methods 0 and 1.
        sigma: Width of method 2.
        min_score: Score below which a box is dropped.
        method: The factor: 0 (naive), 0 where IoU ≥ threshold; 1 (linear), 1 − IoU where IoU ≥ threshold;
            2 (gaussian), exp(−IoU² / sigma).
        offset: 0 or 1; widths and heights are x2 − x1 + offset.

    Returns:
        Indices of the kept boxes, in the order of ``dets``.
    """
    corners, scores = widen(boxes, scores)
    corners, scores = _grow(corners, offset), scores.clone()
    remaining = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(remaining):
        best = remaining[scores[remaining].argmax()]
        kept.append(best)
        remaining = remaining[remaining != best]
        # Two boxes without area have IoU 0/0: they do not overlap.
        iou = box_iou(corners[best, None], corners[remaining])[0].nan_to_num(0)
        if method == 2:
            scores[remaining] *= torch.exp(-iou.square() / sigma)
        else:
            scores[remaining] *= torch.where(iou >= iou_threshold, (1 - iou) * method, 1)
        remaining = remaining[scores[remaining] >= min_score]
    indices = torch.stack(kept) if kept else remaining
    dets[: len(indices)] = torch.cat([boxes[indices], scores[indices, None].to(boxes.dtype)], 1)
    return indices


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy NMS that returns each kept box with the boxes that it suppressed.

    Args:
        dets: Boxes and scores (N, 5), x1 y1 x2 y2 score.
        iou_threshold: Smallest IoU at which a box is suppressed.

    Returns:
        Groups of indices, best first, within and among the groups.
    """
    iou = box_iou(dets[:, :4], dets[:, :4])
    remaining = dets[:, 4].argsort(descending=True)
    groups = []
    while len(remaining):
        best, others = remaining[0], remaining[1:]
        suppressed = iou[best, others] >= iou_threshold
        groups.append([best.item(), *others[suppressed].tolist()])
        remaining = others[~suppressed]
    return groups
