"""Runs that would train or save something other than their config says."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, MultiStepLR
from mmpretrain.models import GlobalAveragePooling
from tiny import classification_config, classifier, equal, image_folder, saved_teacher, train, weights

from kd_plugins.checkpoint import RUN_ID, read_checkpoint, run_of
from kd_plugins.engine import latest_checkpoint
from kd_plugins.errors import UserError
from kd_plugins.hooks.integrity_hook import _check_schedules, _flat
from kd_plugins.pretrained import check_arrival
from kd_plugins.registry import MODELS


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('data'))


@pytest.fixture
def config(tmp_path, data):
    return checked(data, tmp_path / 'run')


def checked(data: Path, folder: Path, **more) -> Config:
    config = classification_config(data, folder, epochs=1, **more)
    config.default_hooks.integrity = dict(type='kd_plugins.IntegrityHook')
    return config


def resumed(config: Config, path: str | Path, epochs: int = 2) -> Config:
    config.load_from, config.resume, config.train_cfg.max_epochs = str(path), True, epochs
    return config


def test_load_from_needs_one_tensor_that_fits(tmp_path, config):
    other = MODELS.build(classifier(width=8)).state_dict()
    torch.save({'state_dict': {f'net.{key}': value for key, value in other.items()}}, tmp_path / 'prefixed.pth')
    config.load_from = str(tmp_path / 'prefixed.pth')
    with pytest.raises(UserError, match=r'load_from: no tensor of .*prefixed\.pth fits ImageClassifier .*is missing'):
        train(config)
    torch.save({'state_dict': other}, tmp_path / 'wide.pth')
    config.load_from = str(tmp_path / 'wide.pth')  # its head's bias fits
    train(config)


def test_a_pretrained_part_needs_one_tensor_that_fits(tmp_path, config):
    other = MODELS.build(classifier(width=8)).state_dict()
    torch.save({'state_dict': {f'net.{key}': value for key, value in other.items()}}, tmp_path / 'x.pth')
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'))
    with pytest.raises(
        UserError, match=r'backbone does not have its pretrained weights: no tensor of it is one of .*x\.pth'
    ):
        train(config)
    own = MODELS.build(classifier()).backbone.state_dict()
    for name in ('stem.0.weight', 'net.stem.0.weight'):  # only the backbone's own code would know the second name
        torch.save({'model': {name: own['stem.0.weight'].half()}}, tmp_path / 'x.pth')
        backbone = MODELS.build(config.model.backbone)
        with torch.no_grad():
            backbone.stem[0].weight.copy_(own['stem.0.weight'].half())
        check_arrival(backbone)


def test_a_part_whose_weights_a_checkpoint_of_the_whole_model_replaces(tmp_path, config):
    """As in mmdet's trackers, which load the detector's checkpoint after that of its backbone."""
    for name in ('backbone', 'whole'):
        torch.save({'state_dict': MODELS.build(classifier()).state_dict()}, tmp_path / f'{name}.pth')
    config.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'), prefix='backbone'
    )
    config.model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    model = MODELS.build(config.model)
    model.init_weights()
    assert equal(model.state_dict(), torch.load(tmp_path / 'whole.pth')['state_dict'])
    check_arrival(model)


def test_a_run_resumes_from_its_own_checkpoints_only(tmp_path, data, config):
    train(config)
    path = tmp_path / 'run/epoch_1.pth'
    with pytest.raises(UserError, match=r'cannot resume from .*, which does not fit ImageClassifier: .*size mismatch'):
        train(resumed(checked(data, tmp_path / 'other', model=classifier(width=8)), path))
    saved = read_checkpoint(path)
    torch.save({'state_dict': saved['state_dict'], 'meta': saved['meta']}, tmp_path / 'student.pth')
    assert run_of(read_checkpoint(tmp_path / 'student.pth')) == ''
    with pytest.raises(UserError, match=r'student\.pth, which holds no state of an optimiser'):
        train(resumed(checked(data, tmp_path / 'other'), tmp_path / 'student.pth'))
    adam = checked(data, tmp_path / 'other', optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-3)))
    with pytest.raises(UserError, match=r'written by another optimiser .*momentum.*betas'):
        train(resumed(adam, path))
    parts = checked(data, tmp_path / 'other')
    parts.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)
    with pytest.raises(UserError, match=r'optimiser with 1 parameter groups, this config has 23'):
        train(resumed(parts, path))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(milestones=[2, 3]), r'the milestones 1 of its MultiStepLR, and this config gives 2, 3, which'),
        (dict(gamma=0.5), r'the gamma 0\.1 of its MultiStepLR, and this config gives 0\.5, which'),
        (dict(), r'the initial values 0\.05 of its MultiStepLR, and this config gives 0\.2, which'),
    ],
)
def test_a_run_resumes_with_the_schedule_that_it_has(data, tmp_path, change, message):
    schedule = dict(type='MultiStepLR', milestones=[1], gamma=0.1)
    train(checked(data, tmp_path / 'run', param_scheduler=[schedule]))
    config = checked(data, tmp_path / 'other', param_scheduler=[schedule | change])
    if not change:
        config.optim_wrapper.optimizer.lr = 0.2
    with pytest.raises(UserError, match=message):
        train(resumed(config, tmp_path / 'run/epoch_1.pth'))


@pytest.mark.parametrize('paramwise', [None, dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))])
def test_of_other_iterations_an_epoch_the_schedule_is_that_of_the_config(data, tmp_path, capsys, paramwise):
    """With another batch size, or as with another number of processes, mmengine keeps to the old one's iterations."""
    schedules = [
        dict(type='LinearLR', start_factor=0.1, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', begin=1, end=4, convert_to_iter_based=True),
        dict(type='MultiStepLR', milestones=[3], gamma=0.5),
        dict(type='CosineAnnealingMomentum', eta_min=0.5, convert_to_iter_based=True),
    ]

    def run(name, batch_size, resume=None, **optimizer):
        config = checked(data, tmp_path / name, param_scheduler=copy.deepcopy(schedules), log_level='WARNING')
        config.train_dataloader.batch_size, config.train_cfg.max_epochs = batch_size, 4
        config.optim_wrapper.update(
            paramwise_cfg=paramwise, optimizer=dict(config.optim_wrapper.optimizer, **optimizer)
        )
        train(config if resume is None else resumed(config, tmp_path / resume, 4))
        checkpoint = read_checkpoint(tmp_path / f'{name}/epoch_4.pth')
        groups = checkpoint['optimizer']['param_groups']
        states = [{key: x for key, x in state.items() if key != 'verbose'} for state in checkpoint['param_schedulers']]
        rates = {
            epoch: read_checkpoint(tmp_path / f'{name}/epoch_{epoch}.pth')['optimizer']['param_groups'][-1]['lr']
            for epoch in (3, 4)
        }
        base = checkpoint['optimizer'].get('base_param_settings', {}).get('lr')
        return (
            checkpoint['meta']['iter'],
            states,
            [(x['lr'], x['momentum'], x['initial_lr']) for x in groups],
            rates,
            base,
        )

    run('first', 8)
    for batch_size in (4, 24):
        for options in ({}, dict(lr=0.2)):
            name = f'{batch_size}{len(options)}'
            assert run(f'whole{name}', batch_size, **options) == run(
                f'resumed{name}', batch_size, 'first/epoch_2.pth', **options
            )
            out = capsys.readouterr().out
            iterations = 2 * 24 // batch_size
            assert f'was written after 6 iterations, and this config has {iterations} before epoch 3' in out
            assert 'where lr and momentum go on as this config gives them' in out
            assert 'epoch_2.pth was written with another' in out


@pytest.mark.parametrize('batch_size', [4, 8])
def test_of_other_iterations_an_epoch_a_rate_that_follows_a_metric_stays(data, tmp_path, batch_size):
    config = checked(data, tmp_path / 'run', param_scheduler=[dict(type='LinearLR', start_factor=0.5, end=1)])
    config.merge_from_dict(
        dict(val_dataloader=config.train_dataloader, val_cfg={}, val_evaluator=dict(type='Accuracy'))
    )
    config.val_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    plateau = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1', patience=0, threshold=1000, rule='greater')
    config.param_scheduler.append(plateau)
    config.train_cfg.max_epochs, config.train_cfg.val_interval = 3, 1
    train(config)
    reached = read_checkpoint(tmp_path / 'run/epoch_3.pth')['optimizer']['param_groups'][0]['lr']
    assert reached < 0.05 * 0.2
    config.train_dataloader.batch_size = batch_size
    config.work_dir = str(tmp_path / 'other')
    train(resumed(config, tmp_path / 'run/epoch_3.pth', 4))
    assert read_checkpoint(tmp_path / 'other/epoch_4.pth')['optimizer']['param_groups'][0]['lr'] <= reached


def test_of_other_iterations_an_epoch_one_cycle_goes_on_to_its_own_peak(data, tmp_path):
    rates = []
    for name, batch_size, peak, resume in (('a', 8, 0.1, None), ('b', 4, 0.2, None), ('c', 4, 0.2, 'a/epoch_1.pth')):
        schedule = dict(type='OneCycleLR', eta_max=peak, total_steps=3 * 24 // batch_size, by_epoch=False)
        config = checked(data, tmp_path / name, param_scheduler=[schedule])
        config.train_dataloader.batch_size, config.train_cfg.max_epochs = batch_size, 3
        train(resumed(config, tmp_path / resume, 3) if resume else config)
        rates.append(read_checkpoint(tmp_path / f'{name}/epoch_2.pth')['optimizer']['param_groups'][0]['lr'])
    assert rates[2] == pytest.approx(rates[1])
    assert rates[0] < 0.6 * rates[1]


def test_a_run_that_is_made_longer_keeps_to_its_schedule(data, tmp_path):
    """mmengine keeps the end of the shorter run, after which no milestone would count."""
    schedule = dict(type='MultiStepLR', milestones=[2], gamma=0.1)
    train(checked(data, tmp_path / 'run', param_scheduler=[schedule]))
    longer = resumed(checked(data, tmp_path / 'longer', param_scheduler=[schedule]), tmp_path / 'run/epoch_1.pth', 3)
    train(longer)
    rates = [read_checkpoint(tmp_path / f'longer/epoch_{i}.pth')['optimizer']['param_groups'][0]['lr'] for i in (2, 3)]
    assert rates == pytest.approx([0.005, 0.005])  # of the next epoch, as in a run of three
    ramp = [dict(type='LinearLR', start_factor=0.1)]
    train(checked(data, tmp_path / 'ramp', param_scheduler=ramp))
    with pytest.raises(UserError, match=r'the end 1 of its LinearLR, and this config gives 2'):
        train(resumed(checked(data, tmp_path / 'other', param_scheduler=ramp), tmp_path / 'ramp/epoch_1.pth'))


def test_an_option_that_a_resumed_run_does_not_take_is_logged(data, tmp_path):
    train(checked(data, tmp_path / 'run'))
    config = checked(data, tmp_path / 'other')
    config.train_cfg.max_epochs = 2
    config.optim_wrapper.optimizer.weight_decay, config.log_level = 0.5, 'WARNING'
    train(resumed(config, tmp_path / 'run/epoch_1.pth'))
    log = ''.join(path.read_text() for path in (tmp_path / 'other').glob('*/*.log'))
    assert log.count('epoch_1.pth was written with weight_decay=0.0001, which the resumed run keeps') == 1


def test_a_run_of_several_parameter_groups_resumes(data, tmp_path):
    for name in ('whole', 'resumed'):
        config = checked(data, tmp_path / name)
        config.train_cfg.max_epochs = 2
        config.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
        train(config if name == 'whole' else resumed(config, tmp_path / 'whole/epoch_1.pth'))
    whole, parts = (read_checkpoint(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'resumed'))
    assert len(whole['optimizer']['param_groups']) > 1
    assert equal(whole['state_dict'], parts['state_dict'])


@pytest.mark.parametrize('by_hook', [True, False])
def test_terms_in_another_order_would_swap_their_adapters(data, tmp_path, by_hook):
    teacher = saved_teacher(tmp_path)

    def run(folder: str, *names: str) -> Config:
        tap = dict(student='backbone.stage2', teacher='backbone.stage2')
        terms = [dict(name=x, loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', **tap) for x in names]
        for term in terms:
            if term['name'] == 'sp':  # has no weights of its own
                term.update(loss=dict(type='kd_plugins.SPLoss'), adapter=None)
        distilled = dict(teacher=teacher, terms=terms)
        if by_hook:
            return checked(
                data, tmp_path / folder, custom_hooks=[dict(type='kd_plugins.DistillationHook', **distilled)]
            )
        model = dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distilled)
        return checked(data, tmp_path / folder, model=model)

    train(run('run', 'sp', 'b', 'c'))
    checkpoint = tmp_path / 'run/epoch_1.pth'
    assert read_checkpoint(checkpoint)['meta']['distillation_terms'] == ['b', 'c']
    message = r'epoch_1\.pth was written with terms in the order b, c, this config has c, b: list them in the order of'
    with pytest.raises(UserError, match=message):
        train(resumed(run('other', 'sp', 'c', 'b'), checkpoint))
    train(resumed(run('same', 'sp', 'b', 'renamed'), checkpoint))


def test_no_iteration(data, tmp_path):
    config = checked(data, tmp_path / 'run', param_scheduler=[])
    config.train_dataloader.update(batch_size=25, drop_last=True)
    with pytest.raises(UserError, match=r'no iteration to train: 24 samples make 0 batches \(drop_last'):
        train(config)
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_endless_batches_may_be_larger_than_the_data(data, tmp_path):
    config = checked(data, tmp_path / 'run', param_scheduler=[])
    config.train_dataloader.update(batch_size=25, drop_last=True, sampler=dict(type='InfiniteSampler'))
    config.train_cfg = dict(by_epoch=False, max_iters=2)
    assert train(config).iter == 2


def test_weights_that_are_not_finite_keep_the_last_checkpoint(data, tmp_path):
    config = checked(data, tmp_path / 'run', param_scheduler=[dict(type='MultiStepLR', milestones=[1], gamma=1e36)])
    config.train_cfg.max_epochs = 3
    with pytest.raises(UserError, match=r'not finite after iteration [56]: .*last good checkpoint is kept'):
        train(config)
    saved = read_checkpoint(tmp_path / 'run/epoch_1.pth')
    assert all(value.isfinite().all() for value in saved['state_dict'].values())
    assert not (tmp_path / 'run/epoch_2.pth').exists()
    config.update(work_dir=str(tmp_path / 'other'), default_hooks=config.default_hooks | dict(checkpoint=None))
    with pytest.raises(UserError, match='not finite after iteration 9'):
        train(config)


@MODELS.register_module()
class MaskedPooling(GlobalAveragePooling):
    """A pooling with a buffer of one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer('mask', torch.tensor([value]))


def test_buffers_may_be_infinite_but_not_nan(data, tmp_path):
    def masked(value: float) -> dict:
        return classifier() | dict(neck=dict(type='kd_plugins.MaskedPooling', value=value))

    train(checked(data, tmp_path / 'inf', model=masked(-torch.inf)))
    with pytest.raises(UserError, match=r'neck\.mask is not finite'):
        train(checked(data, tmp_path / 'nan', model=masked(torch.nan)))


def test_a_new_run_does_not_resume_from_an_older_one_in_its_folder(tmp_path, data, config):
    first = train(config)
    path = tmp_path / 'run/epoch_1.pth'
    assert run_of(read_checkpoint(path)) == (tmp_path / 'run' / RUN_ID).read_text() != ''
    assert latest_checkpoint(config) == str(path)
    again = checked(data, tmp_path / 'run', randomness=dict(seed=1))
    again.train_dataloader.dataset.pipeline[0] = dict(type='LoadImageFromFile', imdecode_backend='none')
    with pytest.raises(Exception, match='none'):  # before its first checkpoint
        train(again)
    assert latest_checkpoint(again) is None
    train(resumed(config, path))  # with its path it does
    assert latest_checkpoint(config) == str(tmp_path / 'run/epoch_2.pth')
    assert run_of(read_checkpoint(tmp_path / 'run/epoch_2.pth')) == run_of(read_checkpoint(path))
    assert not equal(weights(first.model), read_checkpoint(tmp_path / 'run/epoch_2.pth')['state_dict'])


def test_a_run_of_an_older_version_resumes(tmp_path, data):
    """Its checkpoints have no id of the run."""
    train(classification_config(data, tmp_path / 'run', epochs=1))
    config = checked(data, tmp_path / 'run')
    path = latest_checkpoint(config)
    assert path.endswith('epoch_1.pth')
    train(resumed(config, path))
    assert (tmp_path / 'run' / RUN_ID).read_text() == ''
    assert latest_checkpoint(config).endswith('epoch_2.pth')


def test_schedules_of_another_kind_are_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    steps, cosine = MultiStepLR(optimizer, [1]), CosineAnnealingLR(optimizer, T_max=5)
    _check_schedules('x.pth', [steps.state_dict()], [MultiStepLR(optimizer, [3, 4])], False)
    assert _flat(None) == []
    assert _flat(dict(a=[1], b=[2])) == [1, 2]
    for saved, own in (([steps.state_dict()], [cosine]), ([steps.state_dict()], []), ([], [steps])):
        with pytest.raises(UserError, match=r'x\.pth was written with \d schedules \(param_scheduler\)'):
            _check_schedules('x.pth', saved, own, True)


def within_an_epoch(config: Config) -> Config:
    config.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=-1)
    return config


def test_a_checkpoint_from_within_an_epoch_is_noted(config, tmp_path, capsys):
    config.log_level = 'WARNING'
    train(within_an_epoch(config))  # three steps an epoch
    assert read_checkpoint(tmp_path / 'run/iter_2.pth')['meta']['into_epoch'] == 2
    train(resumed(within_an_epoch(config), tmp_path / 'run/iter_2.pth'))
    assert 'iter_2.pth was written 2 iterations into epoch 1, which the resumed run repeats' in capsys.readouterr().out
    assert (
        read_checkpoint(tmp_path / 'run/iter_8.pth')['meta']['into_epoch'] == 3
    )  # 2 and 3 of the first, 3 of the next


def test_a_checkpoint_at_the_end_of_an_epoch_is_not(config, tmp_path, capsys):
    config.log_level = 'WARNING'
    train(config)
    train(resumed(config, tmp_path / 'run/epoch_1.pth'))
    assert 'was written' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('model.head.loss.loss_weight', 3.0),
        ('train_dataloader.dataset.pipeline.1.prob', 0.0),
        ('optim_wrapper.optimizer.nesterov', True),
        ('optim_wrapper.clip_grad', dict(max_norm=0.5)),
        ('train_dataloader.batch_size', 9),  # as many batches
        ('custom_hooks.0.terms.0.weight', 2.0),
    ],
)
def test_a_changed_config_is_noted_and_refused_where_nothing_is_left(config, tmp_path, capsys, key, value):
    config.log_level = 'WARNING'
    kd = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')
    teacher = saved_teacher(tmp_path)
    config.custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=[kd])]
    train(config)
    config.merge_from_dict({key: value})
    part = key.rpartition('.')[2] if isinstance(value, dict) or value == 9 else key.partition('.')[0]
    train(resumed(config, tmp_path / 'run/epoch_1.pth', epochs=2))
    assert f'epoch_1.pth was written with another {part}: the resumed run goes on' in capsys.readouterr().out
    with pytest.raises(UserError, match=rf'epoch_1\.pth ends a run with another {part}, and nothing is left to train'):
        train(resumed(config, tmp_path / 'run/epoch_1.pth', epochs=1))


def test_data_elsewhere_and_keys_of_any_kind_are_no_change(config, data, tmp_path, capsys, monkeypatch):
    config.log_level = 'WARNING'
    config.train_dataloader.dataset.pipeline.insert(
        1, dict(type=Labelled, table={0: 1, 'other': 2, (0, 1): 3, None: 4})
    )
    train(config)
    monkeypatch.chdir(data.parent)
    config.train_dataloader.dataset.data_root = data.name
    train(resumed(config, tmp_path / 'run/epoch_1.pth', epochs=1))
    assert 'another' not in capsys.readouterr().out


def test_of_a_changed_run_epochs_may_be_left_beyond_its_iterations(config, tmp_path):
    train(config)  # three iterations
    config.train_dataloader.batch_size = 24  # one an epoch
    config.train_dataloader.dataset.pipeline[1].prob = 0.0
    assert train(resumed(config, tmp_path / 'run/epoch_1.pth', epochs=2)).epoch == 2
    config.train_dataloader.batch_size = 1
    with pytest.raises(UserError, match='another train_dataloader and batch_size, and nothing is left to train'):
        train(resumed(config, tmp_path / 'run/epoch_1.pth', epochs=1))


class Labelled:
    def __init__(self, table):
        pass

    def __call__(self, results):
        return results


def test_loading_in_other_ways_is_no_change(config, tmp_path, capsys):
    config.log_level = 'WARNING'
    train(config)
    config.train_dataloader.update(num_workers=1, persistent_workers=True)
    config.custom_hooks = [dict(type='EmptyCacheHook')]
    train(resumed(config, tmp_path / 'run/epoch_1.pth', epochs=1))
    assert 'another' not in capsys.readouterr().out
