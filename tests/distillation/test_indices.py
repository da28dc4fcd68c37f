"""The indices of the images, and the banks that are kept by them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook
from tiny import classification_config, classifier, equal, image_folder, saved_teacher, train, weights

from kd_plugins.errors import UserError
from kd_plugins.hooks.distillation_hook import distillation_of
from kd_plugins.losses import CRDLoss
from kd_plugins.registry import MODELS

CRD = dict(
    name='crd', loss=dict(type='kd_plugins.CRDLoss', dim=8, negatives=16), student='neck', teacher='neck', weight=0.1
)
CHECKED = {x: dict(type=f'kd_plugins.{x}Hook') for x in ('Reseed', 'Check')}


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / 'data')


@pytest.fixture
def teacher(tmp_path):
    return saved_teacher(tmp_path)


def crd(**options):
    return CRD | dict(loss=CRD['loss'] | options)


def config_of(way, data, folder, teacher, term=CRD, task='train', **more):
    distillation = dict(teacher=teacher, terms=[term], task=task)
    if way == 'hook':
        more |= dict(custom_hooks=[dict(type='kd_plugins.DistillationHook', **distillation)])
    else:
        more |= dict(
            model=dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distillation),
        )
    return classification_config(data, folder, default_hooks=CHECKED, **more)


def loss_of(runner) -> CRDLoss:
    return distillation_of(runner).terms[0].loss


def untouched(loss):
    """Return which entries are as they were at the start."""
    start = CRDLoss(**{key: getattr(loss, key) for key in ('num_samples', 'dim')})
    pairs = (loss.student_bank, start.student_bank), (loss.teacher_bank, start.teacher_bank)
    same = [(x == y).all(1) for x, y in pairs]
    assert torch.equal(*same)
    return same[0].tolist()


@pytest.mark.parametrize('way', ['hook', 'model'])
def test_banks_are_saved_and_resumed(way, data, teacher, tmp_path):
    config = config_of(way, data, tmp_path / 'whole', teacher, epochs=3)
    whole = train(copy.deepcopy(config))
    config.work_dir = str(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'whole/epoch_1.pth'), True
    resumed = train(config)
    states = [distillation_of(runner).state_dict() for runner in (whole, resumed)]
    assert {x.rpartition('.')[2] for x in states[0]} == {'student_bank', 'teacher_bank', 'labels', 'weight', 'bias'}
    assert loss_of(whole).num_samples == 24
    assert equal(*states)
    assert equal(weights(whole.model), weights(resumed.model))
    # A network that was built without the training set takes the banks as they were saved.
    if way == 'model':
        model = MODELS.build(config.model)
        model.load_state_dict(torch.load(tmp_path / 'whole/epoch_3.pth', weights_only=False)['state_dict'])
        assert equal(model.distillation.state_dict(), states[0])


def test_an_average_of_a_model_shares_the_banks(data, teacher, tmp_path):
    config = config_of('model', data, tmp_path / 'run', teacher, epochs=1)
    config.default_hooks = dict(ema=dict(type='EMAHook', momentum=0.2), **CHECKED)
    runner = train(config)
    (hook,) = (x for x in runner.hooks if isinstance(x, EMAHook))
    averaged, loss = hook.ema_model.module.distillation.terms[0].loss, loss_of(runner)
    for name, bank in loss.named_buffers():  # onto itself, torch copies nothing
        assert averaged.get_buffer(name).data_ptr() == bank.data_ptr()
    assert not equal(*(dict(x.named_parameters()) for x in (averaged, loss)))
    assert not any(untouched(loss))


PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
FOLDER = dict(type='CustomDataset', pipeline=PIPELINE)


@pytest.mark.parametrize(
    ('wrapper', 'count'),
    [
        (lambda x: dict(type='RepeatDataset', dataset=x | dict(indices=[3, 20, 9, 1, 23, 0, 8, 11]), times=2), 8),
        (lambda x: dict(type='kd_plugins.RepeatedViews', dataset=x, views=2), 24),
        (lambda x: dict(type='KFoldDataset', dataset=x, fold=0, num_splits=3), 16),
    ],
    ids=['repeated subset', 'views', 'fold'],
)
def test_an_image_has_one_index(wrapper, count, data, teacher, tmp_path):
    config = config_of('hook', data, tmp_path / 'run', teacher, epochs=1)
    config.train_dataloader.dataset = wrapper(FOLDER | dict(data_root=str(data)))
    config.custom_hooks[0].terms[0].loss.momentum = 0.0
    config.optim_wrapper.optimizer.lr = 0.0
    runner = train(config)
    loss, dataset = loss_of(runner), runner.train_dataloader.dataset
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    assert loss.num_samples == len(dataset) == count
    assert not any(untouched(loss))
    assert loss.labels.tolist() == [dataset.get_data_info(index)['gt_label'] for index in range(count)]
    # An entry is what the teacher makes of this very image.
    model, core = runner.model, distillation_of(runner)
    batch = model.data_preprocessor(runner.train_dataloader.collate_fn([dataset[i] for i in range(count)]), False)
    (pooled,) = core.teacher(batch['inputs'], batch['data_samples'])['neck']
    own = torch.nn.functional.normalize(loss.teacher_head(pooled)).detach()
    torch.testing.assert_close(loss.teacher_bank, own)


def test_batches_from_memory_have_indices_too(teacher, tmp_path):
    folder = tmp_path / 'cifar/cifar-10-batches-py'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
    for name in names:
        entry = dict(data=rng.integers(0, 256, (4, 3072), np.uint8), labels=rng.integers(0, 10, 4).tolist())
        (folder / name).write_bytes(pickle.dumps(entry))
    teacher |= dict(cache=str(tmp_path / 'cache'))
    config = config_of('hook', tmp_path, tmp_path / 'run', teacher, epochs=2)
    config.model.head.num_classes = 10
    stock = dict(type='kd_plugins.CIFAR10', data_root=str(tmp_path / 'cifar'), split='train', pipeline=[])
    config.train_dataloader.dataset = dict(type='kd_plugins.BatchedImages', dataset=stock, padding=2, replay=1)
    config.train_dataloader.collate_fn = dict(type='kd_plugins.whole_batch')
    runner = train(config)
    loss = loss_of(runner)
    assert loss.num_samples == 20
    assert not any(untouched(loss))
    assert loss.labels.tolist() == runner.train_dataloader.dataset._labels[:, 0].tolist()


@pytest.mark.parametrize('way', ['hook', 'model'])
def test_without_labels(way, data, teacher, tmp_path):
    config = config_of(way, data, tmp_path / 'run', teacher, crd(exclude='sample'), 'off', epochs=1)
    config.train_dataloader.dataset.with_label = False
    loss = loss_of(train(config))
    assert loss.labels.tolist() == list(range(24))
    assert not any(untouched(loss))


def test_a_term_of_weight_0_and_a_dry_run_leave_the_banks(data, teacher, tmp_path):
    loss = loss_of(train(config_of('hook', data, tmp_path / 'run', teacher, CRD | dict(weight=0), epochs=1)))
    assert all(untouched(loss))
    assert set(loss.labels.tolist()) == {-1}


@pytest.mark.parametrize(
    ('way', 'term', 'change', 'message'),
    [
        ('hook', crd(num_samples=20), {}, 'num_samples=20, but the training set has 24 images: give num_samples=24'),
        ('model', crd(num_samples=20), {}, 'num_samples=20, but the training set has 24 images'),
        ('model', CRD, dict(check=False), r'the number of images of the training set, .* loss=dict\(num_samples=...\)'),
        ('model', crd(num_samples=5), dict(check=False), 'the sample_idx of an image is .*, expected 0 to 4'),
        ('hook', CRD, dict(keys=('img_path',)), 'sample_idx in the metainfo of its data sample, got None: add it to'),
        ('hook', CRD, dict(mix=True), 'CRDLoss needs images of one class each'),
        ('hook', crd(exclude='sample'), dict(mix=True), 'got a mixed image: do not mix images'),
        ('hook', CRD, dict(concat=True), 'ConcatDataset numbers the images of each of its data sets from 0'),
    ],
    ids=['small', 'small model', 'unknown', 'out of range', 'no index', 'mixed', 'mixed, no labels', 'joined'],
)
def test_mistakes_are_one_line(way, term, change, message, data, teacher, tmp_path):
    config = config_of(way, data, tmp_path / 'run', teacher, term, epochs=1)
    if not change.get('check', True):
        config.default_hooks.pop('Check')
    config.train_dataloader.dataset.pipeline[-1].update({'meta_keys': change['keys']} if 'keys' in change else {})
    if change.get('mix'):
        config.model.train_cfg = dict(augments=[dict(type='Mixup', alpha=1.0)])
    if change.get('concat'):
        config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[config.train_dataloader.dataset] * 2)
    with pytest.raises(UserError, match=f"term 'crd': .*{message}") as error:
        train(config)
    assert '\n' not in str(error.value)


def test_every_level_and_teacher_has_banks_of_its_own(data, teacher, tmp_path):
    stages = ['backbone.stage2', 'backbone.stage3']
    runner = train(
        config_of('hook', data, tmp_path / 'run', teacher, CRD | dict(student=stages, teacher=stages), epochs=1)
    )
    first, second = (x for x in (loss_of(runner), *distillation_of(runner).terms[0].copies))
    assert first.student_head.in_features == 8 * 8 * 8
    assert second.student_head.in_features == 16 * 4 * 4
    assert not any(untouched(first) + untouched(second))
    assert not torch.equal(first.teacher_bank, second.teacher_bank)


def test_a_training_set_smaller_than_the_dry_runs_batch(data, teacher, tmp_path):
    config = config_of('hook', data, tmp_path / 'run', teacher, crd(exclude='sample'), epochs=1)
    config.train_dataloader.dataset.indices = 1
    loss = loss_of(train(config))
    assert loss.num_samples == 1
    assert not any(untouched(loss))
