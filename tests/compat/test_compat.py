"""How ``mmcv._ext`` is found, and the errors for operators that it lacks."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmcv import ops

from kd_plugins.compat import check_operators, provide_mmcv_ops
from kd_plugins.compat import ops as mmcv_ops
from kd_plugins.errors import UserError

if importlib.util.find_spec('mmcv._ext').origin != mmcv_ops.__file__:
    pytest.skip('mmcv is compiled here', allow_module_level=True)

REPOSITORY = Path(__file__).parents[2]


def run(code: str, *path: Path) -> str:
    sys_path = [str(p) for p in (*path, REPOSITORY)]
    return subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path[:0] = {sys_path}\n{code}'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_import_is_cheap():
    code = "import kd_plugins; print([m for m in ('torch', 'mmcv', 'mmengine', 'numpy') if m in sys.modules])"
    assert run(code) == '[]'


def test_spec_is_real_and_the_finder_is_last_and_once():
    provide_mmcv_ops()
    finders = [f for f in sys.meta_path if getattr(f, '__name__', '') == '_MMCVOpsFinder']
    assert len(finders) == 1
    code = 'import kd_plugins; print(sys.meta_path[-1].__name__)'
    assert run(code) == '_MMCVOpsFinder'
    spec = importlib.util.find_spec('mmcv._ext')
    assert spec.origin == mmcv_ops.__file__
    assert finders[0].find_spec('mmcv._other') is None
    assert finders[0].find_spec('_ext') is None


def test_compiled_module_is_not_shadowed(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()
    (tmp_path / 'mmcv/_ext.py').write_text('compiled = True')
    code = 'import kd_plugins, mmcv._ext; print(mmcv._ext.compiled, mmcv._ext.__file__)'
    assert run(code, tmp_path) == f'True {tmp_path / "mmcv/_ext.py"}'


def test_unknown_operator_names_itself_and_the_build():
    with pytest.raises(UserError) as info:
        ops.knn(3, torch.zeros(1, 4, 3), torch.zeros(1, 4, 3))
    message = str(info.value)
    assert 'knn_forward' in message
    for part in ('MMCV_WITH_OPS=1', '--no-binary onedl-mmcv', '--no-cache-dir', '--no-build-isolation'):
        assert part in message
    assert '\n' not in message
    assert not hasattr(sys.modules['mmcv._ext'], '__path__')


def test_an_operator_that_a_model_will_lack_is_reported_before_it_is_called(monkeypatch):
    def check(*modules):
        check_operators(torch.nn.ModuleDict({f'part{i}': module for i, module in enumerate(modules)}))

    check(
        ops.MaskedConv2d(2, 2, 1),
        ops.RoIAlign(7),
        ops.RoIPool(7, 1.0),
        ops.DeformConv2d(2, 2, 1),
        ops.ModulatedDeformConv2dPack(2, 2, 1),
        ops.MultiScaleDeformableAttention(8, 2),
        ops.SimpleRoIAlign(7, 1.0),
    )
    with pytest.raises(UserError, match=r'^part1 is a CARAFEPack: mmcv operator carafe_\w+: .*MMCV_WITH_OPS=1'):
        check(torch.nn.Identity(), ops.CARAFEPack(8, 2))
    with pytest.raises(UserError, match=r"^part0 is a RoIAlign: mmcv operator roi_align with pool_mode='max'"):
        check(ops.RoIAlign(7, pool_mode='max'))
    monkeypatch.setitem(sys.modules, 'mmcv._ext', torch)  # as a compiled one, another file
    check(ops.RoIAlign(7, pool_mode='max'))


@pytest.mark.parametrize(('transformers', 'multimodal'), [('4.57.1', True), ('5.0.0', False), ('5.24.0', False)])
def test_multimodal_models_are_left_out_beside_transformers_5_alone(monkeypatch, transformers, multimodal):
    """mmpretrain checks for 4.28 or newer, and knows no 5."""
    folder = importlib.import_module('mmpretrain.utils').__path__
    versions = dict(transformers=transformers, pycocotools='2.0.8')
    monkeypatch.setattr('importlib.metadata.distribution', lambda name: SimpleNamespace(version=versions[name]))
    finders = [finder for finder in sys.meta_path if getattr(finder, '__name__', '') == '_DependencyFinder']
    assert len(finders) == 1
    spec = finders[0].find_spec('mmpretrain.utils.dependency', folder)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.WITH_MULTIMODAL is multimodal
    assert module.satisfy_requirement('transformers>=4.28.0')  # all else of the module is mmpretrain's
    assert finders[0].find_spec('mmpretrain.utils.other', []) is None


def test_mmpretrain_can_be_imported_beside_transformers_5():
    if importlib.metadata.version('transformers') < '5':
        pytest.skip('transformers 4 is installed')
    code = (
        'import kd_plugins, mmpretrain.models\n'
        'from mmpretrain.registry import MODELS\n'
        "print(MODELS.get('ImageClassifier').__name__, MODELS.get('Blip2VQA').__name__)"
    )
    assert run(code).splitlines()[-1] == 'ImageClassifier ask_install'


def test_environment_report_is_honest():
    from mmcv.utils import collect_env

    report = collect_env()
    assert 'torchvision' in report['MMCV Compiler']
    assert report['MMCV CUDA Compiler'].startswith('none')
