"""What a config says, where its paths lie, and which options are read."""

import copy
from contextlib import nullcontext

import pytest
from tiny import classification_config

from kd_plugins.config import load_config, located
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


def test_a_slip_in_an_option(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text("model = dict(type='A')\nbase_lr = 1\nnote = 'x'")
    for option, near in (('optim_wraper.optimizer.lr', 'optim_wrapper'), ('base_lrs', 'base_lr')):
        with pytest.raises(UserError, match=f"--cfg-options {option}: nothing reads .*; did you mean '{near}'"):
            load_config(str(path), None, {option: 1})
    assert load_config(str(path), None, {'mine': 1, 'train_cfg.max_epochs': 2}).mine == 1


@pytest.mark.parametrize('imports', ["'json'", "dict(imports=['nosuch_module'])", 'dict(import_=5)'])
def test_imports_that_fail_are_reported_by_their_key(tmp_path, imports):
    (tmp_path / 'cfg.py').write_text(f'custom_imports = {imports}\n')
    with pytest.raises(UserError, match=r'cfg\.py: custom_imports is .*, expected dict'):
        load_config(str(tmp_path / 'cfg.py'))


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


def test_an_option_replaces_a_number_by_a_dict_and_is_named_alone_where_it_cannot(config, tmp_path):
    term = dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), student='neck', teacher='neck', weight=1.0)
    hook = dict(type='kd_plugins.DistillationHook', teacher=dict(config='x.py', checkpoint=None), terms=[term])
    config.custom_hooks, config.optim_wrapper.clip_grad = [hook], None
    config.dump(tmp_path / 'x.py')
    weight, clip = dict(at=[0, 1], value=[1.0, 0.0]), dict(max_norm=1.0)
    options = {
        'custom_hooks.0.terms.0.weight': weight,
        'optim_wrapper.clip_grad': clip,
        'train_cfg': dict(max_epochs=7),
    }
    config.randomness, options['randomness.seed'] = None, 3
    config.dump(tmp_path / 'x.py')
    read = load_config(str(tmp_path / 'x.py'), options=options)
    assert read.custom_hooks[0].terms[0].to_dict() == term | dict(weight=weight)
    assert read.optim_wrapper.clip_grad.to_dict() == clip
    assert read.randomness.to_dict() == dict(seed=3)
    assert read.train_cfg.to_dict() == config.train_cfg.to_dict() | dict(max_epochs=7)
    options = {'train_cfg.max_epochs': 3, 'custom_hooks.7.type': 'EMAHook'}
    with pytest.raises(UserError, match=r'^--cfg-options custom_hooks\.7\.type: not possible in .*: KeyError'):
        load_config(str(tmp_path / 'x.py'), options=options)


def test_an_empty_method_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv('METHOD', '')
    (tmp_path / 'x.py').write_text("name = '{{$METHOD:kd}}'")
    assert load_config(str(tmp_path / 'x.py')).name == 'kd'


def test_a_config_that_uses_an_import_without_a_base_says_so(tmp_path):
    text = "from kd_plugins.config import trained\nrequires = [trained('teacher.py')]\n"
    (tmp_path / 'x.py').write_text(text)
    (tmp_path / 'teacher.py').write_text('')
    with pytest.raises(UserError, match=r'x\.py is no valid config: it uses what .* begin it with _base_ = \[\]$'):
        load_config(str(tmp_path / 'x.py'))
    (tmp_path / 'x.py').write_text(f'_base_ = []\n{text}')
    assert load_config(str(tmp_path / 'x.py')).requires[0].checkpoint.endswith('teacher/student.pth')
