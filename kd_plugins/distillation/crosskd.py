"""Terms that pass a student's features through the head of a teacher (CrossKD)."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from kd_plugins.distillation.layout import size_of
from kd_plugins.distillation.recorder import Features
from kd_plugins.distillation.term import Batch, Term
from kd_plugins.errors import UserError
from kd_plugins.losses import CrossKDLoss
from kd_plugins.losses.crosskd import Predictions
from kd_plugins.utils.names import nearest

_BRANCHES = ('cls_convs', 'reg_convs')
_ANCHORS, _POINTS = ('anchor_list', 'valid_flag_list'), ('points', 'batch_gt_instances')  # arguments of get_targets
# Methods whose results are read here, and mmdet's heads that have those known here.
_ASSIGNING = ('get_anchors', 'get_targets', '_get_targets_single'), {'AnchorHead', 'ATSSHead', 'GFLHead', 'FCOSHead'}
_DECODING = ('_predict_by_feat_single',), {'BaseDenseHead', 'GFLHead', 'PAAHead', 'CondInstBboxHead'}  # by bbox_coder


class CrossKDTerm(Term):
    """A term whose loss is a :class:`~kd_plugins.losses.CrossKDLoss`: its two taps are heads of dense detectors.

    What it records are the outputs of the ``layer``-th convolutions of both branches, before the activation. Each
    channel of the student's features gets the teacher's mean and standard deviation (over the positions and the images
    of the process, a level at a time), as in the authors' code. Then the later layers of the teacher's head run on
    them, frozen but differentiable, and on the teacher's own.

    The heads are those of mmdet whose ``cls_convs`` and ``reg_convs`` are shared by all levels: RetinaNet, FCOS, GFL,
    ATSS and their like. Which positions count and the number of positives (of FCOS the sum of their centerness), at
    least 1 and the mean over all processes, are those that the student's head assigns.
    """

    loss: CrossKDLoss

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(name, *args, **kwargs)
        self.heads = {
            'student': self._one('student', self.student_taps),
            'teacher': self._one('teacher', self.teacher_taps),
        }
        if self.resize != 'smaller' or any(self._picked.values()):
            raise UserError(
                f"term '{name}': CrossKD compares all positions of two heads of equal strides: remove resize, "
                'student_levels and teacher_levels'
            )

    def _one(self, side: str, taps: list[str]) -> str:
        if len(taps) != 1:
            raise UserError(f"term '{self.name}': {side} must be the name of one head, as 'bbox_head', got {taps}")
        return taps[0]

    def taps_in(self, side: str, network: nn.Module) -> list[str]:
        """Return the modules of a network's head to record, and find out which they are.

        Raises:
            UserError: The head is none whose layers can be parted.
        """
        head = self._head(side, network)
        taps = []
        for branch in _BRANCHES:
            convs = getattr(head, branch, None)
            if not isinstance(convs, nn.ModuleList) or not convs or not all(hasattr(x, 'with_norm') for x in convs):
                raise UserError(
                    f"term '{self.name}': the {side}'s {type(head).__name__} has no {' and '.join(_BRANCHES)} that all "
                    'levels share, which CrossKD parts: it is for heads like those of RetinaNet, FCOS, GFL and ATSS'
                )
            if len(convs) < self.loss.layer:
                raise UserError(
                    f"term '{self.name}': layer={self.loss.layer}, but the {side}'s {branch} are {len(convs)}: give a "
                    'smaller layer'
                )
            conv = convs[self.loss.layer - 1]
            last = conv.norm_name if conv.with_norm else 'conv'
            taps.append(f'{self.heads[side]}.{branch}.{self.loss.layer - 1}.{last}')
        if not getattr(head, 'use_sigmoid_cls', True):
            raise UserError(
                f"term '{self.name}': the {side}'s {type(head).__name__} has a softmax over the classes, expected "
                'independent scores (use_sigmoid=True in its loss_cls)'
            )
        if side == 'student':
            if _assignment(head) not in (_ANCHORS, _POINTS) or not _is_known(head, *_ASSIGNING):
                raise UserError(
                    f"term '{self.name}': {type(head).__name__} assigns its targets in a way of its own, expected one "
                    'like RetinaNet, FCOS, GFL or ATSS'
                )
            self.student_taps = taps
            return taps
        if not _is_known(head, *_DECODING):
            raise UserError(
                f"term '{self.name}': the teacher's {type(head).__name__} decodes its boxes in a way of its own, "
                'expected one like RetinaNet, FCOS, GFL or ATSS'
            )
        if self.teacher_taps not in ([self.heads[side]], taps):
            raise UserError(
                f"term '{self.name}': its teachers' heads have unlike layers: give each a term of its own, with "
                'teachers=[...]'
            )
        self.teacher_taps = taps
        return taps

    def _head(self, side: str, network: nn.Module) -> nn.Module:
        try:
            return network.get_submodule(self.heads[side])
        except AttributeError:
            near = nearest(self.heads[side], dict(network.named_modules()))
            raise UserError(
                f"term '{self.name}': {type(network).__name__} has no head '{self.heads[side]}'; {near}"
            ) from None

    def against(
        self,
        index: int,
        student: Features,
        target: Features,
        batch: Batch,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Return the unweighted loss against the teacher with this index.

        Raises:
            UserError: The two heads have other numbers of levels.
            ValueError: Their channels, the sizes of their maps or their positions differ.
        """
        levels, targets = self._taken(index, student, target, batch)
        levels = self._adapted(index, levels, targets)
        for s, t in zip(levels, targets, strict=True):
            if s.shape != t.shape:
                remedy = (
                    "give both heads the same feat_channels, or add adapter='auto' to the term"
                    if s.shape[1] != t.shape[1]
                    else 'give both heads the same strides'
                )
                raise ValueError(
                    f"the student's features {tuple(s.shape)} do not fit into the teacher's head, which takes "
                    f'{tuple(t.shape)}; {remedy}'
                )
        head = self._head('teacher', batch.teachers[index].model)
        # A detector calls its head's forward without its hooks in mode 'tensor': there is nothing to tap behind it.
        with torch.no_grad():  # copies, also of a teacher's in bfloat16 whose head is of float32
            copies = [
                t.to(torch.promote_types(s.dtype, t.dtype), copy=True) for s, t in zip(levels, targets, strict=True)
            ]
            expected = _predictions(head, self.loss.layer, copies)
        crossed = _predictions(head, self.loss.layer, [_aligned(s, t) for s, t in zip(levels, targets, strict=True)])
        weight, positives, objects = self._assigned(batch, levels[: len(levels) // 2])
        if len(weight) != len(crossed.scores):
            raise ValueError(
                f"the student's head assigns targets to {len(weight)} positions, the teacher's predicts at "
                f'{len(crossed.scores)}: give both the same anchors and strides'
            )
        return self.loss(crossed, expected, weight, positives, objects)

    def _assigned(self, batch: Batch, maps: Sequence[Tensor]) -> tuple[Tensor, float, Tensor | None]:
        """Return the weights (P,) of the positions, the number of positives, and which they are (P,).

        All is by the student's own assignment.

        Args:
            batch: The batch.
            maps: A feature of each level.

        Raises:
            UserError: Images have no boxes.
        """
        head: Any = self._head('student', batch.student.model)
        samples, device = batch.data_samples, maps[0].device
        weight = torch.ones(sum(x[:, 0].numel() for x in maps) * head.num_base_priors, device=device)
        if samples is None:
            return weight, 1.0, None
        if any('gt_instances' not in x for x in samples):
            raise UserError(f"term '{self.name}': CrossKD needs images with boxes, got some without gt_instances")
        instances, metas = [x.gt_instances for x in samples], [x.metainfo for x in samples]
        sizes = [size_of(x) for x in maps]
        if _assignment(head) == _ANCHORS:
            anchors, valid = head.get_anchors(sizes, metas, device=device)
            ignored = [x.get('ignored_instances') for x in samples]
            targets = head.get_targets(anchors, valid, instances, metas, batch_gt_instances_ignore=ignored)
            labels, weight = (torch.cat([x.reshape(-1) for x in levels]) for levels in targets[-5:-3])
            objects = (labels >= 0) & (labels < head.num_classes)
            positives = torch.tensor(float(targets[-1]), device=device)
        else:
            points = head.prior_generator.grid_priors(sizes, dtype=torch.float32, device=device)
            labels, boxes = (torch.cat(x) for x in head.get_targets(points, instances)[:2])
            objects = labels < head.num_classes
            # FCOS weights its boxes by their centerness.
            positives = head.centerness_target(boxes[objects]).sum()
        all_reduce(positives, 'mean')
        return weight, positives.clamp(min=1).item(), objects


def _assignment(head: Any) -> tuple[str, ...]:
    """Return the first arguments by which a head assigns targets."""
    return tuple(inspect.signature(head.get_targets).parameters)[:2] if hasattr(head, 'get_targets') else ()


def _is_known(head: Any, names: Sequence[str], known: set[str]) -> bool:
    """Return whether none of these methods is of another of mmdet's heads (PAA, FSAF, ...), with its own results."""
    methods = [getattr(type(head), name, None) for name in names]
    return not any(
        x.__module__.startswith('mmdet.') and x.__qualname__.partition('.')[0] not in known for x in methods if x
    )


class _Given(nn.Module):
    """Stands for the first layers of a branch: returns the features of one level after the other."""

    def __init__(self, features: Iterable[Tensor]) -> None:
        super().__init__()
        self.features: Iterator[Tensor] = iter(features)

    def forward(self, _: Tensor) -> Tensor:
        return next(self.features)


def _later_layers(head: nn.Module, layer: int, levels: Sequence[Tensor]) -> Any:
    """Run a head on the features of its branches before the activation of layer ``layer``; return its outputs.

    The head itself stays as it is: a shallow copy, with the same parameters, gets shorter branches.
    """
    classes, boxes = levels[: len(levels) // 2], levels[len(levels) // 2 :]
    later = copy.copy(head)
    later._modules = dict(head._modules)
    for branch, features in zip(_BRANCHES, (classes, boxes), strict=True):
        convs = getattr(head, branch)
        own = convs[layer - 1]
        given = _Given(own.activate(x) if own.with_activation else x for x in features)
        setattr(later, branch, nn.ModuleList([given, *convs[layer:]]))
    return later(tuple(classes))


def _aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """Give each channel of the student's map (B, C, H, W) the mean and standard deviation of the teacher's."""
    axes, student, teacher = (0, 2, 3), student.float(), teacher.float()
    mean, std = student.mean(axes, keepdim=True), student.std(axes, correction=0, keepdim=True)
    target_mean, target_std = teacher.mean(axes, keepdim=True), teacher.std(axes, correction=0, keepdim=True)
    return (student - mean) / (std + 1e-6) * target_std + target_mean


def _predictions(head: Any, layer: int, levels: Sequence[Tensor]) -> Predictions:
    """Return what a head predicts at the P positions (or anchors) of all levels and images, boxes in pixels.

    Args:
        head: Head of a dense detector.
        layer: Number of convolutions that its branches have behind them.
        levels: Features before the activation, (B, C, H, W): of the classes' branch, then of the boxes'.
    """

    def rows(maps: Sequence[Tensor], width: int) -> Tensor:
        return torch.cat([x.float().permute(0, 2, 3, 1).reshape(-1, width) for x in maps])

    scores, boxes, *others = _later_layers(head, layer, levels)
    sizes = [size_of(x) for x in scores]
    priors = head.prior_generator.grid_priors(sizes, dtype=torch.float32, device=scores[0].device)
    priors = [x.repeat(len(scores[0]), 1) for x in priors]
    classes = rows(scores, head.cls_out_channels)
    if not hasattr(head, 'integral'):
        centerness = rows(others[0], 1).flatten() if hasattr(head, 'atss_centerness') else None
        return Predictions(classes, head.bbox_coder.decode(torch.cat(priors), rows(boxes, 4)), centerness=centerness)
    edges = rows(boxes, 4 * (head.reg_max + 1))  # distributions of distances, in units of the stride
    strides = zip(priors, head.prior_generator.strides, strict=True)
    distances = head.integral(edges) * torch.cat([x.new_full((len(x), 1), stride[0]) for x, stride in strides])
    decoded = head.bbox_coder.decode(head.anchor_center(torch.cat(priors)), distances)
    return Predictions(classes, decoded, edges.unflatten(1, (4, -1)))
