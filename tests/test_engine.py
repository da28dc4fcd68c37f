"""What every command does between reading a config and running it."""

import argparse
import os
import signal
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from tiny import classification_config, image_folder, saved_teacher, train

from kd_plugins import engine
from kd_plugins.checkpoint import save_weights
from kd_plugins.config import load_config
from kd_plugins.engine import alone_in, check_images, latest_checkpoint, load_run, prepare_run, scope_of, watch
from kd_plugins.errors import UserError
from kd_plugins.hooks import CheckHook
from kd_plugins.registry import MODELS, type_name


@pytest.mark.parametrize('given', [{}, dict(default_hooks=None), dict(default_hooks={})])
def test_a_config_without_default_hooks_gets_them(given):
    config = Config(given)
    prepare_run(config)
    assert {name: hook.type for name, hook in config.default_hooks.items()} == dict(
        reseed='kd_plugins.ReseedHook',
        accumulation='kd_plugins.AccumulationHook',
        integrity='kd_plugins.IntegrityHook',
        check='kd_plugins.CheckHook',
        corruption='kd_plugins.CorruptionHook',
        summary='kd_plugins.SummaryHook',
        export='kd_plugins.ExportHook',
    )


def test_given_hooks_stay_and_without_checkpoints_none_is_exported():
    """A hook set to None is left out: mmengine knows None for its own hooks only."""
    config = Config(dict(default_hooks=dict(checkpoint=None, reseed=None, logger=dict(type='LoggerHook', interval=7))))
    prepare_run(config)
    assert config.default_hooks.to_dict() == dict(
        checkpoint=None,
        logger=dict(type='LoggerHook', interval=7),
        integrity=dict(type='kd_plugins.IntegrityHook'),
        check=dict(type='kd_plugins.CheckHook'),
        accumulation=dict(type='kd_plugins.AccumulationHook'),
        corruption=dict(type='kd_plugins.CorruptionHook'),
        summary=dict(type='kd_plugins.SummaryHook'),
    )


def test_a_segmentors_label_maps_are_checked_unless_its_config_says_no():
    hook = dict(type='kd_plugins.LabelMapHook')
    for scope, given, expected in (('mmdet', {}, None), ('mmseg', {}, hook), ('mmseg', dict(labelmap=None), None)):
        config = Config(dict(default_scope=scope, default_hooks=given))
        prepare_run(config)
        assert config.default_hooks.get('labelmap') == expected


def test_a_run_without_a_check(tmp_path):
    config = classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run', epochs=1)
    config.default_hooks = dict(check=None, export=None, logger=None)
    prepare_run(config)
    assert not any(isinstance(hook, CheckHook) for hook in train(config).hooks)


@pytest.mark.parametrize('load', ['LoadImageFromFile', 'mmcv.LoadImageFromFile', LoadImageFromFile])
def test_images_are_checked_by_name_and_by_class(load):
    """Also below wrapped data sets; those that are scored are never left out."""

    def loader():
        return dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=[dict(type=load, to_float32=True)])))

    config = Config(
        dict(
            train_dataloader=loader(),
            val_dataloader=loader(),
            test_dataloader=loader(),
            custom_hooks=[
                dict(type='PipelineSwitchHook', switch_pipeline=loader()['dataset']['dataset']['pipeline']),
                dict(type='kd_plugins.HeldOutHook', dataloader=loader()),
            ],
        )
    )
    prepare_run(config, skip_corrupt=True)
    assert config.custom_hooks[0].switch_pipeline[0].skip_corrupt is True
    assert config.custom_hooks[1].dataloader.dataset.dataset.pipeline[0].skip_corrupt is False
    for name, skips in (('train', True), ('val', False), ('test', False)):
        assert config[f'{name}_dataloader'].dataset.dataset.pipeline[0] == dict(
            type='kd_plugins.LoadImage', to_float32=True, skip_corrupt=skips
        )


def test_label_maps_are_checked_where_they_are_of_mmseg():
    load = dict(type='LoadAnnotations', reduce_zero_label=True)

    def config_of(scope):
        loader = dict(dataset=dict(pipeline=[dict(load), dict(load, type='mmdet.LoadAnnotations')]))
        return Config(dict(default_scope=scope, train_dataloader=loader, val_dataloader=loader))

    detection, segmentation = config_of('mmdet'), config_of('mmseg')
    check_images(detection)
    assert detection.to_dict() == config_of('mmdet').to_dict()
    checked = dict(type='kd_plugins.LoadSegMap', load=dict(load, type='mmseg.LoadAnnotations'))
    for skip, skips in ((False, False), (True, True), (False, True)):  # what a run has written into its config stays
        check_images(segmentation, skip)
        for loader, left_out in ((segmentation.train_dataloader, skips), (segmentation.val_dataloader, False)):
            one, other = loader.dataset.pipeline
            assert one == dict(checked, skip_corrupt=left_out)
            assert other == dict(load, type='mmdet.LoadAnnotations')


def test_a_config_may_leave_broken_images_out_of_training_alone():
    def loader():
        return dict(dataset=dict(pipeline=[dict(type='kd_plugins.LoadImage', skip_corrupt=True)]))

    config = Config(dict(train_dataloader=loader(), val_dataloader=loader()))
    prepare_run(config)
    assert config.train_dataloader.dataset.pipeline[0].skip_corrupt is True
    assert config.val_dataloader.dataset.pipeline[0].skip_corrupt is False


def test_the_collate_function_of_an_inherited_config_is_called_without_its_scope(tmp_path):
    (tmp_path / 'run.py').write_text("_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32_simclr.py'")
    config = load_config(str(tmp_path / 'run.py'))
    prepare_run(config)
    loader = Runner.build_dataloader({**config.train_dataloader, 'dataset': [1, 2]})
    assert loader.collate_fn([1, 2]).tolist() == [1, 2]


@pytest.mark.parametrize('has', [True, False])
def test_a_cpu_without_bfloat16_computes_in_float32(monkeypatch, has):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr(engine, 'has_bfloat16', lambda: has)
    config = Config(
        dict(
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
            val_cfg=dict(fp16=True),
            test_cfg=None,
            custom_hooks=[
                dict(type='kd_plugins.DistillationHook', teacher=dict(config='teacher.py', bf16=True)),
                dict(
                    type='kd_plugins.DistillationHook', teacher=[dict(timm='a', bf16=True), dict(timm='b', bf16=True)]
                ),
            ],
        )
    )
    notices = []
    monkeypatch.setattr(engine, 'print_log', lambda text, *args: notices.append(text))
    prepare_run(config, amp=True)
    assert config.optim_wrapper.type == ('kd_plugins.BF16OptimWrapper' if has else 'OptimWrapper')
    assert config.optim_wrapper.optimizer == dict(type='SGD', lr=0.1)
    assert config.val_cfg.fp16 is has
    assert config.custom_hooks[0].teacher.bf16 is has
    assert [teacher.bf16 for teacher in config.custom_hooks[1].teacher] == [has, has]
    assert ['the run computes in float32' in text for text in notices] == [True] * (not has)
    prepare_run(config := Config(dict(optim_wrapper=dict(type='OptimWrapper'))))
    assert config.optim_wrapper == dict(type='OptimWrapper')
    assert len(notices) == (not has)


@pytest.mark.parametrize(('gpu', 'bf16', 'expected'), [(True, True, 'Amp'), (False, True, 'BF16'), (False, False, '')])
def test_a_config_with_mixed_precision_of_a_gpu_trains_without_one(monkeypatch, gpu, bf16, expected):
    """As many stock ones have it; mmengine refuses it there."""
    monkeypatch.setattr('torch.cuda.is_available', lambda: gpu)
    monkeypatch.setattr(engine, 'has_bfloat16', lambda: bf16)
    options = dict(loss_scale='dynamic', dtype='float16', use_fsdp=False)
    kept = dict(optimizer=dict(type='SGD', lr=0.1), clip_grad=dict(max_norm=1))
    config = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', **kept, **options)))
    prepare_run(config)
    assert type_name(config.optim_wrapper) == f'{expected}OptimWrapper'
    assert {x: y for x, y in config.optim_wrapper.items() if x != 'type'} == kept | (options if gpu else {})
    if not gpu:
        model = torch.nn.Linear(2, 1)
        with MODELS.switch_scope_and_registry('mmpretrain'):
            build_optim_wrapper(model, config.optim_wrapper)


@pytest.mark.parametrize('gpu', [True, False])
def test_a_run_on_a_cpu_keeps_freed_memory(monkeypatch, gpu):
    calls = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: gpu)
    monkeypatch.setattr(engine, 'keep_freed_memory', lambda: calls.append(1))
    prepare_run(Config())
    assert len(calls) == (not gpu)


def test_the_scope_of_a_config_by_text_and_by_class():
    from mmpretrain.models import ImageClassifier

    for model in (
        dict(type='mmpretrain.ImageClassifier'),
        dict(type=ImageClassifier),
        dict(type='kd_plugins.Distiller', student=dict(type=ImageClassifier)),
        dict(type='ImageClassifier', _scope_='mmpretrain'),
    ):
        assert scope_of(Config(dict(model=model))) == 'mmpretrain'
    assert scope_of(Config(dict(default_scope='mmdet', model=dict(type='x.Y')))) == 'mmdet'


@pytest.mark.parametrize(
    ('launcher', 'environment', 'message'),
    [
        ('pytorch', {}, 'put torchrun --nproc_per_node N before the command'),
        ('slurm', {}, 'put srun before'),
        ('mpi', {}, 'put mpirun -n N before'),
        ('slurm', dict(SLURM_PROCID='0'), 'needs a GPU'),
        ('none', dict(TORCHELASTIC_RUN_ID='1'), 'give --launcher pytorch'),
    ],
)
def test_a_launcher_that_does_not_fit_is_refused(monkeypatch, launcher, environment, message):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK', 'TORCHELASTIC_RUN_ID'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        prepare_run(Config({}), launcher)


def test_a_folder_has_one_command_and_is_free_again_when_that_ends_though_its_child_lives_on(tmp_path, monkeypatch):
    started, start = os.pipe()
    with alone_in(tmp_path / 'run'):
        child = os.fork()
        if not child:
            os.write(start, b'.')
            time.sleep(60)
            os._exit(0)
        with pytest.raises(UserError, match='run: another command runs'), alone_in(tmp_path / 'run'):
            pass
        monkeypatch.setenv('RANK', '1')  # the first process of a group holds it for the others
        with alone_in(tmp_path / 'run', 'pytorch'):
            pass
        os.read(started, 1)
    with alone_in(tmp_path / 'run'):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_command_waits_for_a_folder_until_that_is_free_or_what_it_wants_is_there(tmp_path, monkeypatch):
    slept, asked = [], []
    monkeypatch.setattr('time.sleep', slept.append)
    with alone_in(tmp_path), alone_in(tmp_path, file='.turn', until=lambda: False):  # another lock, which is free
        with alone_in(tmp_path, until=lambda: asked.append(0) or len(asked) == 3):
            pass
        assert (len(asked), slept) == (3, [1, 1])
    held = alone_in(tmp_path)
    held.__enter__()
    with alone_in(tmp_path, until=lambda: held.__exit__(None, None, None)):
        assert slept == [1, 1, 1]
        with pytest.raises(UserError, match='another command runs in this folder'), alone_in(tmp_path):
            pass


def test_data_that_are_read_by_pickle_are_refused_unless_allowed():
    config = Config(
        dict(
            test_dataloader=dict(
                dataset=dict(type='RepeatDataset', dataset=dict(type='mmdet.OpenImagesChallengeDataset'))
            )
        )
    )
    with pytest.raises(UserError, match='OpenImagesChallengeDataset reads its label tree by pickle'):
        prepare_run(config)
    prepare_run(config, allow_pickle=True)
    prepare_run(Config())  # nothing later in this process runs code


def test_a_data_set_of_which_nothing_is_left_says_so(tmp_path):
    prepare_run(Config())
    image_folder(tmp_path)
    data = CustomDataset(data_root=str(tmp_path), indices=2)
    assert len(data) == 2
    with pytest.raises(UserError, match=r'CustomDataset: no image is left of .*, filter_cfg=None and indices=0 keep'):
        CustomDataset(data_root=str(tmp_path), indices=0)


class StandIn(ModuleType):
    """A package that notes what its functions are called with."""

    def __init__(self, name, **more):
        super().__init__(name)
        self.__spec__, self.calls = ModuleSpec(name, None), []
        vars(self).update(more)

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return lambda *args, **options: self.calls.append((name, args, options))

    def logged(self, name):
        """Return the first arguments of the calls of a function."""
        return [args[0] for called, args, _ in self.calls if called == name]


def test_back_ends_get_what_is_watched(tmp_path, monkeypatch):
    for variable in ('WANDB_MODE', 'MLFLOW_TRACKING_URI'):
        monkeypatch.delenv(variable, raising=False)
    writer, run = StandIn('writer'), StandIn('run')
    packages = dict(
        tensorboard=StandIn('tensorboard'),
        wandb=StandIn('wandb', run=run, config=run),
        mlflow=StandIn('mlflow'),
        sqlalchemy=StandIn('sqlalchemy'),
    )
    packages['torch.utils.tensorboard'] = StandIn('torch.utils.tensorboard', SummaryWriter=lambda folder: writer)
    for name, package in packages.items():
        monkeypatch.setitem(sys.modules, name, package)
    kd = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')
    hook = dict(type='kd_plugins.DistillationHook', teacher=saved_teacher(tmp_path), terms=[kd])
    config = classification_config(image_folder(tmp_path / 'data'), tmp_path / 'run', epochs=1, custom_hooks=[hook])
    config.default_hooks.logger = dict(type='LoggerHook', interval=3)
    config.default_hooks.watch = dict(gradients=3)
    watch(config, ['tensorboard', 'wandb', 'mlflow'])
    watch(config, ['wandb'])  # is there already
    alone = Config(dict(work_dir='x', visualizer=dict(type='Visualizer', vis_backends=dict(type='LocalVisBackend'))))
    watch(alone, ['tensorboard'])
    assert [backend.type for backend in alone.visualizer.vis_backends] == ['LocalVisBackend', 'TensorboardVisBackend']
    assert [backend.type for backend in config.visualizer.vis_backends] == [
        'LocalVisBackend',
        'TensorboardVisBackend',
        'WandbVisBackend',
        'MLflowVisBackend',
    ]
    train(config)
    expected = {
        'loss_kd',
        'raw_loss/kd',
        'weight/kd',
        'loss_share/kd',
        'loss_share/task',
        'gradient/kd',
        'teacher_time',
    }
    assert expected <= {*writer.logged('add_scalar')}
    for package, call in (('wandb', 'log'), ('mlflow', 'log_metrics')):
        (found,) = packages[package].logged(call)
        assert expected <= found.keys()
        assert found['loss_share/kd'] + found['loss_share/task'] == pytest.approx(1)
    (options,) = [options for name, _, options in packages['wandb'].calls if name == 'init']
    assert options['mode'] == 'offline'
    assert packages['mlflow'].logged('set_tracking_uri') == ['sqlite:///mlflow.db']


def test_servers_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'online')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://there')
    config = Config(dict(work_dir='work_dirs/a', visualizer=dict(type='DetLocalVisualizer', name='visualizer')))
    watch(config, ['wandb', 'mlflow'])
    local, wandb, mlflow = config.visualizer.vis_backends
    assert (config.visualizer.type, config.visualizer.name, local.type) == (
        'DetLocalVisualizer',
        'visualizer',
        'LocalVisBackend',
    )
    assert wandb.init_kwargs == dict(mode='online', name='work_dirs/a')
    assert mlflow.tracking_uri == 'http://there'


@pytest.mark.parametrize('missing', ['tensorboard', 'wandb', 'mlflow', 'sqlalchemy'])
def test_the_package_of_a_back_end_is_named_where_it_is_absent(tmp_path, monkeypatch, missing):
    for name in ('tensorboard', 'wandb', 'mlflow', 'sqlalchemy'):
        monkeypatch.setitem(sys.modules, name, None if name == missing else StandIn(name))
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    config = classification_config(tmp_path, tmp_path / 'run')
    config.dump(tmp_path / 'config.py')
    backend = 'mlflow' if missing == 'sqlalchemy' else missing
    args = argparse.Namespace(
        work_dir=None, cfg_options=None, launcher='none', allow_pickle=False, skip_corrupt=False, amp=False
    )
    load_run(str(tmp_path / 'config.py'), argparse.Namespace(**vars(args)), 'train')
    with pytest.raises(UserError, match=f'VisBackend needs the package {backend}: pip install {backend}, or remove'):
        load_run(str(tmp_path / 'config.py'), argparse.Namespace(**vars(args), watch=[backend]), 'train')


@pytest.fixture
def logged(monkeypatch):
    """A list that gets what is logged."""
    lines = []
    monkeypatch.setattr(engine, 'print_log', lambda line, *_: lines.append(line))
    return lines


def run_config(folder, **hook):
    return Config(dict(work_dir=str(folder), default_hooks=dict(checkpoint=dict(type='CheckpointHook', **hook))))


def test_a_wrapper_of_the_config_keeps_its_options_on_a_cpu(monkeypatch):
    monkeypatch.setattr('kd_plugins.engine.join_group', lambda launcher: None)
    monkeypatch.setattr('kd_plugins.engine._check_launcher', lambda launcher: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    found = []
    for more in (
        {},
        dict(model_wrapper_cfg=dict(static_graph=True, device_ids=[0])),
        dict(find_unused_parameters=True),
    ):
        prepare_run(config := Config(more), 'pytorch')
        found.append(config.model_wrapper_cfg.to_dict())
    default = dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None)
    assert found == [
        default | dict(find_unused_parameters=x) | y
        for x, y in ((False, {}), (False, dict(static_graph=True)), (True, {}))
    ]


def test_newest_by_time_then_by_number(tmp_path, logged):
    config = run_config(tmp_path)
    assert latest_checkpoint(config) is None
    assert logged == [f'--resume: {tmp_path} holds no checkpoint of this run: it starts from scratch']
    for name in ('epoch_9.pth', 'epoch_10.pth', 'best_top1_epoch_11.pth', 'epoch_12.pth.partial'):
        save_weights({'x': torch.ones(1)}, tmp_path / name, {})
        os.utime(tmp_path / name, (1000, 1000))
    assert latest_checkpoint(config) == str(tmp_path / 'epoch_10.pth')
    save_weights({'x': torch.ones(1)}, tmp_path / 'epoch_1.pth', {})  # a run that started anew
    assert latest_checkpoint(config) == str(tmp_path / 'epoch_1.pth')
    assert latest_checkpoint(Config(dict(work_dir=str(tmp_path)))) == str(tmp_path / 'epoch_1.pth')


def test_copied_checkpoints_are_in_the_order_in_which_they_were_written(tmp_path):
    for age, name in enumerate(('epoch_10.pth', 'epoch_11.pth', 'epoch_9.pth')):  # as scp writes them
        number = int(name[6:-4])
        save_weights({'x': torch.ones(1)}, tmp_path / name, dict(time=f'20260101_0000{number:02d}'))
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert latest_checkpoint(run_config(tmp_path)) == str(tmp_path / 'epoch_11.pth')
    # A run that was resumed from an earlier checkpoint, and stopped.
    save_weights({'x': torch.ones(1)}, tmp_path / 'epoch_9.pth', dict(time='20260102_000000'))
    assert latest_checkpoint(run_config(tmp_path)) == str(tmp_path / 'epoch_9.pth')


def test_looks_where_the_checkpoint_hook_writes(tmp_path):
    run, elsewhere = tmp_path / 'runs/a', tmp_path / 'elsewhere'
    for path in ('runs/a/epoch_3.pth', 'runs/a/step-0004.pth', 'elsewhere/a/epoch_2.pth', 'elsewhere/b/epoch_5.pth'):
        save_weights({'x': torch.ones(1)}, tmp_path / path, {})
    assert latest_checkpoint(run_config(run, out_dir=str(elsewhere))) == str(elsewhere / 'a/epoch_2.pth')
    assert latest_checkpoint(run_config(run, out_dir=str(run))) == str(run / 'epoch_3.pth')
    assert latest_checkpoint(run_config(run, filename_tmpl='step-{:04d}.pth')) == str(run / 'step-0004.pth')
    save_weights({'x': torch.ones(1)}, run / 'last.pth', {})
    assert latest_checkpoint(run_config(run, filename_tmpl='last.pth')) == str(run / 'last.pth')  # always one name
    config = Config(
        dict(
            work_dir=str(run),
            default_hooks=dict(checkpoint=None),
            custom_hooks=[dict(type=CheckpointHook, out_dir=str(elsewhere))],
        )
    )
    assert latest_checkpoint(config) == str(elsewhere / 'a/epoch_2.pth')
    with pytest.raises(UserError, match=r's3://bucket, is not a local folder: .*give its path after --resume'):
        latest_checkpoint(run_config(run, out_dir='s3://bucket'))


def test_a_damaged_checkpoint_is_logged_and_skipped(tmp_path, logged):
    config = run_config(tmp_path)
    for number in (1, 2, 3):
        save_weights({'x': torch.arange(100.0)}, tmp_path / f'epoch_{number}.pth', {})
    whole = (tmp_path / 'epoch_3.pth').read_bytes()
    (tmp_path / 'epoch_3.pth').write_bytes(whole[:-50])
    at = whole.index(torch.arange(100.0).numpy().tobytes()) + 200  # torch itself would read this one
    (tmp_path / 'epoch_2.pth').write_bytes(whole[:at] + b'\1\2' + whole[at + 2 :])
    for number in (1, 2, 3):
        os.utime(tmp_path / f'epoch_{number}.pth', (number, number))
    assert latest_checkpoint(config) == str(tmp_path / 'epoch_1.pth')
    for line, number in zip(logged, (3, 2), strict=True):
        assert f'epoch_{number}.pth is not a readable checkpoint' in line
    (tmp_path / 'epoch_1.pth').unlink()
    with pytest.raises(UserError, match=r'epoch_2\.pth is not a readable .* start a new run, without --resume'):
        latest_checkpoint(config)
