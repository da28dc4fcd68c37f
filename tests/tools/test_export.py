"""``tools/export.py``: files compute what torch does, say what they take, and score the same."""

import argparse
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from tiny import (
    CLASSES,
    classification_config,
    classifier,
    coco_folder,
    image_folder,
    market_folder,
    reid_config,
    saved_teacher,
)
from torch import nn

from kd_plugins.checkpoint import save_weights
from kd_plugins.datasets.cifar import CIFAR10
from kd_plugins.errors import UserError
from kd_plugins.evaluation import load_features, rank_matches
from kd_plugins.export import files
from kd_plugins.export.card import latency_of, macs_of
from kd_plugins.export.files import Runtime
from kd_plugins.export.images import channel_order
from kd_plugins.export.network import Exportable, channels_of, exportable
from kd_plugins.export.run import teachers_of
from kd_plugins.registry import MODELS

ROOT = Path(__file__).parents[2]
TEST = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]


def saved(model, path, scope='mmpretrain', **meta):
    """Save a network of random weights and random statistics, and return it."""
    torch.manual_seed(0)
    with MODELS.switch_scope_and_registry(scope) as registry:
        network = registry.build(model)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    save_weights(network.state_dict(), path, meta)
    return network.eval()


def with_test_set(config, pipeline=TEST):
    """Add a test set to a config: its training images, as they are."""
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    loader['dataset'] = dict(loader['dataset'], pipeline=pipeline)
    config.merge_from_dict(dict(test_dataloader=loader, test_cfg={}, test_evaluator=[dict(type='Accuracy')]))
    return config


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Export by the command line; return the file's runtime and the card."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('kd_plugins.export.run.latency_of', lambda *_: 1.0)
    main = runpy.run_path(str(ROOT / 'tools/export.py'))['main']

    def run(*options, to='student.onnx', config='config.py', checkpoint='student.pth'):
        main([config, checkpoint, '--to', to, *options])
        return Runtime(to), json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.mark.parametrize('to', ['student.onnx', 'student.pt2'])
def test_a_classifier_computes_and_scores_what_torch_does_and_says_what_it_takes(run, tmp_path, to):
    model = classifier()
    config = with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run', model))
    config.dump(tmp_path / 'config.py')
    names = [f'class{i}' for i in range(CLASSES)]
    network = saved(model, tmp_path / 'student.pth', dataset_meta=dict(classes=names))
    runtime, card = run('--score', to=to)
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(runtime(images)[0], network(images), atol=1e-5, rtol=1e-5)
    assert card['difference'] < 1e-5
    assert card['output'] == 'logits'
    assert card['student']['parameters'] == sum(x.numel() for x in network.parameters())
    stem, first = 16 * 16 * 3 * 9 * 4, 2 * 16 * 16 * 4 * 9 * 4
    second, third = 8 * 8 * 9 * (4 * 8 + 8 * 8), 4 * 4 * 9 * (8 * 16 + 16 * 16)
    shortcuts = card['student']['macs'] - (stem + first + second + third + 16 * CLASSES)
    assert shortcuts in (0, 8 * 8 * 4 * 8 + 4 * 4 * 8 * 16)
    runner = Runner.from_cfg(config)
    runner.model.load_state_dict(network.state_dict())
    assert card['student']['metrics'] == runner.test()
    about = runtime.metadata
    assert json.loads(about['classes']) == names
    assert (json.loads(about['mean']), json.loads(about['std'])) == ([120.0] * 3, [60.0] * 3)
    assert (about['height'], about['width'], about['channel_order']) == ('16', '16', 'BGR')
    assert (about['config'], about['checkpoint']) == ('config.py', 'student.pth')
    if to == 'student.onnx':
        graph = onnx.load(tmp_path / to).graph
        sizes = [x.dim_param or x.dim_value for x in graph.input[0].type.tensor_type.shape.dim]
        assert sizes == ['batch', 3, 16, 16]
        assert [x.dim_param or x.dim_value for x in graph.output[0].type.tensor_type.shape.dim] == ['batch', CLASSES]


def test_multiply_adds_are_those_of_attention_and_deformable_convolutions_too():
    tokens, width, heads = 10, 16, 4
    attention = torch.nn.MultiheadAttention(width, heads, batch_first=True).eval()
    layer = torch.nn.TransformerEncoderLayer(width, heads, 32, batch_first=True).eval()
    x = torch.randn(1, tokens, width)
    fused = torch.backends.mha.get_fastpath_enabled()
    own = 4 * tokens * width**2 + 2 * tokens**2 * width  # projections; products of queries and keys, and with values
    assert macs_of(lambda x: attention(x, x, x, need_weights=False), x) == own
    assert macs_of(layer, x) == own + 2 * tokens * width * 32
    assert torch.backends.mha.get_fastpath_enabled() == fused
    functional = torch.nn.functional.scaled_dot_product_attention
    assert macs_of(lambda x: functional(x, x, x), x) == 2 * tokens**2 * width
    weight, offset = torch.randn(6, 2, 3, 3), torch.zeros(1, 18, 8, 8)
    deformable = torchvision.ops.deform_conv2d
    assert macs_of(lambda x: deformable(x, offset, weight, padding=1), torch.randn(1, 4, 8, 8)) == 6 * 64 * 2 * 9


@pytest.mark.parametrize('name', ['folder.npz', 'text/found.npz'])
def test_features_that_cannot_be_written_are_refused_before_the_score(run, tmp_path, name):
    reid_config(market_folder(tmp_path / 'market'), tmp_path / 'run').dump(tmp_path / 'config.py')
    (tmp_path / 'folder.npz').mkdir()
    (tmp_path / 'text').write_text('')
    with pytest.raises(UserError, match=rf'^--features {name} cannot be written .*name a file in a folder of yours$'):
        run('--features', name, checkpoint='nosuch.pth')


def test_the_score_of_re_identification_is_that_of_features_by_onnxruntime(run, tmp_path):
    config = reid_config(market_folder(tmp_path / 'market'), tmp_path / 'run')
    config.model.data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.0, 57.0, 56.0], to_rgb=True)
    config.dump(tmp_path / 'config.py')
    network = saved(config.model, tmp_path / 'student.pth')
    runtime, card = run('--features', 'found.npz', '--normalize')
    config.test_evaluator.update(save_to=str(tmp_path / 'torch.npz'))
    runner = Runner.from_cfg(config)
    runner.model.load_state_dict(network.state_dict())
    expected = runner.test()
    found, own = load_features(tmp_path / 'found.npz'), load_features(tmp_path / 'torch.npz')
    assert rank_matches(found).summary()['mAP'] == pytest.approx(expected['reid/mAP'], abs=1e-5)
    assert card['student']['metrics'] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(found.gallery_features, own.gallery_features, atol=1e-4)
    assert 0 < expected['reid/mAP'] < 1
    unused = network.head.fc.weight.numel()  # the identities' classifier
    assert card['student']['parameters'] == sum(x.numel() for x in network.parameters()) - unused
    about = runtime.metadata
    assert (about['channel_order'], about['height'], about['width']) == ('RGB', '32', '16')
    assert about['normalization'].startswith('inside')
    assert 'not normalised' in about['meaning']
    pixels = torch.randint(0, 256, (2, 3, 32, 16)).float()
    assert json.loads(about['mean']) == [123.675, 116.28, 103.53]
    mean, std = (torch.tensor(json.loads(about[name]))[:, None, None] for name in ('mean', 'std'))
    with torch.no_grad():
        expected = network.head.bnneck(network.neck(network.backbone((pixels - mean) / std))[-1])
    torch.testing.assert_close(runtime(pixels)[0], expected, atol=1e-4, rtol=1e-4)


DETECTOR = dict(
    type='RetinaNet',
    _scope_='mmdet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=18,
        base_channels=4,
        stem_channels=4,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
    ),
    neck=dict(type='FPN', in_channels=[4, 8], out_channels=8, num_outs=2),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=1,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=8, scales_per_octave=1, ratios=[1.0], strides=[4, 8]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
    ),
    test_cfg=dict(
        nms_pre=100, min_bbox_size=0, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.5), max_per_img=9
    ),
)


def detection_config(tmp_path):
    """Write and return a config of a detector with a test set."""
    data = coco_folder(tmp_path / 'coco', images=3)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(96, 64), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    dataset = dict(
        type='CocoDataset',
        data_root=f'{data}/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('person',)),
        test_mode=True,
        pipeline=pipeline,
    )
    sampler = dict(type='DefaultSampler', shuffle=False)
    config = Config(
        dict(
            default_scope='mmdet',
            model=DETECTOR,
            work_dir=str(tmp_path / 'run'),
            experiment_name=str(tmp_path).replace('/', '_'),
            test_dataloader=dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset),
            test_cfg={},
            test_evaluator=[dict(type='VOCMetric')],
            log_level='ERROR',
        )
    )
    config.dump(tmp_path / 'config.py')
    return config


def test_a_detector_gives_raw_outputs_at_any_size_and_scores_as_torch_does(run, tmp_path):
    config = detection_config(tmp_path)
    network = saved(config.model, tmp_path / 'student.pth', 'mmdet')
    runtime, card = run('--score', to='student.pt2')
    about = runtime.metadata
    assert json.loads(about['outputs']) == ['cls_score_0', 'cls_score_1', 'bbox_pred_0', 'bbox_pred_1']
    assert (about['pad_size_divisor'], about['pad_sides']) == ('32', 'right and bottom')
    assert json.loads(about['pad_value']) == [0.0] * 3
    images = torch.randn(3, 3, 96, 128)
    with torch.no_grad():
        scores, boxes = network(images)
    for found, expected in zip(runtime(images), [*scores, *boxes], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    runner = Runner.from_cfg(config)
    runner.model.load_state_dict(network.state_dict())
    assert card['student']['metrics'] == pytest.approx(runner.test(), abs=1e-5)


LEVELS = dict(num_classes=3, in_channels=8, feat_channels=32)
POINTS = dict(type='MlvlPointGenerator', offset=0, strides=[4, 8])
NMS = dict(nms_pre=40, min_bbox_size=0, score_thr=0.2, nms=dict(type='nms', iou_threshold=0.3), max_per_img=9)
HEADS = {
    'RetinaNet': dict(DETECTOR['bbox_head'], **LEVELS),
    'FCOS': dict(type='FCOSHead', **LEVELS, stacked_convs=1, strides=[4, 8], norm_cfg=None),
    'GFL': dict(
        type='GFLHead',
        **LEVELS,
        stacked_convs=1,
        norm_cfg=None,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[4, 8]
        ),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
    ),
    'RTMDet': dict(
        type='RTMDetHead',
        **LEVELS,
        stacked_convs=1,
        with_objectness=False,
        anchor_generator=POINTS,
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='GIoULoss'),
    ),
    'YOLOX': dict(type='YOLOXHead', **LEVELS, stacked_convs=1, strides=[4, 8]),
}


def detector_of(kind, **settings):
    """Return a detector with spread scores, of ``HEADS``."""
    head = HEADS[kind] if isinstance(kind, str) else kind
    model = ConfigDict(DETECTOR, type='SingleStageDetector', bbox_head=head, test_cfg=NMS | settings)
    torch.manual_seed(0)
    with MODELS.switch_scope_and_registry('mmdet') as registry:
        network = registry.build(model).eval()
    for module in network.bbox_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def test_outputs_are_named_in_the_singular():
    part = exportable(detector_of('YOLOX'))
    part(torch.zeros(1, 3, 64, 64))
    assert part.names == [f'{name}_{level}' for name in ('cls_score', 'bbox_pred', 'objectness') for level in (0, 1)]


@pytest.mark.parametrize('agnostic', [False, True])
@pytest.mark.parametrize('kind', HEADS)
def test_detections_are_those_of_mmdets_head(kind, agnostic):
    part = exportable(detector_of(kind, nms=dict(NMS['nms'], class_agnostic=agnostic)), decode=True)
    images = 3 * torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        boxes, scores, labels = part(images)
        expected = part.expected(images)
    assert (boxes.shape, scores.shape, labels.shape) == ((3, 9, 4), (3, 9), (3, 9))
    assert (expected[2] >= 0).sum() > 4
    torch.testing.assert_close((boxes, scores, labels), expected)
    assert [*part.differences(expected, (boxes, scores, labels))] == [
        ('boxes', pytest.approx(0, abs=1e-6)),
        ('scores', pytest.approx(0, abs=1e-6)),
    ]


def test_a_file_with_detections_takes_any_batch_and_size_and_scores_as_torch_does(run, tmp_path):
    config = detection_config(tmp_path)
    network = saved(config.model, tmp_path / 'student.pth', 'mmdet')
    runtime, card = run('--decode', '--score')
    assert json.loads(runtime.metadata['outputs']) == ['boxes', 'scores', 'labels']
    assert 'label -1' in runtime.metadata['meaning']
    for images in (torch.randn(1, 3, 64, 96), torch.randn(3, 3, 160, 128)):
        samples = [DetDataSample(metainfo=dict(img_shape=images.shape[2:], scale_factor=(1, 1))) for _ in images]
        with torch.no_grad():
            expected = network.predict(images, samples)
        for sample, boxes, scores, labels in zip(expected, *runtime(images), strict=True):
            found, count = sample.pred_instances, len(sample.pred_instances)
            torch.testing.assert_close(boxes[:count], found.bboxes, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(scores[:count], found.scores, atol=1e-5, rtol=1e-4)
            assert labels.tolist() == found.labels.tolist() + [-1] * (9 - count)
            assert not boxes[count:].any()
            assert not scores[count:].any()
    runner = Runner.from_cfg(config)
    runner.model.load_state_dict(network.state_dict())
    expected = runner.test()
    assert expected['pascal_voc/mAP'] > 0
    assert card['student']['metrics'] == pytest.approx(expected, abs=1e-5)


def test_padding_is_stated_as_pixels_and_noted_where_a_score_may_differ(caplog):
    """mmdet pads what it has normalised."""
    network = detector_of('RetinaNet')
    part = exportable(network, normalize=True, decode=True)
    assert json.loads(part.metadata((1, 3, 64, 64), None)['pad_value']) == [120.0] * 3
    network.data_preprocessor.pad_size_divisor = 1
    assert 'pad_value' not in part.metadata((1, 3, 64, 64), None)
    MMLogger.get_instance('padded', log_level='INFO').addHandler(caplog.handler)
    outputs = torch.zeros(1, 9, 4), torch.zeros(1, 9), torch.full((1, 9), -1)
    for width, lines in ((96, 0), (90, 1), (90, 1)):
        sample = dict(img_shape=(64, width), batch_input_shape=(64, 96), scale_factor=(1, 1))
        part.predict(outputs, [DetDataSample(metainfo=sample)])
        assert sum('images are padded' in text for text in caplog.messages) == lines


def test_a_detection_that_is_missing_or_elsewhere_or_of_another_class_is_a_difference():
    part = exportable(detector_of('RetinaNet'), decode=True)
    part.names = ['boxes', 'scores', 'labels']
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 100, 100], [0, 0, 0, 0]]])
    scores, labels = torch.tensor([[0.5, 0.4, 0.0]]), torch.tensor([[0, 1, -1]])
    exchanged = [x[:, [1, 0, 2]] for x in (boxes, scores, labels)]

    def differences(boxes=boxes, scores=scores, labels=labels):
        return [value for _, value in part.differences(expected, (boxes, scores, labels))]

    expected = boxes, scores, labels
    assert differences(*exchanged) == [0, 0]
    assert differences(boxes=boxes + 2) == pytest.approx([0.02, 0])
    assert differences(scores=scores * 0.9) == pytest.approx([0, 0.1])
    assert differences(labels=torch.tensor([[0, 0, -1]])) == [torch.inf] * 2
    assert differences(labels=torch.tensor([[0, -1, -1]])) == [torch.inf] * 2


@pytest.mark.parametrize(
    ('head', 'settings', 'words'),
    [
        (
            dict(HEADS['GFL'], type='PAAHead', loss_cls=dict(type='FocalLoss')),
            {},
            r'PAAHead decodes in a way of its own \(PAAHead\.predict_by_feat',
        ),
        ('RetinaNet', dict(nms=dict(type='soft_nms', iou_threshold=0.5)), 'soft_nms'),
    ],
)
def test_a_head_that_decodes_otherwise_is_refused_by_name(head, settings, words):
    with pytest.raises(UserError, match=words):
        exportable(detector_of(head, **settings), decode=True)


def test_decoding_of_what_has_no_boxes_is_refused():
    with MODELS.switch_scope_and_registry('mmpretrain') as registry:
        network = registry.build(classifier())
    with pytest.raises(UserError, match='--decode: ImageClassifier has no boxes to decode'):
        exportable(network, decode=True)


def test_an_ensemble_is_not_exported_as_one_of_its_branches(run, tmp_path):
    config = with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    config.model = dict(type='kd_plugins.NativeEnsemble', student=config.model.to_dict(), predict='ensemble')
    config.dump(tmp_path / 'config.py')
    with MODELS.switch_scope_and_registry('mmpretrain') as registry:
        torch.save(dict(state_dict=registry.build(config.model).state_dict()), tmp_path / 'all.pth')
    with pytest.raises(UserError, match=r"predict='ensemble' scores all of them: .*model\.predict=branch"):
        run(checkpoint='all.pth')


class Arrays(CIFAR10):
    """A set of arrays of one's own."""

    channel_order = 'BGR'


@pytest.mark.parametrize(
    ('kind', 'order'),
    [
        ('kd_plugins.CIFAR10', 'RGB'),
        ('mmpretrain.CIFAR100', 'RGB'),
        ('kd_plugins.STL10', 'BGR'),
        ('mmpretrain.CustomDataset', 'BGR'),
        ('kd_plugins.VOCDataset', 'BGR'),
        ('nowhere.Arrays', 'BGR'),
        (Arrays, 'BGR'),
    ],
)
def test_the_order_of_channels_is_that_of_the_data(kind, order):
    data = dict(type=kind, pipeline=[dict(type='PackInputs')])
    for dataset in (data, dict(type='ConcatDataset', datasets=[dict(type='kd_plugins.RepeatedViews', dataset=data)])):
        assert channel_order(Config(dict(test_dataloader=dict(dataset=dataset)))) == order
    assert channel_order(Config({})) == 'BGR'


@pytest.mark.parametrize(('kind', 'order'), [('CIFAR10', 'RGB'), ('STL10', 'BGR')])
def test_an_export_for_arrays_states_their_order(run, tmp_path, kind, order):
    config = classification_config(tmp_path / 'nowhere', tmp_path / 'run')
    data = dict(type=f'kd_plugins.{kind}', data_root=str(tmp_path), split='test', pipeline=[dict(type='PackInputs')])
    config.test_dataloader = dict(dataset=data, sampler=dict(type='DefaultSampler', shuffle=False))
    config.model.data_preprocessor = dict(mean=[104.0, 112.0, 114.0], std=[68.0, 66.0, 66.0], to_rgb=False)
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    runtime, _ = run('--size', '16', '16', to='student.pt2')
    assert runtime.metadata['channel_order'] == order


@pytest.mark.parametrize('by', ['DistillationHook', 'Distiller', 'MutualLearning', 'NativeEnsemble'])
def test_the_student_of_a_run_exports_without_what_it_learnt_from(run, tmp_path, by):
    config = with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    teacher = saved_teacher(tmp_path)
    Path(teacher['checkpoint']).unlink()
    terms = [dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')]
    student = config.model.to_dict()
    network = saved(student, tmp_path / 'student.pth')
    if by == 'DistillationHook':
        config.custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms)]
    else:
        more = {
            'Distiller': dict(teacher=teacher, terms=terms),
            'MutualLearning': dict(peers=[{k: v for k, v in classifier(14).items() if k != 'data_preprocessor'}]),
            'NativeEnsemble': {},
        }[by]
        config.model = dict(type=f'kd_plugins.{by}', student=student, **more)
        weights = {f'student.{name}': value for name, value in network.state_dict().items()}
        if by != 'Distiller':  # whose teacher is not there
            with MODELS.switch_scope_and_registry('mmpretrain') as registry:
                whole = registry.build(config.model)
            assert whole.load_state_dict(weights, strict=False).unexpected_keys == []
            weights = whole.state_dict()  # as mmengine's own checkpoint has them, of peers or branches, too
            assert not all(name.startswith('student.') for name in weights)
        torch.save(dict(state_dict=weights), tmp_path / 'all.pth')
    config.dump(tmp_path / 'config.py')
    images = torch.randn(2, 3, 16, 16)
    checkpoint = 'student.pth' if by == 'DistillationHook' else 'all.pth'
    runtime, card = run(to='student.pt2', checkpoint=checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(runtime(images)[0], network(images))
    assert ('teacher' in card) == (by in ('DistillationHook', 'Distiller'))
    if 'teacher' in card:
        assert card['teacher']['parameters'] > card['student']['parameters']
        assert card['teacher']['macs'] > card['student']['macs']


@pytest.mark.parametrize('kind', ['build', 'revise_keys'])
def test_a_teacher_is_measured_without_its_weights(tmp_path, kind):
    (tmp_path / 'own.py').write_text(
        'from torch import nn\n\n\ndef net():\n'
        '    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n'
    )
    teachers = dict(
        build=dict(build=f'{tmp_path}/own.py:net', data_preprocessor={}),
        revise_keys=dict(torchvision='resnet18', checkpoint=str(tmp_path / 'none.pth'), revise_keys=[('a', 'b')]),
    )
    hook = dict(type='kd_plugins.DistillationHook', teacher=teachers[kind], terms=[])
    args = argparse.Namespace(backbone=False, normalize=False, decode=False)
    images = torch.zeros(7, 3, 32, 32)
    (card,) = teachers_of(
        Config(dict(model=classifier(), custom_hooks=[hook])), args, MODELS.build(classifier()), images
    )
    assert card.parameters == dict(build=3 * 4 * 9 + 4, revise_keys=11_689_512)[kind]


def test_a_stock_checkpoint_of_a_stock_config_exports(run, tmp_path):
    stock = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    network = saved(get_config(stock).model, tmp_path / 'weights.pth')
    meta = dict(epoch=200, dataset_meta=dict(classes=['airplane', 'automobile']))
    torch.save(dict(state_dict=network.state_dict(), meta=meta), tmp_path / 'student.pth')
    runtime, _ = run('--size', '32', '32', to='student.pt2', config=stock)
    assert json.loads(runtime.metadata['classes']) == ['airplane', 'automobile']
    assert json.loads(runtime.metadata['mean']) == [125.307, 122.961, 113.8575]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(runtime(images)[0], network(images), atol=1e-5, rtol=1e-4)


def test_a_backbone_is_exported_from_a_classifier_and_alone(run, tmp_path):
    model = classifier()
    Config(dict(default_scope='mmpretrain', model=model)).dump(tmp_path / 'config.py')
    network = saved(model, tmp_path / 'student.pth')
    runtime, card = run('--backbone', '--size', '32', '24', to='student.pt2')
    assert card['student']['parameters'] == sum(x.numel() for x in network.backbone.parameters())
    images = torch.randn(3, 3, 32, 24)
    with torch.no_grad():
        expected = network.backbone(images)
    torch.testing.assert_close(runtime(images), [*expected])
    for part in ('head', 'neck'):
        model.pop(part)
    Config(dict(default_scope='mmpretrain', model=model)).dump(tmp_path / 'config.py')
    network = saved(model, tmp_path / 'student.pth')
    runtime, _ = run('--size', '32', '24', to='alone.pt2')
    with torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(runtime(images), [*expected])
    assert json.loads(runtime.metadata['outputs']) == ['features']


class Layer(nn.Module):
    """One that torch exports and ONNX lacks, or that torch does not export."""

    def __init__(self, data_dependent):
        super().__init__()
        self.data_dependent = data_dependent

    def forward(self, x):
        if self.data_dependent:
            return x if x.sum() > 0 else -x
        return torch.linalg.eigvalsh(x.mean((2, 3))[:, :, None] * torch.eye(3))


class Plain(Exportable):
    """A part that only runs its network."""

    def compute(self, images):
        return self.network(images)

    def name_outputs(self, outputs):
        return ['values']


@pytest.mark.parametrize(
    ('data_dependent', 'words'),
    [(True, r'layer 1 \(Layer\) does not export: '), (False, r'layer 1 \(Layer\) does not export: .*eigh')],
)
def test_an_operator_that_does_not_export_is_named_with_its_layer_alone(tmp_path, capsys, data_dependent, words):
    part = Plain(nn.Sequential(nn.Conv2d(3, 3, 1), Layer(data_dependent)))
    images = torch.randn(2, 3, 4, 4)
    part(images)
    with pytest.raises(UserError, match=words):
        files.write(part, images, tmp_path / 'x.onnx', '.onnx', {})
    assert not any(capsys.readouterr())  # torch prints the graph


def test_a_layer_that_fails_on_the_images_is_named():
    with pytest.raises(
        UserError, match=r'layer 0 \(Conv2d\) fails on images \(2, 4, 8, 8\): RuntimeError: .*give --size'
    ):
        files.run_once(Plain(nn.Sequential(nn.Conv2d(3, 3, 1))), torch.zeros(2, 4, 8, 8))


def test_a_missed_parity_names_the_output_and_leaves_no_file(run, tmp_path, monkeypatch):
    config = with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    exact = Runtime.__call__
    monkeypatch.setattr(
        Runtime, '__call__', lambda self, images: [x + 0.01 * x.abs().max() for x in exact(self, images)]
    )
    with pytest.raises(UserError, match=r"parity missed: the file's output 'logits' differs from torch's by 0\.01"):
        run(to='student.pt2')
    assert not [*tmp_path.glob('student.pt2*')]


def test_a_network_that_is_not_finite_is_not_said_to_miss_the_parity(run, tmp_path, monkeypatch):
    config = with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    own = Exportable.expected
    monkeypatch.setattr(Exportable, 'expected', lambda self, images: tuple(x * torch.nan for x in own(self, images)))
    with pytest.raises(UserError, match=r"output 'logits' is not finite in torch: .* training that has not diverged"):
        run(to='student.pt2')
    assert not [*tmp_path.glob('student.pt2*')]


@pytest.mark.parametrize('to', ['student.onnx', 'student.pt2'])
def test_a_size_that_is_not_the_test_sets_is_one_line(run, tmp_path, to):
    config = with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    config.test_dataloader.update(num_workers=2, prefetch_factor=4, timeout=9)
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    with pytest.raises(UserError, match=r'does not take images .*16.*; export with the --size of the test images'):
        run('--size', '32', '32', '--score', to=to)
    assert run(to=to)[1]['student']['size'] == [16, 16]  # of the test set: its pipeline leaves the size as it is


def test_without_a_test_set_images_are_drawn_through_its_pipeline(run, tmp_path):
    pipeline = [TEST[0], dict(type='ResizeEdge', scale=40), dict(type='CenterCrop', crop_size=(24, 32)), TEST[1]]
    config = with_test_set(classification_config(tmp_path / 'nowhere', tmp_path / 'run'), pipeline)
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    runtime, card = run(to='student.pt2')
    assert card['student']['size'] == [32, 24] == [int(runtime.metadata[x]) for x in ('height', 'width')]
    with_test_set(config).dump(tmp_path / 'config.py')
    with pytest.raises(UserError, match='leaves the size of images as it is: give --size'):
        run(to='student.pt2')


def test_a_grey_network_gets_grey_images(run, tmp_path):
    load = dict(type='LoadImageFromFile', color_type='grayscale')
    pipeline = [load, dict(type='Resize', scale=(32, 24)), TEST[1]]
    config = with_test_set(classification_config(tmp_path / 'nowhere', tmp_path / 'run'), pipeline)
    config.model.backbone = dict(type='ResNet', depth=18, in_channels=1, stem_channels=4, base_channels=2)
    config.model.head.in_channels = 16
    config.model.data_preprocessor = dict(mean=[127.5], std=[50.0])
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    for arguments in ((), ('--size', '24', '32')):
        runtime, card = run(*arguments, to='student.pt2')
        assert card['student']['size'] == [24, 32]
        assert runtime.metadata['channel_order'] == 'gray'


def test_one_mean_of_three_channels_is_none_of_grey_images(run, tmp_path):
    config = with_test_set(classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run'))
    config.model.data_preprocessor = dict(mean=[127.5], std=[50.0], to_rgb=True)
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    for arguments in ((), ('--size', '16', '16')):
        runtime, _ = run(*arguments, '--normalize', to='student.pt2')
        assert runtime.metadata['channel_order'] == 'RGB'
        assert json.loads(runtime.metadata['mean']) == [127.5] * 3
        assert json.loads(runtime.metadata['std']) == [50.0] * 3


@pytest.mark.parametrize(('means', 'inner', 'expected'), [(3, 12, 3), (1, 12, 3), (1, 1, 1), (None, 1, 1), (4, 4, 4)])
def test_a_stem_that_rearranges_pixels_has_more_channels_than_its_images(means, inner, expected):
    """As YOLOX's, of 12."""
    network = nn.Sequential(nn.Conv2d(inner, 2, 1))
    network.data_preprocessor = nn.Module()
    if means:
        network.data_preprocessor.register_buffer('mean', torch.zeros(means, 1, 1))
    assert channels_of(network) == expected


@pytest.mark.parametrize(
    ('step', 'name'),
    [
        (dict(type='Normalize', mean=[120.0] * 3, std=[60.0] * 3), 'Normalize'),
        (dict(type='torchvision/Normalize', mean=[0.5] * 3, std=[0.2] * 3), 'Normalize'),
        (dict(type='torchvision/ToTensor'), 'ToTensor'),
    ],
)
def test_a_pipeline_that_normalises_is_refused(run, tmp_path, step, name):
    pipeline = [TEST[0], step, TEST[1]]
    config = with_test_set(classification_config(tmp_path / 'nowhere', tmp_path / 'run'), pipeline)
    config.dump(tmp_path / 'config.py')
    with pytest.raises(UserError, match=rf'^test_dataloader\.dataset\.pipeline\.1: {name} changes the pixels'):
        run()


def test_what_the_scores_of_several_classes_an_image_are():
    model = classifier()
    assert exportable(MODELS.build(model)).meaning == 'logits, one for each class, before the softmax'
    model['head'] = dict(type='MultiLabelLinearClsHead', num_classes=CLASSES, in_channels=16)
    assert exportable(MODELS.build(model)).meaning.endswith('before the sigmoid: an image may have several classes')


@pytest.mark.parametrize('package', ['mmpretrain', 'kd_plugins'])
@pytest.mark.parametrize('around', ['kd_plugins.RepeatedViews', 'ConcatDataset'])
def test_a_data_set_that_is_not_here_is_not_downloaded(run, tmp_path, monkeypatch, package, around):
    fetched = []
    monkeypatch.setattr('mmpretrain.datasets.cifar.download_and_extract_archive', lambda *x, **_: fetched.append(x))
    monkeypatch.setattr('kd_plugins.datasets.cifar.fetch', lambda *x: fetched.append(x))
    config = classification_config(tmp_path / 'nowhere', tmp_path / 'run')
    cifar = dict(type=f'{package}.CIFAR10', data_root=str(tmp_path / 'cifar'), split='test', pipeline=[TEST[1]])
    inside = dict(datasets=[cifar]) if around == 'ConcatDataset' else dict(dataset=cifar, views=1)
    config.test_dataloader = dict(
        dataset=dict(type=around, **inside), sampler=dict(type='DefaultSampler', shuffle=False)
    )
    config.dump(tmp_path / 'config.py')
    saved(config.model, tmp_path / 'student.pth')
    with pytest.raises(UserError, match='leaves the size of images as it is'):
        run(to='student.pt2')
    assert not fetched


@pytest.mark.parametrize(('durations', 'noticed'), [((2, 3, 3, 4, 2), False), ((1, 9, 8, 7, 9), True)])
def test_a_latency_is_the_median_and_a_busy_cpu_is_noticed(monkeypatch, durations, noticed):
    clock = iter([0.0, *(x for duration in durations for x in (5.0, 5.0 + duration / 1000)), 9.0])
    monkeypatch.setattr('kd_plugins.export.card.time.perf_counter', lambda: next(clock))
    said = []
    monkeypatch.setattr('kd_plugins.export.card.print_log', lambda text, *_: said.append(text))
    assert latency_of(lambda _: None, torch.zeros(1), 0.0) == pytest.approx(sorted(durations)[2])
    assert ['other programs' in text for text in said] == [True] * noticed


@pytest.mark.parametrize('name', ['backbone', 'image_encoder'])
def test_the_backbone_is_offered_where_there_is_one(name):
    network = type('ImageToImageRetriever', (nn.Module,), {})()
    setattr(network, name, nn.Identity())
    with pytest.raises(UserError, match='is not exported') as error:
        exportable(network)
    assert ('--backbone' in str(error.value)) == (name == 'backbone')


def test_two_stage_detectors_are_refused_in_a_line_that_names_another_tool():
    network = type('FasterRCNN', (nn.Module,), {})()
    network.roi_head = nn.Identity()
    with pytest.raises(UserError, match=r'FasterRCNN is a two-stage detector that is not exported: .*mmdeploy'):
        exportable(network)


def test_without_onnxruntime_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(UserError, match=r'needs onnxruntime, which is not installed: .*the extra export'):
        run()
