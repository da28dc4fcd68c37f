"""What is checked of a config before anything is built."""

import logging

import pytest
from mmengine.config import Config
from tiny import classification_config

from kd_plugins.config import check_config, load_config
from kd_plugins.errors import UserError


@pytest.fixture
def config(tmp_path):
    loader = dict(dataset=dict(type='CustomDataset'), sampler=dict(type='DefaultSampler'))
    return classification_config(
        tmp_path, tmp_path, val_cfg={}, val_evaluator=dict(type='Accuracy'), val_dataloader=loader
    )


@pytest.mark.parametrize(
    'path',
    [
        'model',
        'train_dataloader',
        'train_cfg',
        'optim_wrapper',
        'val_cfg',
        'val_evaluator',
        'train_dataloader.dataset',
        'train_dataloader.batch_size',
        'optim_wrapper.optimizer',
    ],
)
def test_what_training_needs_is_missed(config, path):
    check_config(config)
    above, _, key = path.rpartition('.')
    (config[above] if above else config).pop(key)
    with pytest.raises(UserError, match=f'has.* no {key}: '):
        check_config(config)


def test_scoring_needs_other_parts(config):
    with pytest.raises(UserError, match='has no test_dataloader: '):
        check_config(config, 'test')
    scoring = Config(
        dict(
            model=config.model, test_dataloader=config.val_dataloader, test_cfg={}, test_evaluator=dict(type='Accuracy')
        )
    )
    check_config(scoring, 'test')
    with pytest.raises(UserError, match='has no train_dataloader: '):
        check_config(scoring)


@pytest.mark.parametrize(
    ('path', 'value', 'expected'),
    [
        ('train_dataloader.batch_size', 0, 'a whole number of at least 1'),
        ('train_dataloader.dataset.data_prefix', ['a', 5], 'a text, or a list or dict of texts'),
        ('train_dataloader.batch_size', True, 'a whole number of at least 1'),
        ('train_cfg.max_epochs', 'ten', 'a whole number of at least 1'),
        ('optim_wrapper.optimizer.lr', float('nan'), 'a finite number of at least 0'),
        ('optim_wrapper.optimizer.nesterov', float('nan'), 'a number'),
        ('model.head.num_classes', 0, 'a whole number of at least 1'),
        ('model.backbone.type', None, 'the name of a registered class'),
        ('train_dataloader.dataset.metainfo', dict(classes='dog'), 'a single one needs a comma'),
        ('custom_hooks', dict(type='EMAHook'), 'a list of config dicts'),
        ('default_hooks.logger', 'LoggerHook', 'a config dict with a type'),
        ('randomness.seed', 2**32, 'a whole number from 0 to 4294967295'),
        ('requires', [dict(config='x.py')], "a list of dict\\(config='...', checkpoint='...'\\)"),
    ],
)
def test_a_value_that_its_place_cannot_have_is_named(config, path, value, expected):
    config.merge_from_dict({path: value})
    with pytest.raises(UserError, match=rf'{path}.* is .*, expected .*{expected}|{path} is NaN, expected {expected}'):
        check_config(config)


@pytest.mark.parametrize(('level', 'known'), [('INFO', True), ('WARN', True), (20, True), ('LOUD', False), (15, False)])
def test_levels_are_known_to_any_python(config, level, known, monkeypatch):
    """``logging`` has a list of them from Python 3.11 on."""
    monkeypatch.delattr(logging, 'getLevelNamesMapping', raising=False)
    config.log_level = level
    if known:
        check_config(config)
    else:
        with pytest.raises(UserError, match=f"log_level is {level!r}, expected a level of Python's logging"):
            check_config(config)


@pytest.mark.parametrize(
    'change',
    [
        {'train_dataloader.dataset.metainfo': dict(classes=('dog',))},
        {'batch_size': None},
        {'scale': float('nan')},
        {'custom_hooks': []},
        {'default_hooks.logger': None},
        {'randomness.seed': None},
        {'optimizer_lr': 'x'},
        {'param_scheduler': []},
        {'hook': dict(type='EMAHook')},
        {'optim_wrapper.paramwise_cfg': dict(_delete=True)},
        {'optim_wrapper.clip_grad': dict(max_norm=float('inf'))},
        {'resume': None},
        {'cfgs': 1},
        {'launcher': 'none'},
    ],
)
def test_what_an_author_may_write_passes(config, change):
    config.merge_from_dict(change)
    check_config(config)


def test_a_slip_in_a_name_that_the_runner_reads(config, monkeypatch):
    config.custom_hook = [dict(type='EMAHook')]
    with pytest.raises(UserError, match="'custom_hook', which nothing reads, and no 'custom_hooks'"):
        check_config(config)
    config.custom_hooks = [config.custom_hook[0]]  # a variable of the author's own
    logged: list[str] = []
    monkeypatch.setattr('kd_plugins.config.checks.print_log', lambda text, *args: logged.append(text))
    check_config(config)
    (text,) = logged
    assert text.endswith("has 'custom_hook', which nothing reads, beside 'custom_hooks'")


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('optim_wrapper.optimizer.type', 'SDG', "optimizer: type 'SDG' is not registered; nearest names: SGD"),
        ('train_dataloader.collate_fn', dict(type='nosuch'), "collate_fn: type 'nosuch' is not registered"),
        ('default_scope', 'mmnosuch', "default_scope is 'mmnosuch', which is not an installed package"),
        ('optim_wrapper.paramwise_cfg', dict(custom_key={}), "no option 'custom_key'; options are .*custom_keys"),
        ('default_hooks.checkpoint', dict(type='CheckpointHook', save_best='auto'), "save_best is 'auto', but without"),
        ('model.data_preprocessor', dict(mean=[1.0] * 3, std=[1.0] * 2), 'give as many of both'),
    ],
)
def test_names_that_nothing_answers_to(config, path, value, message):
    config.merge_from_dict({path: value})
    if 'save_best' in message:
        for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
            config.pop(key)
    with pytest.raises(UserError, match=message):
        check_config(config)


@pytest.mark.parametrize('name', ['RepeatedViews', 'BatchedImages'])
@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset', 'mmengine.ClassBalancedDataset'])
def test_a_data_set_that_must_be_outermost_is_not_wrapped(config, name, wrapper):
    plain = config.train_dataloader.dataset

    def nested(outer: str, inner: str) -> dict:
        part = dict(type=inner, datasets=[plain]) if inner == 'ConcatDataset' else dict(type=inner, dataset=plain)
        inside = dict(datasets=[plain, part]) if outer == 'ConcatDataset' else dict(dataset=part)
        return dict(type='RepeatDataset', times=1, dataset=dict(type=outer, **inside))

    config.train_dataloader.dataset = nested(wrapper, f'kd_plugins.{name}')
    short = wrapper.rpartition('.')[2]
    expected = rf'train_dataloader\.dataset\.dataset has {name} inside a {short}: put {name} around the {short}'
    with pytest.raises(UserError, match=expected):
        check_config(config)
    config.train_dataloader.dataset = nested(f'kd_plugins.{name}', wrapper)['dataset']
    check_config(config)


def test_a_study_is_sent_to_its_command():
    with pytest.raises(UserError, match=r'is a study: kd-study x\.py'):
        check_config(Config(dict(networks={}, methods={})), where='x.py')


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', None])
def test_a_backbone_is_no_model(config, scope):
    name = 'ResNet' if scope else 'mmpretrain.ResNet'
    form = rf"=dict\(type='mmpretrain\.ImageClassifier', backbone=dict\(type='{name}', \.\.\.\)\)"
    config.default_scope, config.model = scope, dict(type=name, depth=18)
    with pytest.raises(UserError, match=rf'model is a {name}, which is no whole model: .* give model{form}'):
        check_config(config)
    config.model = dict(type='kd_plugins.Distiller', student=config.model)
    with pytest.raises(UserError, match=rf'model\.student is a {name}, .* give student{form}'):
        check_config(config)
    config.model = dict(type='mmpretrain.ImageClassifier', backbone=config.model.student)
    check_config(config)
    config.model.type = '.'  # no name at all: the build says so
    check_config(config)


@pytest.mark.parametrize('change', ['other', 'same', 'several', 'some'])
def test_terms_beside_the_hook_that_has_others_are_noted(config, monkeypatch, change):
    """An inheriting config has set them; its base had copied its own into the hook before."""
    said = []
    monkeypatch.setattr('kd_plugins.config.checks.print_log', lambda text, *_: said.append(text))
    sp, at = (dict(name=x, student='neck', teacher='neck', loss=dict(type='kd_plugins.SPLoss')) for x in ('sp', 'at'))
    config.terms = dict(other=[at], some=[at, sp]).get(change, [sp])
    config.teacher = dict(config='x.py', checkpoint='x.pth')
    hook = dict(type='kd_plugins.DistillationHook', terms=[sp, at][: 1 + (change == 'several')], teacher=config.teacher)
    config.custom_hooks = [hook]
    check_config(config)
    assert ["none of 'terms' is in custom_hooks.0.terms" in line for line in said] == [True] * (change == 'other')


def test_a_base_that_is_named_by_a_variable_of_mmengine_is_read(tmp_path):
    hook = "dict(type='kd_plugins.DistillationHook', teacher=dict(torchvision='resnet18'), terms=[])"
    (tmp_path / 'base.py').write_text("_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'")
    (tmp_path / 'x.py').write_text(f"_base_ = '{{{{ fileDirname }}}}/base.py'\ncustom_hooks = [{hook}]")
    check_config(load_config(str(tmp_path / 'x.py')))


@pytest.mark.parametrize('kept', [False, True])
def test_hooks_of_the_base_that_a_new_list_leaves_out_are_named(tmp_path, monkeypatch, kept):
    said = []
    monkeypatch.setattr('kd_plugins.config.checks.print_log', lambda text, *_: said.append(text))
    hook = "dict(type='kd_plugins.DistillationHook', teacher=dict(torchvision='resnet18'), terms=[])"
    (tmp_path / 'x.py').write_text(
        "_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'\n"
        f'custom_hooks = [{"*_base_.custom_hooks, " if kept else ""}{hook}]\n'
    )
    check_config(load_config(str(tmp_path / 'x.py')))
    line = (
        f'{tmp_path}/x.py: custom_hooks replaces the list of mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py, and leaves '
        'out its EMAHook, PipelineSwitchHook: to keep what is there, write custom_hooks = [*_base_.custom_hooks, '
        'dict(...)]'
    )
    assert [text for text in said if 'custom_hooks' in text] == ([] if kept else [line])


def test_an_option_that_a_hook_of_the_package_does_not_have_is_named(config):
    config.custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=dict(config='x.py'), term=[])]
    with pytest.raises(UserError, match="DistillationHook has no option 'term': did you mean 'terms'"):
        check_config(config)
    config.custom_hooks = [dict(type='kd_plugins.KNNHook', priority='LOW'), dict(type='EMAHook', unknown=1)]
    with pytest.raises(UserError, match=r"KNNHook needs the option '\w+'"):
        check_config(config)
