"""Contrastive representation distillation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_plugins.functional import crd_loss
from kd_plugins.functional.checks import check_batch, check_choice, check_number
from kd_plugins.functional.gram import as_float, unit
from kd_plugins.losses.base import DistillationLoss
from kd_plugins.registry import MODELS

_WIDEST = 8  # least entries that a step uses of a larger bank, as a multiple of the number of negatives


@MODELS.register_module()
class CRDLoss(DistillationLoss):
    """Contrast of each image's embeddings with memory banks of both networks: :func:`kd_plugins.functional.crd_loss`.

    A linear layer for each network maps its feature to an embedding of L2 norm 1. The student's is compared with the
    teacher's bank and the teacher's with the student's, and the two losses are added. Then the images' entries become
    ``momentum * entry + (1 - momentum) * embedding``, scaled to norm 1. Layers and banks are parts of this module: the
    former train in the same step, at the optimiser's base learning rate; both are saved and resumed.

    Negatives are the entries of other classes, as in the authors' code for CIFAR-100. An image's class is remembered
    with its embedding. Until then its entry is a random direction, which is a fair negative for every class.

    A bank of 16 times ``negatives`` or more is not compared as a whole: each step takes every k-th entry, at least 8
    times ``negatives``, from a random start.

    RepDistiller puts it on the pooled features before the classifier, with weight 0.8, for all of its CIFAR-100 pairs.

    Args:
        num_samples: Number of images of the training set, which is found where this is None: by ``DistillationHook``,
            and for a ``Distiller`` by this project's commands. Two banks of as many entries are kept.
        dim: Size of an embedding.
        negatives: Number of negatives that the mean over the bank stands for.
        tau: Temperature.
        momentum: Share of an entry that a new embedding leaves.
        exclude: What is no negative for an image: ``'class'``, the entries of its class, or ``'sample'``, its own
            alone, which needs no labels.

    Raises:
        ValueError: An option is out of range; in a call, the number of training images is unknown.

    Example:
        >>> import torch
        >>> from kd_plugins.losses import CRDLoss
        >>> _ = torch.manual_seed(0)
        >>> loss = CRDLoss(num_samples=100, negatives=50)
        >>> student, teacher, labels = torch.randn(4, 8), torch.randn(4, 16), torch.tensor([0, 1, 1, 2])
        >>> value = loss(student, teacher, labels, indices=torch.tensor([7, 0, 93, 50]))
        >>> loss.labels[[0, 1, 7, 50, 93]]
        tensor([ 1, -1,  0,  2,  1])
    """

    features = 'embeddings'
    batch_relational = True  # every process has the whole batch's entries
    needs_labels = True
    needs_indices = True
    per_level = True
    student_bank: Tensor
    teacher_bank: Tensor
    labels: Tensor

    def __init__(
        self,
        num_samples: int | None = None,
        dim: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
        exclude: str = 'class',
    ) -> None:
        super().__init__()
        check_number('dim', dim, 1, whole=True)
        check_number('negatives', negatives, 1, whole=True)
        check_number('tau', tau, 0, strict=True)
        check_number('momentum', momentum, 0)
        if momentum >= 1:
            raise ValueError(f'momentum: expected a number below 1, got {momentum!r}')
        check_choice('exclude', exclude, ('class', 'sample'))
        self.dim, self.negatives, self.tau, self.momentum = dim, negatives, tau, momentum
        self.needs_labels = exclude == 'class'
        self.student_head: nn.Linear | None = None
        self.teacher_head: nn.Linear | None = None
        for name in ('student_bank', 'teacher_bank'):
            self.register_buffer(name, torch.empty(0, dim))
        self.register_buffer('labels', torch.empty(0, dtype=torch.long))  # of the entries
        if num_samples is not None:
            check_number('num_samples', num_samples, 1, whole=True)
            self.set_num_samples(num_samples)

    def set_num_samples(self, num_samples: int) -> None:
        """Make the banks of random directions, the same in all processes."""
        super().set_num_samples(num_samples)
        device, generator, bound = self.labels.device, torch.Generator().manual_seed(0), (3 / self.dim) ** 0.5
        for name in ('student_bank', 'teacher_bank'):
            entries = torch.empty(num_samples, self.dim).uniform_(-bound, bound, generator=generator)
            setattr(self, name, entries.to(device))
        # Where no labels are needed, every image is of a class of its own.
        self.labels = (torch.full((num_samples,), -1) if self.needs_labels else torch.arange(num_samples)).to(device)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, indices: Tensor) -> Tensor:
        """Compare features (B, ...) of any sizes, of images of the classes (B,) with the indices (B,)."""
        check_batch('CRDLoss', student, teacher)
        embeddings = self._embeddings(student, teacher)
        labels = indices if labels is None or not self.needs_labels else labels
        trains = torch.is_grad_enabled()  # in a dry run the indices are no images'
        if self.num_samples is None:
            if trains:
                raise ValueError('CRDLoss: expected the number of training images, got none; give num_samples')
            return student.new_zeros(())
        if trains:
            self.labels.index_copy_(0, indices, labels)
        step = max(1, self.num_samples // (_WIDEST * self.negatives))
        part = slice(int(torch.randint(step, ())) if step > 1 else 0, None, step)
        loss = sum(
            crd_loss(x, bank[indices], bank[part], labels, self.labels[part], self.negatives, self.tau)
            for x, bank in zip(embeddings, (self.teacher_bank, self.student_bank), strict=True)
        )
        if trains:
            self._remember(indices, embeddings)
        return loss  # type: ignore[return-value]  # not 0

    def _embeddings(self, student: Tensor, teacher: Tensor) -> list[Tensor]:
        features = [as_float(x).flatten(1) for x in (student, teacher)]
        if self.student_head is None or self.teacher_head is None:
            self.student_head, self.teacher_head = (nn.Linear(x.shape[1], self.dim).to(x.device) for x in features)
        heads = self.student_head, self.teacher_head
        return [unit(as_float(head(x))) for head, x in zip(heads, features, strict=True)]

    @torch.no_grad()
    def _remember(self, indices: Tensor, embeddings: list[Tensor]) -> None:
        # Of an image that comes twice in a batch, the last embedding counts, on a GPU too.
        positions = torch.arange(len(indices), device=indices.device)
        last = torch.where(indices[:, None] == indices, positions, -1).amax(1)
        for bank, x in zip((self.student_bank, self.teacher_bank), embeddings, strict=True):
            entries = self.momentum * bank[indices] + (1 - self.momentum) * x[last]
            bank.index_copy_(0, indices, unit(entries).to(bank.dtype))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f'{prefix}labels')
        if self.num_samples is None and saved is not None and len(saved):
            self.set_num_samples(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)
