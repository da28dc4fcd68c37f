"""What every command does between reading a config and running it."""

import os
import signal
import time

import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmpretrain.datasets import CustomDataset
from tiny import image_folder

from kd_plugins.engine import alone_in, prepare_run, scope_of
from kd_plugins.errors import UserError


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
        export='kd_plugins.ExportHook',
    )


def test_given_hooks_stay_and_without_checkpoints_none_is_exported():
    config = Config(dict(default_hooks=dict(checkpoint=None, reseed=None, logger=dict(type='LoggerHook', interval=7))))
    prepare_run(config)
    assert config.default_hooks.to_dict() == dict(
        checkpoint=None,
        reseed=None,
        logger=dict(type='LoggerHook', interval=7),
        integrity=dict(type='kd_plugins.IntegrityHook'),
        check=dict(type='kd_plugins.CheckHook'),
        accumulation=dict(type='kd_plugins.AccumulationHook'),
        corruption=dict(type='kd_plugins.CorruptionHook'),
    )


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
        with pytest.raises(UserError, match='run: another command is at work'), alone_in(tmp_path / 'run'):
            pass
        monkeypatch.setenv('RANK', '1')  # the first process of a group holds it for the others
        with alone_in(tmp_path / 'run', 'pytorch'):
            pass
        os.read(started, 1)
    with alone_in(tmp_path / 'run'):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


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
