"""What an installation has beside the modules: configs, tools and commands, at OpenMMLab's place for them."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.config import utils as mmengine_utils
from mmengine.hub import get_config

from kd_plugins import commands
from kd_plugins.compat.configs import provide_configs
from kd_plugins.config import check_config, load_config
from kd_plugins.distillation.sources import build_network
from kd_plugins.errors import UserError
from kd_plugins.utils import packages

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'kd_plugins' / '.mim'


def test_the_index_lists_every_metafile():
    listed = yaml.safe_load((PACKAGE / 'model-index.yml').read_text())['Import']
    assert listed == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/**/metafile.yml'))
    for name in listed:  # mmengine looks every model of these up
        assert all(
            (PACKAGE / model['Config']).is_file() for model in yaml.safe_load((PACKAGE / name).read_text())['Models']
        )


@pytest.fixture
def inherited(tmp_path, monkeypatch):
    """A folder with configs that inherit from the package's."""
    monkeypatch.chdir(tmp_path)
    for name in ('cifar10/resnet8', 'voc/nst_voc', 'nst_voc_mini'):
        Path(f'{Path(name).name}.py').write_text(f"_base_ = 'kd_plugins::{name}.py'\n")
    return tmp_path


def test_mmengine_inherits_from_the_package_that_is_imported_first(inherited):
    code = (
        'import kd_plugins; from mmengine.config import Config; config = Config.fromfile("resnet8.py"); '
        'print(config.model.backbone.type, config.default_scope)'
    )
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert answer.splitlines()[-1] == 'kd_plugins.CifarResNet mmpretrain'


def test_mmengine_inherits_from_the_package_that_is_imported_last(inherited, monkeypatch):
    monkeypatch.delitem(mmengine_utils.MODULE2PACKAGE, 'kd_plugins')
    monkeypatch.setattr(Config, '_get_cfg_path', Config._get_cfg_path)  # and back after the test
    provide_configs()
    assert get_config('kd_plugins::cifar10/resnet8.py').model.backbone.depth == 8
    for name in ('nst_voc', 'nst_voc_mini'):
        assert Config.fromfile(f'{name}.py').default_scope == 'mmdet'


def test_a_config_is_found_without_the_metafiles_of_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr(mmengine_utils, '_get_cfg_metainfo', lambda *_: pytest.fail('they are read'))
    name = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    (tmp_path / 'mine.py').write_text(f'_base_ = {name!r}')
    config = Config.fromfile(tmp_path / 'mine.py')
    assert config.model['_scope_'] == 'mmpretrain'  # as mmengine adds it
    assert build_network(name).backbone.depth == config.model.backbone.depth == 18


def test_names_in_inherited_configs_keep_their_scope(inherited):
    model = Config.fromfile('resnet8.py').model
    assert '_scope_' not in model  # else mmpretrain's ImageClassifier would be looked up in this package


@pytest.mark.parametrize('name', ['nst_voc_mini.py', 'kd_plugins::nst_voc_mini.py'])
def test_paths_in_the_packages_configs_lead_there_from_elsewhere(inherited, name):
    config = load_config(name)
    required = Path(config.requires[0].config)
    assert required.samefile(ROOT / 'configs/voc_mini/student_from_teacher_nst.py')
    checkpoint = 'work_dirs/voc_mini/student_from_teacher_nst/student.pth'
    trained = ROOT / checkpoint  # a checkout's own is taken where it is there
    by_package = name.startswith('kd_plugins::') and trained.exists()
    assert config.requires[0].checkpoint == (str(trained) if by_package else checkpoint)
    assert config.work_dir == 'work_dirs/nst_voc_mini'


@pytest.mark.parametrize(('package', 'distribution'), [('mmdet', 'detection'), ('mmseg', 'segmentation')])
def test_the_package_of_a_stock_config_is_named_as_pip_knows_it(package, distribution, monkeypatch):
    monkeypatch.setattr(packages, 'find_spec', lambda name: None)
    remedy = f"no package '{package}' is installed: pip install onedl-mm{distribution}$"
    with pytest.raises(UserError, match=remedy):
        packages.packaged_config(f'{package}::a.py')
    assert f'onedl-mm{distribution}==' in (ROOT / 'requirements.txt').read_text()


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('kd_plugins::nst_vocc.py', r'; nearest names: nst_voc\.py, '),
        ('mmpretrain::resnet/resnet18_8xb16_cifar11.py', r'; nearest names: resnet/resnet18_8xb16_cifar10\.py, '),
        ('nosuch::a/b.py', ": no package 'nosuch' is installed"),
        ('::a.py', ": no package '' is installed"),
        ('a.b::c.py', r": no package 'a\.b' is installed"),
        ('configs/nosuch.py', ': give the path of a .py file, .* kd_plugins::nst_voc.py'),
        ('resnet9.py', r'; nearest names: resnet8\.py'),
    ],
)
@pytest.mark.parametrize('where', ['command', 'inherited', 'teacher'])
def test_a_config_that_is_not_there_is_named(name, hint, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath('resnet8.py').touch()
    found = f'config {name} does not exist{hint}'
    if where == 'command':
        with pytest.raises(UserError, match=f'^{found}'):
            load_config(name)
        return
    kd = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')
    hook = dict(type='kd_plugins.DistillationHook', teacher=dict(config=name), terms=[kd])
    written = dict(
        inherited=f'_base_ = {name!r}', teacher=f"_base_ = 'kd_plugins::cifar10/resnet8.py'\ncustom_hooks = [{hook}]"
    )
    tmp_path.joinpath('mine.py').write_text(written[where])
    if where == 'teacher':
        config = load_config('mine.py')
        check_config(config, 'test')  # scored where the teacher's package is not installed
        with (
            pytest.raises(UserError, match=f'^mine.py: custom_hooks.0.teacher.config: {found}')
            if '::' in name
            else nullcontext()
        ):
            check_config(config)  # another file may be written by a run that comes first
    elif '::' in name:
        with pytest.raises(UserError, match=f'^mine.py: {found}'):
            load_config('mine.py')


@pytest.mark.parametrize('tool', sorted(path.stem for path in ROOT.glob('tools/*.py')))
def test_a_command_is_the_tool_of_its_name(tool, monkeypatch):
    called = []
    monkeypatch.setattr(os, 'execv', lambda *arguments: called.append(arguments))
    monkeypatch.setattr(sys, 'argv', [f'/somewhere/bin/kd-{tool.replace("_", "-")}', 'a', '--b'])
    commands.main()
    (_, (python, path, *arguments)) = called[0]
    assert python == sys.executable
    assert Path(path).samefile(ROOT / 'tools' / f'{tool}.py')
    assert arguments == ['a', '--b']
