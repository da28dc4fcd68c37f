"""Data sets that number their classes differently are refused in one run."""

import copy
import json
import tracemalloc
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from tiny import classification_config, coco_folder, image_folder, saved_teacher, train
from torch.utils.data import DataLoader, SequentialSampler

from kd_plugins.classes import check_checkpoint_classes
from kd_plugins.datasets import PKSampler, UnlabelledImages
from kd_plugins.errors import UserError
from kd_plugins.hooks import CheckHook, check_hook
from kd_plugins.hooks.check_hook import (
    _categories,
    check_class_count,
    note_empty_statistics,
)
from kd_plugins.registry import MODELS


class Unnamed(list):
    """A data set without names of classes."""


GIVEN = dict(metainfo=dict(classes=('a', 'b', 'c', 'd')))  # in place of the folders' names


def check(train, val=None, hooks=(), model=None):
    loader = DataLoader(train)
    CheckHook().before_train(
        SimpleNamespace(
            hooks=hooks,
            model=model or torch.nn.Identity(),
            train_dataloader=loader,
            val_loop=val,
            val_dataloader=SimpleNamespace(dataset=val),
        )
    )


@pytest.mark.parametrize('composite', [True, False])
def test_layerwise_rates_by_names_that_a_composite_does_not_have_are_refused(composite):
    kind = 'LearningRateDecayOptimizerConstructor'
    wrapper = dict(
        constructor=f'mmdet.{kind}', paramwise_cfg=dict(num_layers=2, decay_rate=0.5, decay_type='layer_wise')
    )
    model = torch.nn.ModuleDict({'student' if composite else 'backbone': torch.nn.Linear(2, 2)})
    config = Config(dict(optim_wrapper=wrapper))
    optimiser = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner = SimpleNamespace(model=model, cfg=config, optim_wrapper=optimiser, hooks=[])
    if not composite:
        CheckHook().before_run(runner)
        return
    with pytest.raises(
        UserError, match=f"{kind} finds layers by names that begin with 'backbone', and those of a ModuleD"
    ):
        CheckHook().before_run(runner)


@pytest.mark.parametrize('composite', [True, False])
@pytest.mark.parametrize(
    ('topk', 'save_best', 'message'),
    [
        ((1, 4), 'auto', None),
        (3, 'accuracy/top3', None),
        ((1, 4), ['accuracy/top4', 'knn/top1'], None),
        ((1, 5), None, r'Accuracy counts the top 5, of 4 classes: give it a topk of at most 4, as topk=\('),
        (1, 'accuracy/top5', "save_best is 'accuracy/top5', but Accuracy gives accuracy/top1"),
        ((1, 2), ['accuracy/top2', 'accuracy/best'], "save_best is 'accuracy/best', but .*/top1, accuracy/top2"),
    ],
)
def test_an_accuracy_that_there_is_not_is_told_before_training(tmp_path, composite, topk, save_best, message):
    """mmpretrain and mmengine tell it after the first validation, mmpretrain's data pieces ask for (1, 5)."""
    config = classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run', epochs=1)
    config.val_dataloader, config.val_cfg = dict(config.train_dataloader), {}
    config.val_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    config.val_evaluator = [dict(type='mmpretrain.Accuracy', topk=topk)]
    config.default_hooks.checkpoint = dict(type='CheckpointHook', save_best=save_best)
    if composite:
        config.model = dict(type='kd_plugins.MutualLearning', student=config.model)
    runner = Runner.from_cfg(config)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        CheckHook().before_train(runner)


@pytest.mark.parametrize('options', [{}, GIVEN])
def test_class_folders_that_number_the_labels_differently_are_refused(tmp_path, options):
    train, val = (CustomDataset(data_root=str(image_folder(tmp_path / name)), **options) for name in ('train', 'val'))
    check(train)
    check(RepeatDataset(train, 2), val)
    check(ConcatDataset([train, val]), RepeatDataset(val, 2))
    (tmp_path / 'val' / 'class1').rename(tmp_path / 'val' / 'class9')
    val = CustomDataset(data_root=str(tmp_path / 'val'), **options)
    with pytest.raises(UserError, match=r"val_dataloader: label 1 is 'class2' there and 'class1' in training \(4 "):
        check(RepeatDataset(train, 2), ConcatDataset([val]))
    if options:
        with pytest.raises(UserError, match=r"train_dataloader: label 1 is 'class2' there"):
            check(ConcatDataset([train, val]))


@pytest.mark.parametrize('kind', ['random', 'not kept', 'trained', 'in the style of Caffe'])
def test_statistics_of_no_data_that_are_kept_are_logged(monkeypatch, kind):
    lines = []
    monkeypatch.setattr(check_hook, 'print_log', lambda line, *_: lines.append(line))
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    if kind == 'trained':
        backbone(torch.randn(2, 3, 5, 5))
    if kind == 'in the style of Caffe':
        torch.nn.init.ones_(backbone[1].bias)
    backbone.norm_eval = kind != 'not kept'
    note_empty_statistics(torch.nn.ModuleDict(dict(backbone=backbone)))
    logged = ['backbone: norm_eval=True keeps the statistics of BatchNorm' in line for line in lines]
    assert logged == [True] * (kind == 'random')


@pytest.mark.parametrize('by', ['hook', 'model'])
def test_precise_statistics_need_some(tmp_path, by):
    taps = [f'backbone.stage{i}' for i in (1, 2, 3)]
    term = dict(name='r', loss=dict(type='kd_plugins.ReviewKDLoss'), student=taps, teacher=taps, adapter='abf')
    distillation = dict(teacher=saved_teacher(tmp_path), terms=[term])
    config = classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run', epochs=1)
    config.custom_hooks = [dict(type='mmpretrain.PreciseBNHook', num_samples=16), dict(type='kd_plugins.CheckHook')]
    if by == 'hook':
        config.custom_hooks.append(dict(type='kd_plugins.DistillationHook', **distillation))
        train(config)
        return
    config.model = dict(type='kd_plugins.Distiller', student=config.model, **distillation)
    with pytest.raises(
        UserError, match=r'PreciseBNHook averages .*, and distillation.* keeps none: .*DistillationHook'
    ):
        train(config)


def test_images_of_unknown_sizes_are_not_grouped_by_them(tmp_path):
    from mmdet.datasets.samplers import AspectRatioBatchSampler

    images = UnlabelledImages(data_root=str(image_folder(tmp_path)))
    runner = SimpleNamespace(hooks=(), model=torch.nn.Identity(), val_loop=None)
    groups = AspectRatioBatchSampler(SequentialSampler(images), 2)
    runner.train_dataloader = SimpleNamespace(
        dataset=images, sampler=groups.sampler, batch_sampler=groups, batch_size=None
    )
    with pytest.raises(UserError, match='by width and height, which UnlabelledImages does not give: set batch_sampler'):
        CheckHook().before_train(runner)
    images = RepeatDataset(images, 2)
    images.dataset.get_data_info = lambda index: dict(width=3, height=4)
    runner.train_dataloader.dataset = images
    CheckHook().before_train(runner)


def test_a_shorter_list_is_refused_and_no_list_is_accepted(tmp_path):
    train = CustomDataset(data_root=str(image_folder(tmp_path / 'train')))
    for path in (tmp_path / 'train' / 'class3').iterdir():
        path.unlink()
    (tmp_path / 'train' / 'class3').rmdir()
    val = CustomDataset(data_root=str(tmp_path / 'train'))
    with pytest.raises(UserError, match=r"label 3 is None there and 'class3' in training \(3 classes and 4\)"):
        check(train, val)
    check(train, SimpleNamespace(metainfo={}))  # such as a gallery, which has other identities
    check(Unnamed(), val)


def test_categories_that_a_file_lacks_or_orders_differently_shift_the_labels(tmp_path, caplog):
    CocoDataset = pytest.importorskip('mmdet.datasets').CocoDataset
    data = coco_folder(tmp_path / 'data')
    whole = json.loads((data / 'annotations.json').read_text())

    def build(*names):
        categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
        (data / f'{"".join(names)}.json').write_text(json.dumps(whole | dict(categories=categories), indent=1))
        return CocoDataset(
            data_root=str(data),
            ann_file=f'{"".join(names)}.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=('a', 'b', 'c')),
            pipeline=[],
        )

    train = build('x', 'a', 'b', 'c')
    logger = MMLogger.get_instance('categories')
    logger.addHandler(caplog.handler)
    check(train, build('a', 'b', 'c', 'd'))
    assert not caplog.messages
    check(train, build('a', 'b'))  # c is not evaluated
    (message,) = caplog.messages
    assert message.endswith('ab.json: no category is named c, so these classes have no boxes')
    check(train, build('a', 'b', 'd', 'e'))
    assert caplog.messages[-1].endswith(
        'no category is named c, so these classes have no boxes, and its categories d, e are no classes and left out: '
        'if that is not meant so, set metainfo=dict(classes=(...)) of the data set'
    )
    with pytest.raises(UserError, match=r'd\.json: no category has the name of a class \(a, b, c\)'):
        check(build('d'))
    for names, label in ((('b', 'c'), 0), (('a', 'c', 'b'), 1)):
        with pytest.raises(UserError, match=f"val_dataloader: label {label} is '{names[label]}' there and "):
            check(train, build(*names))
    check(build('a', 'c', 'b'))
    assert "label 1 is 'c' in the data, but 'b' in classes" in caplog.messages[-1]
    (data / 'xabc.json').write_text(json.dumps(whole | dict(more=dict(categories=[1]))))  # another entry of that name
    check(train, train)


def test_categories_are_read_without_the_whole_file(tmp_path):
    path = tmp_path / 'long.json'
    names = [dict(id=3, name='é'), dict(id=5, name='b')]
    path.write_bytes(b'{"annotations": [' + b' ' * 2**25 + b'], "categories": ' + json.dumps(names).encode() + b'}')
    tracemalloc.start()
    try:
        assert _categories(SimpleNamespace(cat2label={5: 0, 3: 1}, ann_file=str(path))) == (('b', 'é'), ())
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def head(num_classes):
    return torch.nn.ModuleDict(
        dict(bbox_head=MODELS.build(dict(type='mmpretrain.LinearClsHead', num_classes=num_classes, in_channels=4)))
    )


def test_names_without_a_label_are_ignored(tmp_path):
    """mmdet's MOT sets list thirteen names for files with one category; its ByteTrack trains on that one."""
    CocoDataset = pytest.importorskip('mmdet.datasets').CocoDataset
    data = coco_folder(tmp_path / 'data')

    def build(*names, **options):
        return CocoDataset(
            data_root=str(data),
            ann_file='annotations.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=names),
            pipeline=[],
            **options,
        )

    train, val = build('person'), build('person', 'car', 'crowd')
    check(train, val, model=head(1))
    check(val, train, model=head(1))
    # Names that are inputs of the network, as in GLIP, need no order.
    other = build('x', 'person', return_classes=True)
    check(train, other)
    check(other, train, model=head(1))
    check_checkpoint_classes(dict(meta=dict(dataset_meta=dict(classes=('person', 'x')))), other)
    check_checkpoint_classes(dict(meta=dict(dataset_meta=dict(classes=('person', 'x')))), [])  # a set without metainfo
    check_checkpoint_classes(dict(meta='of another package'), other)
    # The heads of PanopticFPN have the classes of things or of stuff.
    named = SimpleNamespace(metainfo=dict(classes=('a', 'b'), thing_classes=('a',)))
    check(named, model=head(1))
    del named.metainfo['thing_classes']
    with pytest.raises(UserError, match=r'num_classes is 1, .* have 2 classes'):
        check(named, model=head(1))


def test_held_out_data_have_the_classes_of_training(tmp_path):
    config = classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run')
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    other = copy.deepcopy(loader)
    other['dataset']['data_root'] = str(image_folder(tmp_path / 'other'))
    (tmp_path / 'other/class0').rename(tmp_path / 'other/class9')
    config.merge_from_dict(
        dict(
            val_dataloader=loader,
            val_cfg={},
            val_evaluator=dict(type='Accuracy'),
            default_hooks=dict(check=dict(type='kd_plugins.CheckHook')),
            custom_hooks=[dict(type='kd_plugins.HeldOutHook', dataloader=other, evaluator=dict(type='Accuracy'))],
        )
    )
    with pytest.raises(UserError, match="HeldOutHook: label 0 is 'class1' there and 'class0' in training"):
        train(config)


def test_folders_in_another_order_than_their_given_names_are_logged(tmp_path, caplog):
    logger = MMLogger.get_instance('folders')
    logger.addHandler(caplog.handler)
    check(
        CustomDataset(
            data_root=str(image_folder(tmp_path)), metainfo=dict(classes=('class0', 'class2', 'class1', 'class3'))
        )
    )
    assert [text.partition(':')[0] for text in caplog.messages] == [
        "label 1 is 'class1' in the data, but 'class2' in classes"
    ]


def test_a_batch_size_that_splits_the_samplers_groups_is_refused(tmp_path):
    data = CustomDataset(data_root=str(image_folder(tmp_path)))
    sampler = PKSampler(data, 2, 3, seed=0)
    for size in (6, 8):
        runner = SimpleNamespace(
            hooks=(), model=torch.nn.Identity(), train_dataloader=DataLoader(data, size, sampler=sampler), val_loop=None
        )
        if size == 6:
            CheckHook().before_train(runner)
        else:
            with pytest.raises(UserError, match=r'batch_size=8 splits the groups of its PKSampler; set .*=6'):
                CheckHook().before_train(runner)


def test_a_pipeline_that_is_switched_to_late_is_tried_at_the_start(tmp_path):
    PipelineSwitchHook = pytest.importorskip('mmdet.engine.hooks').PipelineSwitchHook
    load, pack = dict(type='mmcv.LoadImageFromFile'), dict(type='mmpretrain.PackInputs')
    train = CustomDataset(data_root=str(image_folder(tmp_path / 'train')), pipeline=[load, pack])
    kept = train.pipeline

    def switch(*steps, data=train):
        check(data, hooks=[PipelineSwitchHook(280, list(steps))])

    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    switch(load, dict(type='mmcv.RandomFlip', prob=0.5), pack)
    assert train.pipeline is kept
    assert (torch.get_rng_state().equal(state[0]), np.random.get_state()[1].tolist()) == (True, state[1])
    with pytest.raises(KeyError, match='LoadImageFromFiel is not in'):
        switch(dict(type='mmcv.LoadImageFromFiel'))
    with pytest.raises(AssertionError, match='is not found in results'):
        switch(dict(type='mmcv.CenterCrop', crop_size=4), pack)
    with pytest.raises(UserError, match='PipelineSwitchHook: its pipeline returns no inputs'):
        switch(load)
    assert train.pipeline is kept
    with pytest.raises(UserError, match='PipelineSwitchHook: RepeatDataset has no pipeline of its own'):
        switch(load, pack, data=RepeatDataset(train, 2))


def test_a_head_with_fewer_classes_than_the_data_is_refused():
    model = torch.nn.ModuleDict(
        dict(
            rpn_head=torch.nn.Identity(),
            bbox_head=MODELS.build(dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=4)),
        )
    )
    model['rpn_head'].num_classes = 1  # objects of any class
    check_class_count(model, ['a', 'b', 'c'])
    with pytest.raises(UserError, match=r'bbox_head: num_classes is 3, .* have 4 classes \(a, b, c, d\)'):
        check_class_count(model, ['a', 'b', 'c', 'd'])
    model['semantic_head'] = torch.nn.Identity()  # of pixels, beside the boxes (HTC)
    model['semantic_head'].num_classes = 2
    check_class_count(model, ['a', 'b', 'c'])
    cascade = torch.nn.Module()
    cascade.bbox_head = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))  # as in a CascadeRoIHead
    cascade.bbox_head[1].num_classes = 3
    check_class_count(cascade, ['a', 'b', 'c'])
    with pytest.raises(UserError, match=r'bbox_head\.1: num_classes is 3, .* have 4 classes'):
        check_class_count(cascade, ['a', 'b', 'c', 'd'])


def test_a_head_with_more_classes_is_refused_where_cocos_metric_counts(tmp_path):
    CocoDataset = pytest.importorskip('mmdet.datasets').CocoDataset
    CocoMetric = pytest.importorskip('mmdet.evaluation').CocoMetric
    data = str(coco_folder(tmp_path / 'data'))
    metainfo = dict(classes=('person',))
    images = dict(img='images/')
    train = CocoDataset(data_root=data, ann_file='annotations.json', data_prefix=images, metainfo=metainfo, pipeline=[])
    train.evaluator = SimpleNamespace(metrics=[CocoMetric(f'{data}/annotations.json')])
    check(train, train, model=head(1))
    with pytest.raises(UserError, match=r'num_classes is 80, but .* 1 classes \(person\), and CocoMetric fails'):
        check(train, train, model=head(80))


def test_an_rpn_by_itself_has_one_class_of_all_objects():
    pytest.importorskip('mmdet.models')
    with MODELS.switch_scope_and_registry('mmdet'):
        head = MODELS.build(dict(type='RPNHead', in_channels=4, feat_channels=4, num_classes=1))
    check_class_count(torch.nn.ModuleDict(dict(bbox_head=head)), ['a', 'b', 'c'])  # as mmdet's RPN names it


def test_a_head_with_more_classes_than_the_data_is_noted(caplog):
    model = torch.nn.ModuleDict({f'{name}_head': torch.nn.Identity() for name in ('bbox', 'rpn', 'semantic')})
    for head in model.values():
        head.num_classes = 80
    logger = MMLogger.get_instance('noted', log_level='INFO')
    logger.addHandler(caplog.handler)
    check_class_count(model, [*map(str, range(80))])
    assert not caplog.messages
    check_class_count(model, ['person', 'car', 'dog'])
    (text,) = caplog.messages
    assert text.startswith('bbox_head: num_classes is 80, the training data have 3 classes (person, car, dog)')
    with pytest.raises(
        UserError, match=r'num_classes is 80, but .*CocoMetric fails .*: set num_classes=3, or metainfo'
    ):
        check_class_count(model, ['person', 'car', 'dog'], ['VOCMetric', 'CocoMetric'])
