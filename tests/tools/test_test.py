"""``tools/test.py``, and mmdet's own script, on runs of a second."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from tiny import classification_config, classifier, coco_folder, image_folder, stock_detector, train

from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """Train with validation; return the config's path and the run's folder."""
    config = classification_config(
        image_folder(tmp_path / 'data'), tmp_path / 'run', default_hooks=dict(export=dict(type='kd_plugins.ExportHook'))
    )
    loader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    loader['dataset'] = dict(loader['dataset'], pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    for name in ('val', 'test'):
        config.merge_from_dict(
            {
                f'{name}_dataloader': loader,
                f'{name}_cfg': {},
                f'{name}_evaluator': [dict(type='Accuracy'), dict(type='ConfusionMatrix', num_classes=4)],
            }
        )
    train(config)
    config.pop('default_hooks')
    config.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py', tmp_path / 'run'


def score(monkeypatch, capsys, *arguments):
    """Run the script in this process; return the JSON object that it prints last."""
    monkeypatch.setattr(sys, 'argv', ['test.py', *map(str, arguments)])
    runpy.run_path(str(ROOT / 'tools/test.py'))['main']()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_scores_what_training_reported_and_draws(run, tmp_path, monkeypatch, capsys):
    config, folder = run
    metrics = score(
        monkeypatch,
        capsys,
        config,
        folder / 'student.pth',
        '--work-dir',
        tmp_path / 'test',
        '--show-dir',
        tmp_path / 'pictures',
    )
    expected = json.loads((folder / 'result.json').read_text())['metrics']
    assert metrics['accuracy/top1'] == pytest.approx(expected['accuracy/top1'])
    assert metrics['confusion_matrix/result'] == expected['confusion_matrix/result']
    assert sum(map(sum, metrics['confusion_matrix/result'])) == 24
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 24


def test_the_config_of_the_training_stays(run, tmp_path, monkeypatch, capsys):
    config, folder = run
    (folder / 'config.py').write_text('of the training')
    score(
        monkeypatch, capsys, config, folder / 'student.pth', '--work-dir', folder, '--cfg-options', 'randomness.seed=5'
    )
    assert (folder / 'config.py').read_text() == 'of the training'


def test_another_networks_checkpoint_is_refused(run, tmp_path, monkeypatch, capsys):
    config, _ = run
    torch.save({'state_dict': MODELS.build(classifier(14)).state_dict()}, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=r'other\.pth does not fit ImageClassifier'):
        score(monkeypatch, capsys, config, tmp_path / 'other.pth', '--work-dir', tmp_path / 'test')


def test_class_folders_that_shift_the_labels_are_refused(run, tmp_path, monkeypatch, capsys):
    config, folder = run
    for path in (tmp_path / 'data' / 'class1').iterdir():
        path.unlink()
    (tmp_path / 'data' / 'class1').rmdir()
    with pytest.raises(UserError, match="test_dataloader: label 1 is 'class2' there and 'class1' in training"):
        score(monkeypatch, capsys, config, folder / 'student.pth', '--work-dir', tmp_path / 'test')


def test_mmdets_own_script_trains_a_config_that_names_the_package(tmp_path):
    """On an mmcv without compiled operators, and with distillation by the hook alone."""
    data = coco_folder(tmp_path / 'coco')
    teacher = train(stock_detector(data, tmp_path / 'teacher'))
    config = stock_detector(data, tmp_path / 'run')
    config.custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
    config.custom_hooks = [
        dict(
            type='kd_plugins.DistillationHook',
            teacher=dict(
                config=config.model.to_dict() | dict(_scope_='mmdet'), checkpoint=str(tmp_path / 'teacher/epoch_1.pth')
            ),
            terms=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss'), student='neck', teacher='neck')],
        )
    ]
    # Inheriting from this package, which the script itself does not import.
    base = "_base_ = [__import__('kd_plugins').__name__ + '::_base_/methods.py']\n"
    (tmp_path / 'config.py').write_text(base + config.pretty_text)
    script = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / 'config.py')],
        capture_output=True,
        text=True,
        env=os.environ | dict(CUDA_VISIBLE_DEVICES=''),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weights = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)['state_dict']
    assert list(weights) == list(teacher.model.state_dict())
    assert 'nst_poly' in Config.fromfile(tmp_path / 'run/config.py').methods
