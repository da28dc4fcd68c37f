"""The script that runs on a GPU what wants one."""

import importlib.util
import json
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import torch

from kd_plugins.config import load_config

ROOT = Path(__file__).parents[2]
_loader = SourceFileLoader('ci_gpu', str(ROOT / '.ci/gpu'))
gpu = importlib.util.module_from_spec(importlib.util.spec_from_loader('ci_gpu', _loader))
sys.dont_write_bytecode, _before = True, sys.dont_write_bytecode  # the script's folder is the repository's
_loader.exec_module(gpu)
sys.dont_write_bytecode = _before


def step(name, code, budget=60, **more):
    return gpu.Step(name, budget, [sys.executable, '-c', code], **more)


def test_a_step_that_fails_or_hangs_is_noted_and_the_next_one_runs(tmp_path, capsys):
    figures = tmp_path / 'figures.json'
    hanging = 'import subprocess; print("before", flush=True); subprocess.run(["sleep", "60"])'
    start = time.monotonic()
    passed = gpu.run_steps(
        [
            step('hangs', hanging, budget=1.5),
            step('fails', 'raise SystemExit("three tests failed")'),
            step('works', f'open({str(figures)!r}, "w").write("[1, 2]")', figures=figures),
        ],
        dict(device='none'),
        tmp_path / 'out.json',
    )
    assert not passed
    assert time.monotonic() - start < 30
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['device'] == 'none'
    steps = result['steps']
    assert {name: x['status'] for name, x in steps.items()} == dict(hangs='timed out', fails='failed', works='passed')
    assert steps['works']['figures'] == [1, 2]
    assert steps['hangs']['tail'].startswith('before\n')
    assert steps['hangs']['tail'].endswith('KeyboardInterrupt\n')  # it was asked first
    assert steps['fails']['tail'] == 'three tests failed\n'
    assert 'fails: failed' in capsys.readouterr().out


def test_no_step_outlasts_the_time_for_all(tmp_path):
    assert not gpu.run_steps(
        [step('first', 'import time; time.sleep(60)'), step('second', '')], {}, tmp_path / 'out.json', allowed=1.5
    )
    steps = json.loads((tmp_path / 'out.json').read_text())['steps']
    assert {name: x['status'] for name, x in steps.items()} == dict(first='timed out', second='no time left')


def test_the_budgets_fit_the_time_for_all(tmp_path):
    steps = gpu.steps_of('cuda', tmp_path)
    assert [x.name for x in steps] == ['tests', 'runs', 'cifar', 'losses', 'step', 'reid']
    assert sum(x.budget for x in steps) <= gpu.ALLOWED < 480
    assert all(str(x.figures) in x.command for x in steps if x.figures)


def test_the_short_run_distils_from_the_teacher_it_trains(tmp_path):
    assert gpu.write_configs(tmp_path, 'cpu')
    teacher, student = (load_config(str(tmp_path / f'{name}.py')) for name in ('teacher', 'student'))
    (hook,) = student.custom_hooks
    assert [term.loss.type for term in hook.terms] == ['kd_plugins.KDLoss', 'kd_plugins.NSTLoss']
    assert hook.teacher == dict(config=str(tmp_path / 'teacher.py'), checkpoint=f'{teacher.work_dir}/student.pth')
    for config, depth in ((teacher, 14), (student, 8)):
        assert config.model.backbone.depth == depth
        assert config.optim_wrapper.type == 'kd_plugins.BF16OptimWrapper'
        assert config.default_hooks.layout.type == 'kd_plugins.ChannelsLastHook'
        for loader in (config.train_dataloader, config.val_dataloader):
            assert loader.dataset.dataset.data_root == str(tmp_path / 'data')
    assert len(list((tmp_path / 'data').rglob('*_batch*'))) == 6


@pytest.mark.parametrize(('top1', 'message'), [(15.0, None), (10.0, 'no better than chance'), (float('nan'), 'chance')])
def test_an_accuracy_no_better_than_a_guess_fails(monkeypatch, top1, message):
    def trained(command, check):
        folder = Path(command[-1]).with_suffix('')
        folder.mkdir()
        (folder / 'result.json').write_text(json.dumps(dict(metrics={'accuracy/top1': top1})))

    monkeypatch.setattr(gpu.subprocess, 'run', trained)
    if message:
        with pytest.raises(SystemExit, match=message):
            gpu.cifar('cpu')
    else:
        assert gpu.cifar('cpu')['student']['accuracy/top1'] == top1


def test_without_a_gpu_nothing_is_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['gpu', '--json', str(tmp_path / 'out.json')])
    gpu.main()
    assert capsys.readouterr().out == 'there is no GPU: nothing is run\n'
    assert not (tmp_path / 'out.json').exists()
