"""What is checked of a config before anything is built."""

import copy
import logging
from contextlib import nullcontext

import pytest
from mmengine.config import Config
from tiny import classification_config

from kd_plugins.config import check_config, load_config, located, one_slip
from kd_plugins.errors import UserError


@pytest.fixture
def config(tmp_path):
    loader = dict(dataset=dict(type='CustomDataset'), sampler=dict(type='DefaultSampler'))
    return classification_config(
        tmp_path, tmp_path, val_cfg={}, val_evaluator=dict(type='Accuracy'), val_dataloader=loader
    )


def test_a_yaml_config_runs_no_code(tmp_path):
    (tmp_path / 'x.yaml').write_text(f'model: !!python/object/apply:os.mkdir [{tmp_path}/executed]')
    with pytest.raises(UserError, match=r'x\.yaml: .* holds code, which is refused .*os\.mkdir'):
        load_config(str(tmp_path / 'x.yaml'))
    assert not (tmp_path / 'executed').exists()
    (tmp_path / 'x.yaml').write_text('model: {type: A, sizes: [1, 2]}')
    assert load_config(str(tmp_path / 'x.yaml')).model.sizes == [1, 2]


def test_a_run_writes_its_config_without_yapf(tmp_path, monkeypatch):
    """mmengine writes it six times, and yapf takes half a second for each."""
    (tmp_path / 'x.py').write_text('model = dict(type="A", sizes=[1, 2])\n')
    config = copy.deepcopy(load_config(str(tmp_path / 'x.py')))  # as the runner does
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda *args, **kwargs: pytest.fail('yapf was called'))
    config.dump(tmp_path / 'y.py')
    assert load_config(str(tmp_path / 'y.py')).model == dict(type='A', sizes=[1, 2])


def test_a_variant_names_a_folder(tmp_path):
    """A config of 0.1 may use the name for something else."""
    (tmp_path / 'x.py').write_text("variant = 'b'")
    assert load_config(str(tmp_path / 'x.py')).work_dir == 'work_dirs/x/b'
    (tmp_path / 'x.py').write_text('variant = 2')
    with pytest.raises(UserError, match=r'x\.py: variant is 2, expected a text, .*rename'):
        load_config(str(tmp_path / 'x.py'))


def test_what_a_run_writes_is_meant_from_where_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('clone/configs', 'clone/data', 'clone/work_dirs'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'clone/configs/x.py').write_text(
        "root = 'work_dirs/'\ndata_root = 'data/'\nprepare = [dict(root='data/')]\nteacher = [dict(cache='data/')]\n"
        "hook = dict(out_dir='work_dirs/', save_to='work_dirs/', test_out_dir='work_dirs/', out_file_path='work_dirs/')"
    )
    config = load_config(str(tmp_path / 'clone/configs/x.py'))
    read = str(tmp_path / 'clone/data/') + '/'
    assert (config.data_root, config.prepare) == (read, [dict(root=read)])  # drawn data are there already
    assert (config.root, config.teacher) == ('work_dirs/', [dict(cache='data/')])
    assert {*config.hook.values()} == {'work_dirs/'}


def test_a_path_that_exists_here_stays_as_it_is_written(tmp_path, monkeypatch):
    """Data sets may join it to a name without a slash; a text of any length that begins like a path is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').mkdir()
    assert located('data/', 'x.py') == 'data/'
    assert located(text := f'data/{"x" * 300}', 'x.py') == text


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
    monkeypatch.setattr('kd_plugins.config.print_log', lambda text, *args: logged.append(text))
    check_config(config)
    (text,) = logged
    assert text.endswith("has 'custom_hook', which nothing reads, beside 'custom_hooks'")


def test_a_slip_in_an_option(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text("model = dict(type='A')\nbase_lr = 1\nnote = 'x'")
    for option, near in (('optim_wraper.optimizer.lr', 'optim_wrapper'), ('base_lrs', 'base_lr')):
        with pytest.raises(UserError, match=f"--cfg-options {option}: nothing reads .*; did you mean '{near}'"):
            load_config(str(path), None, {option: 1})
    assert load_config(str(path), None, {'mine': 1, 'train_cfg.max_epochs': 2}).mine == 1


@pytest.mark.parametrize(
    ('word', 'other', 'slip'),
    [
        ('hook', 'hooks', True),
        ('hooks', 'hook', True),
        ('hoks', 'hooks', True),
        ('hosok', 'hooks', False),
        ('hokos', 'hooks', True),
        ('hooks', 'hooks', False),
        ('stage1', 'stage2', False),
        ('stage', 'stage2', False),
        ('looks', 'hooks', True),
        ('loops', 'hooks', False),
        ('s_hooks', 'hooks', False),
    ],
)
def test_slips_of_the_finger(word, other, slip):
    assert one_slip(word, other) == slip


@pytest.mark.parametrize('imports', ["'json'", "dict(imports=['nosuch_module'])", 'dict(import_=5)'])
def test_imports_that_fail_are_reported_by_their_key(tmp_path, imports):
    (tmp_path / 'cfg.py').write_text(f'custom_imports = {imports}\n')
    with pytest.raises(UserError, match=r'cfg\.py: custom_imports is .*, expected dict'):
        load_config(str(tmp_path / 'cfg.py'))


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


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('max_epochs', "nothing reads 'max_epochs'; did you mean 'train_cfg.max_epochs'"),
        ('lr', "nothing reads 'lr'; did you mean 'optim_wrapper.optimizer.lr'"),
        (
            'terms.0.weight',
            r'was copied when the file was read, and is read no more: give custom_hooks\.0\.terms\.0\.wei',
        ),
        ('teacher.checkpoint', r'give custom_hooks\.0\.teacher\.checkpoint$'),
        ('distillation.task', r'give custom_hooks\.0\.task$'),
        ('data_root', r'give train_dataloader\.dataset\.data_root$'),
        ('train_pipeline.0.scale', r'give train_dataloader\.dataset\.pipeline\.0\.scale$'),
        ('custom_hooks.0.terms.0.weight', None),
        ('mine', None),
        ('another', None),
    ],
)
def test_an_option_that_nothing_reads_is_refused(config, tmp_path, option, message):
    """A config copies its variables when it is read."""
    config.data_root = config.train_dataloader.dataset.data_root = 'somewhere'
    config.train_pipeline = config.train_dataloader.dataset.pipeline
    config.teacher, config.mine = dict(config='x.py', checkpoint='x.pth'), 3
    config.terms = [dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), student='neck', teacher='neck', weight=1.0)]
    config.distillation = dict(teacher=config.teacher, terms=config.terms, task='train')
    config.custom_hooks = [dict(config.distillation, type='kd_plugins.DistillationHook')]
    config.dump(tmp_path / 'x.py')
    with pytest.raises(UserError, match=message) if message else nullcontext():
        assert load_config(str(tmp_path / 'x.py'), options={option: 7})


@pytest.mark.parametrize('change', ['other', 'same', 'several', 'some'])
def test_terms_beside_the_hook_that_has_others_are_noted(config, monkeypatch, change):
    """An inheriting config has set them; its base had copied its own into the hook before."""
    said = []
    monkeypatch.setattr('kd_plugins.config.print_log', lambda text, *_: said.append(text))
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
    monkeypatch.setattr('kd_plugins.config.print_log', lambda text, *_: said.append(text))
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


def test_a_config_that_uses_an_import_without_a_base_says_so(tmp_path):
    text = "from kd_plugins.config import trained\nrequires = [trained('teacher.py')]\n"
    (tmp_path / 'x.py').write_text(text)
    (tmp_path / 'teacher.py').write_text('')
    with pytest.raises(UserError, match=r'x\.py is no valid config: it uses what .* begin it with _base_ = \[\]$'):
        load_config(str(tmp_path / 'x.py'))
    (tmp_path / 'x.py').write_text(f'_base_ = []\n{text}')
    assert load_config(str(tmp_path / 'x.py')).requires[0].checkpoint.endswith('teacher/student.pth')
