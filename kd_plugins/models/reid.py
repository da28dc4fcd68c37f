"""Re-identification: an embedding that is trained by identity and retrieved by similarity."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel, BaseModule
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn import functional as F

from kd_plugins.errors import UserError
from kd_plugins.functional import batch_hard_triplet_loss
from kd_plugins.registry import MODELS
from kd_plugins.utils.distributed import gathered


@MODELS.register_module()
class ReIDHead(BaseModule):
    """BNNeck: the triplet loss before a BatchNorm, the identities' scores and the retrieval feature after it.

    Taps: ``head.bnneck`` (the feature) and ``head.fc`` (the scores).

    Args:
        num_classes: Number of identities in training.
        in_channels: Size of the pooled embedding.
        label_smoothing: Label smoothing of the identity loss, a cross entropy.
        margin: Margin of the batch-hard triplet loss, see :func:`kd_plugins.functional.batch_hard_triplet_loss`.
        triplet_weight: Weight of the triplet loss relative to the identity loss; 0 leaves it out. Under data-parallel
            the triplet loss compares the images of all processes.
        init_cfg: As in :class:`mmengine.model.BaseModule`; None draws the classifier's weights with a std of 0.001.

    References:
        1. Luo et al., Bag of Tricks and A Strong Baseline for Deep Person Re-identification, CVPR workshops 2019.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        label_smoothing: float = 0.1,
        margin: float | None = 0.3,
        triplet_weight: float = 1.0,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Normal', layer='Linear', std=0.001))
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.margin, self.triplet_weight = margin, triplet_weight
        self.bnneck = nn.BatchNorm1d(in_channels)
        self.bnneck.bias.requires_grad_(False)  # [1]: the scores then depend on angles at the origin, as retrieval does
        self.fc = nn.Linear(in_channels, num_classes, bias=False)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Return the identities' scores (N, num_classes) for the last of the embeddings (N, C)."""
        return self.fc(self.bnneck(feats[-1]))

    def loss(self, feats: Sequence[Tensor], data_samples: Sequence[DataSample]) -> dict[str, Tensor]:
        """Return ``loss_id``, ``loss_triplet`` and the accuracy on this batch.

        Raises:
            UserError: A label is not below the number of identities.
        """
        labels = torch.cat([sample.gt_label for sample in data_samples])
        if labels.max() >= self.num_classes:
            raise UserError(
                f'the head has num_classes={self.num_classes}, but the data set holds label '
                f"{int(labels.max())}: set the head's num_classes to the number of identities"
            )
        scores = self(feats)
        losses = {'loss_id': F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)}
        if self.triplet_weight:
            losses['loss_triplet'] = self.triplet_weight * batch_hard_triplet_loss(
                gathered(feats[-1]), gathered(labels), self.margin
            )
        return losses | {'accuracy_top-1': 100 * (scores.argmax(1) == labels).float().mean()}

    def predict(self, feats: Sequence[Tensor], data_samples: Sequence[DataSample] | None = None) -> list[DataSample]:
        """Return the samples with their retrieval feature (C,) as ``feature``."""
        features = self.bnneck(feats[-1]).float()
        samples = data_samples or [DataSample() for _ in features]
        for sample, feature in zip(samples, features, strict=True):
            sample.set_field(feature, 'feature')
        return list(samples)


@MODELS.register_module()
class ReIDModel(BaseModel):
    """Backbone, pooling and a :class:`ReIDHead`, with the structure of mmpretrain's ``ImageClassifier``.

    Its taps are those of a classifier: ``backbone.layer4``, ``neck`` (the embedding), ``head.fc``.

    Args:
        backbone: Config dict of a backbone, of mmpretrain or another package.
        neck: Config dict of a pooling: ``GlobalAveragePooling`` or ``GeneralizedMeanPooling``.
        head: Config dict of a :class:`ReIDHead`.
        last_stride: Stride of the last stage that halves the map: 1 doubles the height and width of its output, 2
            leaves the backbone as it is.
        data_preprocessor: Config dict of the preprocessor; its type is mmpretrain's ``ClsDataPreprocessor`` by default.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        UserError: ``last_stride`` is neither 1 nor 2, or the backbone's last stride cannot be removed.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any],
        head: Mapping[str, Any],
        last_stride: int = 1,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__({'type': 'mmpretrain.ClsDataPreprocessor', **(data_preprocessor or {})}, init_cfg)
        self.backbone, self.neck, self.head = (MODELS.build(dict(config)) for config in (backbone, neck, head))
        if last_stride not in (1, 2):
            raise UserError(f'ReIDModel: expected a last_stride of 1 or 2, got {last_stride!r}')
        if last_stride == 1:
            _remove_last_stride(self.backbone)

    def forward(
        self, inputs: Tensor, data_samples: Sequence[DataSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[DataSample]:
        """Return the identities' scores (``tensor``), the losses (``loss``), or samples with a feature (``predict``).

        Args:
            inputs: Images (N, C, H, W).
            data_samples: Annotations of the images.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``.
        """
        features = self.neck(self.backbone(inputs))
        if mode == 'tensor':
            return self.head(features)
        return getattr(self.head, mode)(features, data_samples)


def _remove_last_stride(backbone: nn.Module) -> None:
    """Set the stride of the convolutions and poolings that halve the map last to 1; no weight changes its shape."""
    sizes: dict[Any, torch.Size] = {}  # by layer, in order of running
    strided = [
        module
        for module in backbone.modules()
        if getattr(module, 'stride', 1) in (2, (2, 2)) and isinstance(module, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d)
    ]
    handles = [
        module.register_forward_hook(lambda module, _, output: sizes.update({module: output.shape[2:]}))
        for module in strided
    ]

    def last_size() -> torch.Size:
        with torch.no_grad():
            return backbone(torch.zeros(1, 3, 64, 64))[-1].shape[2:]

    mode = backbone.training
    backbone.train(False)
    try:
        before = last_size()
        for handle in handles:
            handle.remove()
        for module, size in sizes.items():
            if size == before:
                module.stride = 1 if isinstance(module.stride, int) else (1, 1)
                if not isinstance(module, nn.Conv2d) and module.padding in (0, (0, 0)):
                    module.kernel_size = 1  # its only effect was to halve the map
        after = last_size()
    except (RuntimeError, ValueError, IndexError, AssertionError):
        after = None
    backbone.train(mode)
    if not after or after != torch.Size(2 * x for x in before):
        raise UserError(f'ReIDModel: the last stride of {type(backbone).__name__} cannot be removed: set last_stride=2')
