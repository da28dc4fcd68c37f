"""Detections inside the file: a dense head's own decoding and NMS, for any batch and any size of image."""

import logging
import types
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import nms

from kd_plugins.errors import UserError
from kd_plugins.export.network import Detector

UNPAIRED = 0.01  # share of the detections


class Detections(Detector):
    """A one-stage detector of mmdet, up to its boxes, scores and labels after NMS.

    The head's own ``_predict_by_feat_single`` decodes. It is written for one image and drops candidates by their
    scores, so that its shapes depend on values. Here it gets the batch as one image, the images below each other, whose
    priors are repeated, and selects as many candidates of each image, those that it would drop with score 0. One call
    of torchvision's ``nms`` serves the batch: the boxes of each class are shifted along x, those of each image along y.

    Boxes are clipped at the images' edges as they are given: padding is a part of an image.

    Args:
        network: The detector.
        normalize: As for :class:`~kd_plugins.export.network.Exportable`.

    Raises:
        UserError: The head decodes in another way.
    """

    def __init__(self, network: nn.Module, normalize: bool = False) -> None:
        super().__init__(network, normalize)
        head: Any = network.bbox_head
        kind, self.settings = type(head).__name__, head.test_cfg
        self.count = int(self.settings.get('max_per_img', 100))
        if 'max_per_img' not in self.settings:
            print_log(
                f'{kind}: its test_cfg has no max_per_img: the file keeps the best {self.count} of an image, mmdet all',
                'current',
                logging.WARNING,
            )
        self.meaning = (
            f'the best detections of an image after NMS, best first, always {self.count}: boxes x1 y1 x2 y2 in pixels '
            'of the image as it is given; where there are fewer, the rest have label -1, score 0 and a box of zeros'
        )
        kinds = {kind.__name__: kind for kind in type(head).__mro__}
        self.yolox = 'YOLOXHead' in kinds
        base: Any = kinds.get('BaseDenseHead')
        single = getattr(type(head), '_predict_by_feat_single', None)
        own = [
            name
            for name in ('predict', 'predict_by_feat', '_bbox_post_process')
            if getattr(type(head), name) is not getattr(base, name, None)
        ]
        if not self.yolox and (own or 'filter_scores_and_topk' not in getattr(single, '__globals__', ())):
            name = own[0] if own else '_predict_by_feat_single'
            raise UserError(
                f'--decode: {kind} decodes in a way of its own ({kind}.{name}), which is not exported: leave --decode '
                'out, and decode its raw outputs outside the file'
            )
        suppression = dict(self.settings.get('nms') or {})
        if suppression.get('type') != 'nms' or not suppression.keys() <= {'type', 'iou_threshold', 'class_agnostic'}:
            raise UserError(
                f'--decode: {kind} has test_cfg.nms = {suppression}, expected dict(type="nms", iou_threshold=...): '
                'other kinds of suppression are not exported'
            )
        # As a float32, which the IoUs are: a double 0.3 is below it.
        self.threshold = torch.tensor(suppression['iou_threshold'], dtype=torch.float32).item()
        self._told = False
        self.per_class = not suppression.get('class_agnostic', False)

    def name_outputs(self, outputs: Any) -> list[str]:
        """Name them."""
        return ['boxes', 'scores', 'labels']

    def compute(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, K, 4), scores (N, K) and labels (N, K)."""
        outputs, size = super().compute(images), (images.shape[2], images.shape[3])
        boxes, scores, labels = self._of_yolox(*outputs) if self.yolox else self._of_levels(*outputs, size=size)
        if (smallest := self.settings.get('min_bbox_size', -1)) >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = scores * (sides > smallest).all(-1)
        kept = self._kept(boxes, scores, labels)
        # As many more, of score 0: there are enough in a small image, too.
        scores, order = pad(scores * kept, (0, self.count)).topk(self.count)
        real = scores > 0
        boxes = pad(boxes, (0, 0, 0, self.count)).gather(1, order[..., None].expand(-1, -1, 4)) * real[..., None]
        return boxes, scores, torch.where(real, pad(labels, (0, self.count)).gather(1, order), -1)

    def _of_levels(
        self, scores: list[Tensor], boxes: list[Tensor], factors: list[Tensor] | None = None, *, size: Sequence[int]
    ) -> list[Tensor]:
        """Return the candidates of a head: boxes (N, K, 4), scores (N, K), 0 where below the threshold, and labels."""
        head: Any = self.network.bbox_head
        batch, counts = scores[0].shape[0], list[int]()
        single: Any = type(head)._predict_by_feat_single
        select = partial(_candidates, batch, counts)
        decode = types.FunctionType(
            single.__code__,
            # An InstanceData asks for lengths, which a tensor of any length has none of.
            single.__globals__ | {'filter_scores_and_topk': select, 'InstanceData': BaseDataElement},
            argdefs=single.__defaults__,
            closure=single.__closure__,
        )
        priors = head.prior_generator.grid_priors(
            [x.shape[-2:] for x in scores], dtype=scores[0].dtype, device=scores[0].device
        )
        found = decode(
            head,
            cls_score_list=[_stacked(x) for x in scores],
            bbox_pred_list=[_stacked(x) for x in boxes],
            score_factor_list=[None] * len(scores) if factors is None else [_stacked(x) for x in factors],
            mlvl_priors=[x.repeat(batch, *[1] * (x.ndim - 1)) for x in priors],
            img_meta=dict(img_shape=size),
            cfg=type(self.settings)(self.settings, min_bbox_size=-1),  # a selection by it has no known size
            rescale=False,
            with_nms=False,
        )
        ends = [*accumulate(batch * count for count in counts)]
        return [
            torch.cat(
                [
                    values[end - batch * count : end].reshape(batch, count, *values.shape[1:])
                    for end, count in zip(ends, counts, strict=True)
                ],
                1,
            )
            for values in (found.bboxes, found.scores, found.labels)
        ]

    def _of_yolox(self, scores: list[Tensor], boxes: list[Tensor], objectness: list[Tensor]) -> list[Tensor]:
        """Return the candidates of a ``YOLOXHead``, whose own method selects in the midst of decoding."""
        head: Any = self.network.bbox_head
        priors = head.prior_generator.grid_priors(
            [x.shape[-2:] for x in scores], dtype=scores[0].dtype, device=scores[0].device, with_stride=True
        )
        flat = [torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2) for levels in (scores, boxes, objectness)]
        best, labels = flat[0].sigmoid().max(-1)
        best = best * flat[2].squeeze(-1).sigmoid()
        return [head._bbox_decode(torch.cat(priors), flat[1]), best * (best >= self.settings.score_thr), labels]

    def _kept(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Return which of the candidates (N, K) NMS keeps, as 0 or 1."""
        boxes = torch.where(scores[..., None] > 0, boxes, torch.zeros_like(boxes))  # others may be of any size
        side = boxes.max() - boxes.min() + 1
        image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(labels)
        shift = torch.stack([labels * self.per_class, image], -1).to(boxes) * side
        shifted, scores = (boxes + shift.repeat(1, 1, 2)).flatten(0, 1), scores.flatten()
        index = scores.nonzero()[:, 0]
        kept = index[nms(shifted[index], scores[index], self.threshold)]
        return torch.zeros_like(scores).index_fill(0, kept, 1).view(labels.shape)

    def expected(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what mmdet's own head predicts for images, in the convention of this module."""
        head: Any = self.network.bbox_head
        metas = [dict(img_shape=tuple(images.shape[2:]))] * len(images)
        found = head.predict_by_feat(*super().compute(self.normal(images)), batch_img_metas=metas, rescale=False)
        rows = []
        for one in found:
            missing = max(self.count - len(one.scores), 0)
            boxes, scores = pad(one.bboxes, (0, 0, 0, missing)), pad(one.scores, (0, missing))
            rows.append([x[: self.count] for x in (boxes, scores, pad(one.labels, (0, missing), value=-1))])
        if not any(scores.any() for _, scores, _ in rows):
            print_log(
                'no image has a detection above the threshold of scores, so none was compared: export where the test '
                'set is',
                'current',
                logging.WARNING,
            )
        boxes, scores, labels = (torch.stack(x) for x in zip(*rows, strict=True))
        return boxes, scores, labels

    def differences(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> Iterator[tuple[str, float]]:
        """Yield the largest differences of boxes and scores, as parts of the images' and of the largest score.

        Each detection, of either side, is compared with the nearest of its label in the same image on the other side.
        A rounding decides where a score is at the cut or an IoU at the threshold of NMS: one detection in a hundred
        need have no such partner. A network that has hardly learnt, whose scores are all alike, may miss that.
        """
        size = max(expected[0].abs().max().item(), 1.0)
        top = max(expected[1].max().item(), torch.finfo(torch.float32).tiny)
        apart: list[Tensor] = [torch.zeros(1, 2)]
        for own, other in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
            a, b = ([x[values[2] >= 0] for x in values] for values in (own, other))
            of_boxes = (a[0][:, None] - b[0]).abs().amax(-1) / size
            of_scores = (a[1][:, None] - b[1]).abs() / top
            total = (of_boxes + of_scores).masked_fill(a[2][:, None] != b[2], torch.inf)
            both = torch.stack([of_boxes, of_scores], -1).masked_fill(total.isinf()[..., None], torch.inf)
            for sums, parts in ((total, both), (total.T, both.transpose(0, 1))):
                if not sums.shape[1]:
                    apart.append(torch.full((len(sums), 2), torch.inf))
                elif len(sums):
                    apart.append(parts[torch.arange(len(sums)), sums.argmin(1)])
        values = torch.cat(apart)
        drop = int(UNPAIRED * len(values))
        for name, column in zip(self.names, values.T, strict=False):
            yield name, column.sort(descending=True).values[drop].item()

    def predict(self, outputs: Sequence[Tensor], data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Return samples with the detections, clipped at the image without its padding, in the original's pixels."""
        network: Any = self.network
        shapes = [(x.metainfo.get('batch_input_shape'), x.metainfo['img_shape'][:2]) for x in data_samples]
        if not self._told and any(padded and tuple(padded) != tuple(own) for padded, own in shapes):
            self._told = True
            print_log(
                'images are padded, and the file clips boxes at the padded edge, mmdet at the image: near it, NMS may '
                'keep other boxes',
                'current',
                logging.WARNING,
            )
        found = []
        for boxes, scores, labels, sample in zip(*outputs, data_samples, strict=True):
            real, (height, width) = labels >= 0, sample.metainfo['img_shape'][:2]
            boxes = boxes[real]
            if getattr(getattr(network.bbox_head, 'bbox_coder', None), 'clip_border', not self.yolox):
                boxes = torch.min(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2))
            boxes = boxes / boxes.new_tensor(sample.metainfo['scale_factor']).repeat(2)
            found.append(InstanceData(bboxes=boxes, scores=scores[real], labels=labels[real]))
        return network.add_pred_to_datasample(data_samples, found)


def _stacked(values: Tensor) -> Tensor:
    """Return maps (N, C, H, W) below each other, (C, N x H, W)."""
    return values.transpose(0, 1).flatten(1, 2)


def _candidates(
    batch: int, counts: list[int], scores: Tensor, threshold: float, count: int, results: Any = None
) -> tuple[Any, ...]:
    """Select the best of each image, as mmdet's ``filter_scores_and_topk`` those of one.

    Args:
        batch: Number of images N.
        counts: Gets the number K of candidates of an image.
        scores: Scores (N x priors, classes).
        threshold: A score that is not above it becomes 0.
        count: Largest number of candidates of an image; all where not positive.
        results: Tensors (N x priors, ...), by name, to select from.

    Returns:
        Scores and labels (N x K), indices of the selected priors (N x K), and ``results`` of these.
    """
    classes, flat = scores.shape[1], scores.reshape(batch, -1)
    number = flat.shape[1]
    best, index = flat.topk(torch.sym_min(count, number) if count > 0 else number)
    counts.append(best.shape[1])
    first = torch.arange(batch, device=scores.device)[:, None] * (number // classes)
    chosen = (first + index // classes).flatten()
    found = {name: values[chosen] for name, values in (results or {}).items()}
    return (best * (best > threshold)).flatten(), (index % classes).flatten(), chosen, found
