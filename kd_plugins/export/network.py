"""What of a network an exported file holds: images in, named tensors out, and what these mean."""

import copy
import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kd_plugins.distillation.origins import normalisation_of
from kd_plugins.errors import UserError
from kd_plugins.models.reid import ReIDModel


def channels_of(network: nn.Module) -> int:
    """Return how many channels a network's images have: as many as their means, of which one may be for all."""
    count = getattr(getattr(network, 'data_preprocessor', None), 'mean', torch.zeros(1)).numel()
    first = next((x for x in network.modules() if isinstance(x, nn.Conv2d)), None)
    return count if count > 1 else 1 if first is not None and first.in_channels == 1 else 3


class Exportable(nn.Module):
    """The part of a network that is exported: images (N, C, H, W) in, a tuple of tensors out.

    A subclass states what the tensors are, and makes predictions of them as the network itself does, so that the same
    metric scores a file and the network.

    Args:
        network: A whole model of OpenMMLab, with its ``data_preprocessor``.
        normalize: Whether the images are pixels of 0 to 255, which are normalised here; else they are normalised
            already.
    """

    task = ''
    dynamic_size = False  # whether the height and width of the images may vary, too
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalize: bool = False) -> None:
        super().__init__()
        self.normalize, self.network = normalize, self.needed(network)
        self.eval()
        self.whole = (network,)  # no submodule: layers that no output needs are in no file
        preprocessor: Any = getattr(network, 'data_preprocessor', None)
        stated = getattr(preprocessor, '_enable_normalize', False)
        self.register_buffer('mean', preprocessor.mean.flatten()[:, None, None] if stated else torch.zeros(1, 1, 1))
        self.register_buffer('std', preprocessor.std.flatten()[:, None, None] if stated else torch.ones(1, 1, 1))
        grey = channels_of(network) == 1
        self.channels = 'gray' if grey else 'RGB' if normalisation_of(preprocessor).sees_rgb else 'BGR'
        self.names: list[str] = []

    def needed(self, network: Any) -> nn.Module:
        """Return the part of the network that the outputs need."""
        return network

    def compute(self, images: Tensor) -> Any:
        """Return the network's outputs for normalised images, nested or not."""
        raise NotImplementedError

    def predict(self, outputs: Sequence[Tensor], data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Return data samples with what a metric reads, from the outputs."""
        raise UserError(f'--score: {self.meaning} have no metric; score the network that they become a part of')

    def name_outputs(self, outputs: Any) -> list[str]:
        """Return a name for each of the outputs."""
        raise NotImplementedError

    @property
    def meaning(self) -> str:
        """What the outputs are, in words."""
        raise NotImplementedError

    def normal(self, images: Tensor) -> Tensor:
        """Return images as the network takes them, of those that this module takes."""
        return (images - self.mean) / self.std if self.normalize else images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs; see the class."""
        outputs = self.compute(self.normal(images))
        if not self.names:
            self.names = self.name_outputs(outputs)
        return tuple(pytree.tree_leaves(outputs))

    def pixels(self, images: Tensor) -> Tensor:
        """Return normalised images as this module takes them."""
        return images * self.std + self.mean if self.normalize else images

    def expected(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that a file has to give."""
        return self(images)

    def differences(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> Iterator[tuple[str, float]]:
        """Yield each output's name, and ``max |found - expected| / max |expected|``.

        Relative to the size of the whole output, since a single value may be 0.
        """
        for name, own, other in zip(self.names, expected, found, strict=True):
            size = max(own.abs().max().item(), torch.finfo(own.dtype).tiny)
            yield name, (own - other).abs().max().item() / size

    def metadata(self, shape: Sequence[int], classes: Sequence[str] | None) -> dict[str, str]:
        """Return what a program needs to know that runs the file: texts, lists among them as JSON.

        Args:
            shape: Shape of a batch of images.
            classes: Names of the classes, where they are known.
        """
        each = torch.ones(shape[1], 1, 1)  # one number may be given for all channels
        stated = {name: (value.cpu() * each).flatten().tolist() for name, value in self.named_buffers(recurse=False)}
        preprocessor: Any = getattr(self.whole[0], 'data_preprocessor', None)
        padding = getattr(preprocessor, 'test_cfg', None)  # mmseg's, which pads otherwise in training
        divisor = (
            (padding or {}).get('size_divisor', 1)
            if hasattr(preprocessor, 'seg_pad_val')
            else getattr(preprocessor, 'pad_size_divisor', 1)
        )
        pads = divisor > 1 or (hasattr(preprocessor, 'seg_pad_val') and 'size' in (padding or {}))
        if pads:
            value = torch.full_like(self.mean, float(preprocessor.pad_value))  # of normalised images
            stated['pad_value'] = self.pixels(value).flatten().tolist()
        return {
            'task': self.task,
            'height': str(shape[2]),
            'width': str(shape[3]),
            'dynamic_axes': json.dumps(['batch', 'height', 'width'][: 3 if self.dynamic_size else 1]),
            'channel_order': self.channels,
            **({'pad_size_divisor': str(divisor)} if divisor > 1 else {}),
            **({'pad_sides': 'right and bottom'} if pads else {}),
            **{name: json.dumps([float(f'{x:.7g}') for x in values]) for name, values in stated.items()},
            'normalization': (
                'inside: give pixels of 0 to 255'
                if self.normalize
                else 'outside: give (pixels of 0 to 255 - mean) / std'
            ),
            'classes': json.dumps([*map(str, classes or ())], ensure_ascii=False),
            'outputs': json.dumps(self.names),
            'meaning': self.meaning,
        }


class Classifier(Exportable):
    """A classifier of mmpretrain, up to its logits."""

    task = 'classification'

    @property
    def meaning(self) -> str:
        """What the logits are."""
        kinds = {kind.__name__ for kind in type(getattr(self.network, 'head', None)).__mro__}
        independent = 'MultiLabelClsHead' in kinds
        return 'logits, one for each class, before the ' + (
            'sigmoid: an image may have several classes' if independent else 'softmax'
        )

    def compute(self, images: Tensor) -> Any:
        """Return the logits (N, classes)."""
        return self.network(images, mode='tensor')

    def name_outputs(self, outputs: Any) -> list[str]:
        """Name the logits."""
        if not isinstance(outputs, Tensor):
            head = type(getattr(self.network, 'head', self.network)).__name__
            raise UserError(f'{head} returns {len(pytree.tree_leaves(outputs))} tensors, expected logits: it is not '
                            'exported; --backbone exports the backbone alone')  # fmt: skip
        return ['logits']

    def predict(self, outputs: Sequence[Tensor], data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Return samples with scores and labels."""
        owner: Any = self.network if hasattr(self.network, '_get_predictions') else self.network.head
        return owner._get_predictions(outputs[0], data_samples)


class Embedding(Exportable):
    """A re-identification model, up to the embedding that is retrieved by."""

    task = 're-identification'
    meaning = 'embedding after the BNNeck, not normalised: compare by cosine similarity'

    def needed(self, network: Any) -> nn.Module:
        """Return all but the classifier of identities."""
        parts = dict(backbone=network.backbone, neck=network.neck, bnneck=network.head.bnneck)
        return nn.ModuleDict(parts)

    def compute(self, images: Tensor) -> Tensor:
        """Return the embeddings (N, D)."""
        network: Any = self.network
        return network.bnneck(network.neck(network.backbone(images))[-1])

    def name_outputs(self, outputs: Any) -> list[str]:
        """Name the embedding."""
        return ['embedding']

    def predict(self, outputs: Sequence[Tensor], data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Return samples with their feature."""
        for sample, feature in zip(data_samples, outputs[0], strict=True):
            sample.set_field(feature, 'feature')
        return data_samples


class Backbone(Exportable):
    """The backbone of a model, or a model without a head."""

    task = 'features'
    meaning = 'features of the backbone'

    def needed(self, network: Any) -> nn.Module:
        """Return the backbone."""
        if not isinstance(getattr(network, 'backbone', None), nn.Module):
            raise UserError(f'{type(network).__name__} has no backbone to export')
        return network.backbone

    def compute(self, images: Tensor) -> Any:
        """Return the features, of each stage that the backbone outputs."""
        return self.network(images)

    def name_outputs(self, outputs: Any) -> list[str]:
        """Number the features, where there are several."""
        count = len(pytree.tree_leaves(outputs))
        return ['features'] if count == 1 else [f'features_{i}' for i in range(count)]


class Headless(Backbone):
    """A classifier of mmpretrain without a head, up to its last features."""

    def needed(self, network: Any) -> nn.Module:
        """Return the network."""
        return network

    def compute(self, images: Tensor) -> Any:
        """Return the features after the neck, where there is one."""
        return self.network(images, mode='tensor')


class Detector(Exportable):
    """A one-stage detector of mmdet, up to what its head returns for each level of the pyramid."""

    task = 'detection'
    dynamic_size = True
    meaning = "raw outputs of the detector's head at each level, before decoding and NMS"

    def compute(self, images: Tensor) -> Any:
        """Return the head's outputs, lists of levels."""
        return self.network(images, mode='tensor')

    def name_outputs(self, outputs: Any) -> list[str]:
        """Name the outputs as the head's ``predict_by_feat`` does, and number the levels: ``cls_score_0``."""
        self._structure = pytree.tree_structure(outputs)
        head: Any = self.network.bbox_head
        names = [*inspect.signature(head.predict_by_feat).parameters]
        return [
            f'{name.removesuffix("es" if name.endswith("sses") else "s")}_{level}'
            for name, levels in zip(names, outputs, strict=False)
            for level in range(len(pytree.tree_leaves(levels)))
        ]

    def predict(self, outputs: Sequence[Tensor], data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Return samples with boxes, scores and labels after the head's own decoding and NMS."""
        network: Any = self.network
        found = network.bbox_head.predict_by_feat(
            *pytree.tree_unflatten(list(outputs), self._structure),
            batch_img_metas=[sample.metainfo for sample in data_samples],
            rescale=True,
        )
        return network.add_pred_to_datasample(data_samples, found)


class Segmentor(Exportable):
    """A segmentor of mmseg, up to the scores that its head returns, at a part of the images' size."""

    task = 'segmentation'

    @property
    def meaning(self) -> str:
        """What the scores are, and what to do with them."""
        head: Any = self._head
        corners = ' (align_corners=True)' if head.align_corners else ''
        resized = f'resize them bilinearly{corners} to the image'
        if getattr(head, 'out_channels', None) == 1:
            return f'score of class 1 at each place: {resized} and take the sigmoid; above {head.threshold} it is one'
        return f'scores of the classes at each place, before the softmax: {resized}, and take the largest'

    @property
    def _head(self) -> nn.Module:
        heads: Any = self.network.decode_head
        return heads[-1] if isinstance(heads, nn.ModuleList) else heads

    def needed(self, network: Any) -> nn.Module:
        """Return all but the auxiliary heads of the training."""
        network = copy.copy(network)
        network._modules = {name: x for name, x in network._modules.items() if name != 'auxiliary_head'}
        return network

    def compute(self, images: Tensor) -> Any:
        """Return the scores (N, classes, H', W')."""
        return self.network(images, mode='tensor')

    def name_outputs(self, outputs: Any) -> list[str]:
        """Name the scores."""
        if not isinstance(outputs, Tensor):
            head = type(self.network.decode_head).__name__
            raise UserError(f'{head} returns {len(pytree.tree_leaves(outputs))} tensors, expected scores of pixels: '
                            'it is not exported; --backbone exports the backbone alone')  # fmt: skip
        return ['scores']

    def predict(self, outputs: Sequence[Tensor], data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Return samples with the class of each pixel of the image as it was before the pipeline."""
        network: Any = self.network
        head: Any = self._head
        scores = head.predict_by_feat(outputs[0], [sample.metainfo for sample in data_samples])
        return network.postprocess_result(scores, data_samples)


def exportable(network: nn.Module, backbone: bool = False, normalize: bool = False, decode: bool = False) -> Exportable:
    """Return the part of a model that is exported.

    Args:
        network: The model, with its weights.
        backbone: Whether to export its backbone alone.
        normalize: As for :class:`Exportable`.
        decode: Whether to export a detector with its decoding and NMS.

    Raises:
        UserError: The model is of a kind that is not exported.
    """
    kinds = {kind.__name__ for kind in type(network).__mro__}
    detector = 'SingleStageDetector' in kinds and hasattr(getattr(network, 'bbox_head', None), 'predict_by_feat')
    if decode and (backbone or not (detector or hasattr(network, 'roi_head'))):
        what = 'a backbone' if backbone else type(network).__name__
        raise UserError(f'--decode: {what} has no boxes to decode, expected a one-stage detector of mmdet')
    if backbone:
        return Backbone(network, normalize)
    if isinstance(network, ReIDModel):
        return Embedding(network, normalize)
    if 'BaseClassifier' in kinds:
        # mmpretrain's wrappers of other libraries' classifiers have no head of their own.
        headless = not getattr(network, 'with_head', True) and not hasattr(network, '_get_predictions')
        return (Headless if headless else Classifier)(network, normalize)
    if detector and decode:
        from kd_plugins.export.decoding import Detections  # of mmdet's detectors alone

        return Detections(network, normalize)
    if detector:
        return Detector(network, normalize)
    if 'EncoderDecoder' in kinds and 'DepthEstimator' not in kinds:
        head: Any = getattr(network, 'decode_head', None)
        if 'batch_data_samples' in inspect.signature(head.forward).parameters:
            raise UserError(
                f'{type(head).__name__} predicts masks, and is not exported; --backbone exports the backbone alone'
            )
        return Segmentor(network, normalize)
    what = 'two-stage detector' if hasattr(network, 'roi_head') else 'model'
    backbone_alone = ', and --backbone the backbone alone' if hasattr(network, 'backbone') else ''
    raise UserError(
        f'{type(network).__name__} is a {what} that is not exported: classifiers, re-ID models, one-stage detectors '
        f"and segmentors are; mmdeploy exports other models of OpenMMLab's{backbone_alone}"
    )
