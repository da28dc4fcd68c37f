"""What every command does between reading a config and running it."""

import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config

from kd_plugins.engine import prepare_run, scope_of
from kd_plugins.errors import UserError


@pytest.mark.parametrize('given', [{}, dict(default_hooks=None), dict(default_hooks={})])
def test_a_config_without_default_hooks_gets_them(given):
    config = Config(given)
    prepare_run(config)
    assert {name: hook.type for name, hook in config.default_hooks.items()} == dict(
        reseed='kd_plugins.ReseedHook', integrity='kd_plugins.IntegrityHook', check='kd_plugins.CheckHook',
        corruption='kd_plugins.CorruptionHook', export='kd_plugins.ExportHook')


def test_given_hooks_stay_and_without_checkpoints_none_is_exported():
    config = Config(dict(default_hooks=dict(checkpoint=None, reseed=None, logger=dict(type='LoggerHook', interval=7))))
    prepare_run(config)
    assert config.default_hooks.to_dict() == dict(
        checkpoint=None, reseed=None, logger=dict(type='LoggerHook', interval=7),
        integrity=dict(type='kd_plugins.IntegrityHook'), check=dict(type='kd_plugins.CheckHook'),
        corruption=dict(type='kd_plugins.CorruptionHook'))


@pytest.mark.parametrize('load', ['LoadImageFromFile', 'mmcv.LoadImageFromFile', LoadImageFromFile])
def test_images_are_checked_by_name_and_by_class(load):
    """Also below wrapped data sets; those that are scored are never left out."""
    def loader():
        return dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=[dict(type=load, to_float32=True)])))

    config = Config(dict(train_dataloader=loader(), val_dataloader=loader(), test_dataloader=loader()))
    prepare_run(config, skip_corrupt=True)
    for name, skips in (('train', True), ('val', False), ('test', False)):
        assert config[f'{name}_dataloader'].dataset.dataset.pipeline[0] == dict(
            type='kd_plugins.LoadImage', to_float32=True, skip_corrupt=skips)


def test_the_scope_of_a_config_by_text_and_by_class():
    from mmpretrain.models import ImageClassifier

    for model in (dict(type='mmpretrain.ImageClassifier'), dict(type=ImageClassifier),
                  dict(type='kd_plugins.Distiller', student=dict(type=ImageClassifier)),
                  dict(type='ImageClassifier', _scope_='mmpretrain')):
        assert scope_of(Config(dict(model=model))) == 'mmpretrain'
    assert scope_of(Config(dict(default_scope='mmdet', model=dict(type='x.Y')))) == 'mmdet'


def test_processes_that_no_launcher_started_are_refused(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match='use torchrun --nproc_per_node'):
        prepare_run(Config({}), 'pytorch')
