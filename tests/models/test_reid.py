"""The re-identification model: its losses, its feature, its stride, and its distillation."""

import pytest
import torch
from mmpretrain.structures import DataSample
from tiny import equal, market_folder, reid_config, train, weights
from torch import nn
from torch.nn import functional as F

from kd_plugins.errors import UserError
from kd_plugins.functional import batch_hard_triplet_loss
from kd_plugins.models import ReIDHead, ReIDModel

BACKBONES = {
    'resnet18': (dict(type='mmpretrain.ResNet', depth=18), 512),
    'resnet50': (dict(type='mmpretrain.ResNet', depth=50), 2048),
    'resnet50-d': (dict(type='mmpretrain.ResNetV1d', depth=50), 2048),
    'shufflenet-v2': (dict(type='mmpretrain.ShuffleNetV2'), 1024),
    'res2net': (dict(type='mmpretrain.Res2Net', depth=50), 2048),
    'efficientnet': (dict(type='mmpretrain.EfficientNet', arch='b0'), 1280),  # all stages in one child
    'mobilenet-v2': (dict(type='mmpretrain.MobileNetV2'), 1280),
    'cifar': (dict(type='kd_plugins.CifarResNet', depth=8), 64),
}


def model(backbone: dict, channels: int, last_stride: int = 1, neck: str = 'GlobalAveragePooling') -> ReIDModel:
    return ReIDModel(
        backbone=backbone,
        neck=dict(type=f'mmpretrain.{neck}'),
        last_stride=last_stride,
        head=dict(type='kd_plugins.ReIDHead', num_classes=3, in_channels=channels),
    )


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='mmpretrain.HRNet', arch='w18'),
        dict(type='mmpretrain.SwinTransformer', arch='tiny'),
        dict(type='mmpretrain.ConvNeXt', arch='tiny'),
        dict(type=nn.Identity),
    ],
    ids=lambda backbone: str(backbone['type']),
)
def test_a_last_stride_that_cannot_be_removed_is_an_error(backbone: dict) -> None:
    with pytest.raises(UserError, match='cannot be removed: set last_stride=2'):
        model(backbone, 3)


@pytest.mark.parametrize(('backbone', 'channels'), BACKBONES.values(), ids=BACKBONES)
def test_last_stride_1_doubles_the_last_map_and_keeps_the_weights(backbone: dict, channels: int) -> None:
    kept, wider = (model(backbone, channels, stride).eval() for stride in (2, 1))
    wider.load_state_dict(kept.state_dict())
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        small, large = (net.backbone(images)[-1] for net in (kept, wider))
        assert wider(images).shape == (1, 3)
    assert large.shape == (1, channels, 2 * small.shape[2], 2 * small.shape[3])


@pytest.mark.parametrize('neck', ['GlobalAveragePooling', 'GeneralizedMeanPooling'])
def test_losses_and_feature_are_those_of_the_strong_baseline(neck: str) -> None:
    net = model(*BACKBONES['cifar'], neck=neck)
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 0, 1, 1, 2, 2])
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    losses = net(images, samples, mode='loss')
    (embedding,) = net.neck(net.backbone(images))
    # Over the batch, as BatchNorm does in training, with the scale and shift it starts with.
    feature = (embedding - embedding.mean(0)) / (embedding.var(0, unbiased=False) + 1e-5).sqrt()
    scores = feature @ net.head.fc.weight.T
    smooth = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    expected = -(smooth * scores.log_softmax(1)).sum(1).mean()
    assert losses['loss_id'].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses['loss_triplet'].item() == pytest.approx(
        batch_hard_triplet_loss(embedding, labels, 0.3).item(), rel=1e-4
    )
    assert losses['accuracy_top-1'].item() == pytest.approx(100 * (scores.argmax(1) == labels).double().mean().item())
    net.eval()
    with torch.no_grad():
        (embedding,) = net.neck(net.backbone(images))
        norm = net.head.bnneck
        feature = (embedding - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        predicted = torch.stack([sample.feature for sample in net(images, samples, mode='predict')])
        torch.testing.assert_close(predicted, feature)
        torch.testing.assert_close(net(images), feature @ net.head.fc.weight.T)
        assert len(net(images, mode='predict')) == 6


def test_errors() -> None:
    with pytest.raises(UserError, match='num_classes=3, but the data set holds label 7'):
        ReIDHead(3, 4).loss((torch.randn(2, 4),), [DataSample().set_gt_label(i) for i in (0, 7)])
    with pytest.raises(UserError, match='last_stride of 1 or 2, got 3'):
        model(*BACKBONES['cifar'], last_stride=3)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return market_folder(tmp_path_factory.mktemp('market'))


@pytest.fixture(scope='module')
def teacher(data, tmp_path_factory):
    """Train a wider network, and return the config dict that loads it."""
    folder = tmp_path_factory.mktemp('teacher')
    config = wider(reid_config(data, folder))
    torch.save({'state_dict': train(config).model.state_dict()}, folder / 'teacher.pth')
    return dict(config=config.model.to_dict() | dict(_scope_='mmpretrain'), checkpoint=str(folder / 'teacher.pth'))


def wider(config):
    config.model.backbone.width, config.model.head.in_channels = 6, 24
    return config


def term(name: str, tap: str, **loss: object) -> dict:
    return dict(
        name=name,
        loss=dict(type=f'kd_plugins.{name.split("_")[0].upper()}Loss', **loss),
        student=tap,
        teacher=tap,
        weight=0.1,
    )


TERMS = [
    term('kd', 'head.fc'),
    term('at', 'backbone.stage3'),
    term('sp', 'backbone.stage3'),
    term('rkd', 'neck'),
    term('rkd_bn', 'head.bnneck'),
    term('nst', 'backbone.stage3'),
    term('nst_gauss', 'backbone.stage3', kernel='gaussian'),
]


def test_every_loss_distils_it_by_hook_as_by_model(data, teacher, tmp_path) -> None:
    stock = train(reid_config(data, tmp_path / 'stock'))
    hook = train(
        reid_config(
            data,
            tmp_path / 'hook',
            custom_hooks=[dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=TERMS)],
        )
    )
    config = reid_config(data, tmp_path / 'model')
    config.model = dict(
        type='kd_plugins.Distiller', student=config.model, teacher=teacher, terms=TERMS, input_shape=(3, 32, 16)
    )
    distiller = train(config)
    assert equal(weights(hook.model), weights(distiller.model))
    assert weights(hook.model).keys() == weights(stock.model).keys()
    assert not equal(weights(hook.model), weights(stock.model))
    assert hook.model.head.bnneck.bias.abs().max() == 0  # this alone does not train
    logged = {key for key in hook.message_hub.log_scalars if key.startswith('train/loss_')}
    assert logged == {f'train/loss_{name}' for name in ('id', 'triplet', *(t['name'] for t in TERMS))}


def test_a_resumed_run_ends_at_the_same_weights(data, tmp_path) -> None:
    whole = train(reid_config(data, tmp_path / 'whole', epochs=3))
    again = reid_config(
        data, tmp_path / 'again', epochs=3, resume=True, load_from=str(tmp_path / 'whole' / 'epoch_1.pth')
    )
    assert equal(weights(train(again).model), weights(whole.model))
