"""The study tool on networks of a second: what it trains, skips, resumes, reports and writes."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint
from tiny_study import FEW, TOOLS, metrics_of, write_study

from kd_plugins.checkpoint import guard_checkpoints
from kd_plugins.engine import alone_in
from kd_plugins.errors import UserError
from kd_plugins.studies import execute, plan, report

_spec = importlib.util.spec_from_file_location('study', TOOLS / 'study.py')
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def test_two_jobs_make_all_runs_the_tables_and_the_figures_and_a_second_call_makes_none(here, data, capsys):
    study = str(write_study(here, data))
    tool.main([study, '--jobs', '2', '--watch'])
    root = here / 'work_dirs/studies/tiny'
    folders = {path.parent.relative_to(root).as_posix() for path in root.rglob('result.json')}
    students = {
        f'small/{c}/{m}/seed{s}'
        for c in ('clean', 'sigma=0.4')
        for m in ('baseline', 'hinton', 'two-stages')
        for s in (0, 1)
    }
    firsts = {f'{x}/first' for x in students if 'two-stages' in x}
    assert folders == students | firsts | {'teachers/big/clean/seed0'}

    for run in plan.load_study(study).runs:
        record = json.loads((run.folder / 'run.json').read_text())
        assert record['seed'] == run.seed
        assert {'torch', 'onedl-mmengine', 'kd_plugins', 'commit'} <= record['versions'].keys()
        assert [x['status'] for x in record['sessions']] == ['finished']
        config = Config.fromfile(run.folder / 'config.py')
        assert config.randomness.seed == run.seed + (1000 if run.part == 'teacher' else 0)
        noise = config.train_dataloader.dataset.dataset.get('label_noise')
        assert noise == (dict(rate=0.4) if run.corruption == 'sigma=0.4' else None)
        assert 'label_noise' not in config.val_dataloader.dataset.dataset
        assert (run.folder / 'corruption.json').is_file() == (noise is not None)

    # The second stage starts from the first one's weights, Hinton has its teacher and its share of the task's loss.
    stage = Config.fromfile(root / 'small/clean/two-stages/seed1/config.py')
    assert stage.load_from.endswith('two-stages/seed1/first/student.pth')
    assert 'Load checkpoint from' in (root / 'small/clean/two-stages/seed1/log.txt').read_text()
    first = Config.fromfile(root / 'small/clean/two-stages/seed1/first/config.py')
    assert first.custom_hooks[0].task is False
    hinton = Config.fromfile(root / 'small/clean/hinton/seed0/config.py')
    assert hinton.custom_hooks[0].teacher.checkpoint.endswith('teachers/big/clean/seed0/student.pth')
    assert hinton.model.head.loss.loss_weight == 0.1
    (run,) = plan.load_study(study).only(['small/clean/hinton/seed1'])[-1:]
    shares = [line['loss_share/kd'] for line in run.scalars if 'loss_share/kd' in line]
    assert len(shares) == 10  # by --watch
    assert all(0 < share < 1 for share in shares)

    # The tables' figures, from the runs' own files by hand.
    rows = list(csv.DictReader((root / 'runs.csv').open()))
    assert len(rows) == len(students) + 1
    table = (root / 'table.md').read_text()
    assert '| | clean | sigma=0.4 |' in table
    means = {}
    for method, folder in (('Baseline', 'baseline'), ('Hinton', 'hinton'), ('Two stages', 'two-stages')):
        a, b = (metrics_of(root / f'small/clean/{folder}/seed{s}')['accuracy/top1'] for s in (0, 1))
        mean, std = (a + b) / 2, abs(a - b) / 2**0.5
        means[method] = mean
        line = next(x for x in table.splitlines() if x.startswith(f'| {method} |'))
        cell = line.split('|')[2]
        assert f'{mean:.2f} ± {std:.2f}' in cell
        assert ('[90.0 ± 0.5]' in cell) == (method == 'Hinton')
        assert {float(x['last']) for x in rows if x['method'] == method and x['corruption'] == 'clean'} == {
            round(a, 4),
            round(b, 4),
        }
        tex = next(x for x in (root / 'table.tex').read_text().splitlines() if x.startswith(f'{method} &'))
        assert rf'{mean:.2f} $\pm$ {std:.2f}' in tex
    for method, mean in means.items():
        cell = next(x for x in table.splitlines() if x.startswith(f'| {method} |')).split('|')[2]
        assert ('**' in cell) == (mean == max(means.values()))
        assert ('↓' in cell) == (mean < means['Baseline'])
    teacher = metrics_of(root / 'teachers/big/clean/seed0')['accuracy/top1']
    assert f'| Teacher | {teacher:.2f} (n=1) [95.0] | {teacher:.2f} (n=1) [94.0] |' in table
    for row in rows:  # the best epoch, from the log of the run
        values = [
            json.loads(x)['accuracy/top1']
            for path in Path(row['folder']).glob('*/vis_data/scalars.json')
            for x in path.read_text().splitlines()
            if 'accuracy/top1' in x
        ]
        assert len(values) == 2
        assert float(row['best']) == round(max(values), 4)
        assert float(row['seconds']) > 0
    for name in ('noise.png', 'curves.png'):
        assert (root / name).stat().st_size > 5000
    assert not (root / 'imbalance.png').exists()

    times = {path: path.stat().st_mtime_ns for path in root.rglob('result.json')}
    tool.main([study, '--jobs', '2'])
    assert {path: path.stat().st_mtime_ns for path in root.rglob('result.json')} == times

    # A changed study is not taken for the one that was made.
    (here / 'tiny.py').write_text((here / 'tiny.py').read_text() + "common['train_cfg'] = dict(max_epochs=1)\n")
    with pytest.raises(UserError, match=r'17 runs were made with another config .*--changed redo'):
        tool.main([study])
    capsys.readouterr()
    tool.main([study, '--list', '--changed', 'redo'])
    *lines, cost = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert all(line.startswith('changed ') for line in lines)
    assert cost.startswith('17 runs')
    with alone_in(root), pytest.raises(UserError, match='another command runs'):
        tool.main([study, '--changed', 'redo'])
    assert {path: path.stat().st_mtime_ns for path in root.rglob('result.json')} == times
    table = (root / 'table.md').read_text()
    with pytest.raises(UserError, match='--table: 17 finished runs were made with another config'):
        tool.main([study, '--table'])
    assert (root / 'table.md').read_text() == table
    tool.main([study, '--table', '--changed', 'redo'])
    assert '— (2 missing)' in (root / 'table.md').read_text()
    assert {path: path.stat().st_mtime_ns for path in root.rglob('result.json')} == times
    tool.main([study, '--table', '--changed', 'keep'])
    assert '— (2 missing)' not in (root / 'table.md').read_text()
    tool.main([study, '--changed', 'redo', '--only', '*clean/baseline/seed0'])
    assert metrics_of(root / 'small/clean/baseline/seed0')['epoch'] == 1
    assert metrics_of(root / 'small/clean/baseline/seed1')['epoch'] == 2


def test_a_table_is_of_all_runs(here, data):
    with pytest.raises(UserError, match='--table shows all runs of the study, as every call does: leave --only out'):
        tool.main([str(write_study(here, data)), '--table', '--only', '*/seed0'])


def test_a_method_goes_on_from_another_and_what_is_held_out_is_scored(here, data):
    study = str(
        write_study(
            here,
            data,
            FEW
            + """
methods['Twice'] = dict(first='Baseline', terms=['kd'])
methods['Searched'] = dict(terms=['kd'], search=dict(weight=[0.5, 9.0], epochs=[1]))
validation = dict(size=30)
""",
        )
    )
    tool.main([study, '--only', '*/twice/*', '*/searched/*'])
    root = here / 'work_dirs/studies/tiny'
    folders = {path.parent.relative_to(root).as_posix() for path in root.rglob('result.json')}
    searched = {f'small/clean/searched/{x}' for x in ('search/0.5', 'search/9', 'seed0')}
    assert folders == searched | {'teachers/big/clean/seed0', 'small/clean/baseline/seed0', 'small/clean/twice/seed0'}
    twice = root / 'small/clean/twice/seed0'
    assert (
        f'Load checkpoint from {(root / "small/clean/baseline/seed0/student.pth").relative_to(here)}'
        in (twice / 'log.txt').read_text()
    )
    lines = [json.loads(line) for path in twice.glob('*/vis_data/scalars.json') for line in path.open()]
    found = [(line['validation/top1'], line['accuracy/top1']) for line in lines if 'validation/top1' in line]
    assert len(found) == 2
    best = max(found, key=lambda both: both[0])[1]
    row = next(x for x in csv.DictReader((root / 'runs.csv').open()) if x['method'] == 'Twice')
    assert (float(row['last']), float(row['best'])) == (round(found[-1][1], 4), round(best, 4))
    assert (root / 'table.csv').read_text().startswith('table,method,column,n,mean,std,published,')
    scores = {x['weight']: float(x['score']) for x in csv.DictReader((root / 'search.csv').open())}
    for weight, score in scores.items():  # after one of two epochs, on the 30 images
        metrics = metrics_of(root / f'small/clean/searched/search/{weight}')
        assert (metrics['epoch'], round(metrics['accuracy/top1'], 4)) == (1, score)
        assert (score * 30 / 100) == pytest.approx(round(score * 30 / 100), abs=1e-3)
    (hook,) = Config.fromfile(root / 'small/clean/searched/seed0/config.py').custom_hooks
    assert f'{hook.terms[0].weight:g}' == max(scores, key=scores.get)
    assert metrics_of(root / 'small/clean/searched/seed0')['epoch'] == 2


def test_a_method_that_fails_is_reported_and_stops_no_other(here, data, capsys):
    study = str(
        write_study(
            here,
            data,
            """
methods = {
    'Baseline': dict(), 'Wrong': dict(terms=[wrong := dict(
        name='x', loss=dict(type='kd_plugins.FitNetLoss'), student='backbone.stage1', teacher='backbone.stage3')]),
    'After': dict(first=dict(terms=[wrong]), terms=[])}
corruptions = {'clean': dict()}
seeds = [0]
""",
        )
    )
    with pytest.raises(UserError, match='3 of 5 runs failed'):
        tool.main([study, '--jobs', '2'])
    message = capsys.readouterr().err
    assert 'small / clean / Wrong / seed 0: error: ' in message
    assert 'FitNetLoss' in message
    assert 'After / seed 0: not started, since small / clean / After / seed 0 (first stage) failed' in message
    table = (here / 'work_dirs/studies/tiny/table.md').read_text()
    assert table.count('— (1 missing)') == 2
    assert '| Baseline | **' in table


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ("methods['Wrong'] = dict(terms=['no_such'])", "has no terms 'no_such': it has kd, "),
        ("methods['Wrong'] = dict(terms=[dict(KD, student='head.fcc')])", "no module 'head.fcc' to tap"),
        ("methods['Wrong'] = dict(terms=[dict(KD, loss=dict(type='kd_plugins.KDLoss', tua=4.0))])", "no option 'tua'"),
        ("methods['Wrong'] = dict(terms=['nst_linear', 'nst_poly'])", "Wrong / seed 0: two terms are named 'nst'"),
        ("methods['Wrong'] = dict(terms=[dict(KD, teachers=[1])])", r'teachers must list .* from 0 to 0, got \[1\]'),
        ("methods['Wrong'] = dict(wrap=dict(type='kd_plugins.Mutual'))", 'Mutual is not in'),
        (
            'common = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)',
            "big / clean / teacher / seed 0 is not validated, and has no 'accuracy/top1'",
        ),
        ("metric = 'accuracy/top5'", "there is no metric 'accuracy/top5': give the study one of accuracy/top1"),
        ("common['train_dataloader'] = dict(batch_size=0)", 'train_dataloader.batch_size is 0, expected'),
    ],
)
def test_what_a_study_names_is_checked_before_anything_trains(here, data, more, message):
    kd = "KD = dict(name='x', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')\n"
    with pytest.raises((UserError, KeyError), match=message):
        tool.main([str(write_study(here, data, f'{FEW}{kd}{more}\n'))])
    assert not list(here.rglob('run.json'))


def test_it_resumes_after_a_kill_and_its_children_do_not_outlive_it(here, data):
    more = """
methods = {'Baseline': dict(), 'KD': dict(terms=['kd'])}
corruptions = {'clean': dict()}
seeds = [0]
common = dict(train_cfg=dict(max_epochs=12, val_interval=12))
"""
    study = str(write_study(here, data, more))
    command = [sys.executable, str(TOOLS / 'study.py'), study, '--jobs', '1', '--only', '*/baseline/*']
    with (here / 'out').open('w') as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=here)
    run = here / 'work_dirs/studies/tiny/small/clean/baseline/seed0'
    deadline = time.monotonic() + 120
    while not list(run.glob('epoch_[2-9].pth')):
        assert process.poll() is None, (here / 'out').read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    size, newest = (run / 'log.txt').stat().st_size, max(p.stat().st_mtime_ns for p in run.iterdir())
    assert not (run / 'result.json').exists()
    time.sleep(1)
    assert ((run / 'log.txt').stat().st_size, max(p.stat().st_mtime_ns for p in run.iterdir())) == (size, newest)

    tool.main([study, '--only', '*/baseline/*'])
    assert 'resumed epoch: ' in (run / 'log.txt').read_text()
    assert metrics_of(run)['epoch'] == 12
    tool.main([study, '--root', 'whole', '--only', '*/baseline/*'])
    whole = here / 'whole/small/clean/baseline/seed0'
    a, b = (torch.load(x / 'student.pth', weights_only=True)['state_dict'] for x in (run, whole))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert metrics_of(run) == metrics_of(whole)


def test_beside_a_gpu_a_run_is_no_fork_and_trains(here, data, monkeypatch):
    study = plan.load_study(str(write_study(here, data)))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, 'is_available', lambda: True)
        launcher = execute.LocalLauncher(1)
    runs = study.only(['*/clean/baseline/seed0'])
    process = launcher.start
    started = []
    monkeypatch.setattr(launcher, 'start', lambda run: started.append(process(run)) or started[-1])
    execution = execute.Execution(study, runs, launcher, 1)
    execution.run()
    assert not execution.failed
    assert [type(x).__name__ for x in started] == ['SpawnProcess']
    assert runs[0].finished


@pytest.mark.parametrize('by', ['Ctrl-C', 'SIGTERM'])
def test_an_interrupt_stops_the_runs_and_is_recorded(here, data, by):
    path = write_study(here, data, 'common = dict(train_cfg=dict(max_epochs=500))\nseeds = [0]\n')
    study = plan.load_study(str(path))
    runs = study.only(['*/clean/baseline/*'])

    class Interrupted(execute.LocalLauncher):
        def wait(self, handles, seconds):
            self.handles = handles
            while not (runs[0].folder / 'log.txt').exists():
                time.sleep(0.05)
            if by == 'Ctrl-C':
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
            return []

    launcher = Interrupted(1)
    execution = execute.Execution(study, runs, launcher, 1)
    missed = []
    before = signal.signal(signal.SIGTERM, lambda *_: missed.append(1) or execution._active.clear())
    try:
        with pytest.raises(KeyboardInterrupt):
            execution.run()
        assert signal.getsignal(signal.SIGTERM) is not signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not missed
    assert not any(handle.is_alive() for handle in launcher.handles)
    assert [x['status'] for x in runs[0].record['sessions']] == ['stopped']
    assert not runs[0].finished


class Pretended:
    """A launcher whose runs end at once with a result; those of a method in ``cut`` are interrupted half-way."""

    cut: tuple[str, ...] = ()

    def __init__(self, *_, **__):
        self.started = []

    def start(self, run):
        self.started.append(run.folder.as_posix())
        (run.folder / 'epoch_1.pth').write_text('half of it')
        if run.method not in self.cut or run.part != 'student':
            (run.folder / 'result.json').write_text('{"metrics": {"accuracy/top1": 50.0, "epoch": 1}}')
        return run

    def wait(self, handles, seconds):
        if not handles[0].finished:
            raise KeyboardInterrupt
        return [(handles[0], 0)]

    def stop(self, handles):
        pass


def pretend(path: Path, changed: str = 'stop', only: str = '*', cut: tuple[str, ...] = ()) -> list[str]:
    """Make a study's missing runs as the command line does, but train none; return those that were started."""
    study = plan.load_study(str(path))
    runs = study.only([only])
    launcher = Pretended()
    launcher.cut = cut
    execute.check_unchanged(runs, changed)
    try:
        execute.Execution(study, runs, launcher, 1).run()
    except KeyboardInterrupt:
        assert cut
    return [Path(x).relative_to(study.root).as_posix() for x in launcher.started]


@pytest.mark.parametrize('broken', ['', '{"metrics": {"accu', '[]', '{"metrics": 3}', '\udce9'])
def test_a_broken_result_is_made_again_and_a_broken_record_begins_anew(here, data, broken):
    path = write_study(here, data, FEW)
    pretend(path, only='*/baseline/*')
    run = next(x for x in plan.load_study(str(path)).students if x.finished)
    assert pretend(path, only='*/baseline/*') == []
    (run.folder / 'run.json').write_text(broken, errors='surrogateescape')
    assert pretend(path, only='*/baseline/*') == []
    assert run.record == {} or 'sessions' not in run.record
    (run.folder / 'result.json').write_text(broken, errors='surrogateescape')
    assert pretend(path, only='*/baseline/*') == ['small/clean/baseline/seed0']
    assert [x['status'] for x in run.record['sessions']] == ['finished']


def test_a_session_that_was_killed_with_the_study_counts_until_its_last_line(here, data):
    path = write_study(here, data, FEW)
    pretend(path, only='*/baseline/*')
    run = next(x for x in plan.load_study(str(path)).students if x.finished)
    record = run.record
    record['sessions'] = [dict(began=1000.0, versions=dict(torch='1'))]
    (run.folder / 'run.json').write_text(json.dumps(record))
    os.utime(run.folder / 'log.txt', (1060, 1060))
    assert (run.seconds, [x['status'] for x in run.sessions]) == (60, ['killed'])
    (run.folder / 'result.json').unlink()
    pretend(path, only='*/baseline/*')
    assert [x['status'] for x in run.record['sessions']] == ['killed', 'finished']
    assert run.record['sessions'][0]['seconds'] == 60
    assert [x['versions']['torch'] for x in run.sessions] == ['1', version('torch')]


@pytest.mark.parametrize('changed', ['stop', 'redo', 'keep'])
def test_a_given_teacher_that_is_replaced_is_noticed(here, data, changed):
    config = dict(type='mmpretrain.ImageClassifier', backbone=dict(type='kd_plugins.CifarResNet', depth=8))
    torch.save(dict(a=torch.zeros(1)), here / 'given.pth')
    given = dict(config=config, checkpoint='given.pth')
    path = write_study(here, data, f'{FEW}teachers = dict(big=dict(given={given}))')
    pretend(path)
    assert pretend(path) == []
    torch.save(dict(a=torch.ones(1)), here / 'given.pth')
    if changed == 'stop':
        with pytest.raises(UserError, match='2 runs were made with another config or other files than'):
            pretend(path)
    else:
        assert pretend(path, changed) == (['small/clean/kd/seed0', 'small/clean/at/seed0'] if changed == 'redo' else [])
        assert pretend(path, changed) == []


@pytest.mark.parametrize('changed', ['keep', 'redo'])
def test_a_run_that_has_not_begun_is_made_with_no_other_files(here, data, changed):
    torch.save(dict(a=torch.zeros(1)), here / 'start.pth')
    path = write_study(here, data, f"{FEW}teachers['big']['overrides']['load_from'] = 'start.pth'")
    pretend(path)
    shutil.rmtree(plan.load_study(str(path)).root / 'small')  # as where the study was stopped after the teacher
    torch.save(dict(a=torch.ones(1)), here / 'start.pth')
    with pytest.raises(UserError, match=r'1 runs were made with .*, the first in \S+/teachers/big/clean/seed0:'):
        pretend(path)
    made = [f'small/clean/{method}/seed0' for method in ('at', 'baseline', 'kd')]
    assert sorted(pretend(path, changed)) == made + ['teachers/big/clean/seed0'] * (changed == 'redo')


def test_a_text_that_is_no_file_name_names_no_file(here, data):
    path = write_study(here, data, f"{FEW}common['note'] = {'x' * 300 + '.py'!r}")
    assert all(run.files == {} for run in plan.load_study(str(path)).students)


def test_versions_are_named_where_there_are_several(here, data):
    path = write_study(here, data, FEW)
    pretend(path)
    study = plan.load_study(str(path))
    assert 'several versions' not in report.caption(study)
    run = next(x for x in study.students if x.finished)
    record = run.record
    record['sessions'][0]['versions']['commit'] = 'ab12345678'
    (run.folder / 'run.json').write_text(json.dumps(record))
    assert 'made by several versions: ' in report.caption(study)
    assert f'ab12345, torch {version("torch")} (1 run)' in report.caption(study)


def test_a_run_remembers_the_teacher_that_it_was_trained_from(here, data):
    path = write_study(here, data, FEW)
    pretend(path, only='*/kd/*')
    path.write_text(path.read_text() + "teachers['big']['overrides']['model']['backbone']['depth'] = 8\n")
    assert pretend(path, 'keep') == ['small/clean/baseline/seed0', 'small/clean/at/seed0']  # AT from the old teacher
    with pytest.raises(UserError, match='3 runs were made with another config'):
        pretend(path)
    assert pretend(path, 'redo') == [
        f'{x}/clean/{y}' for x, y in (('teachers/big', 'seed0'), ('small', 'kd/seed0'), ('small', 'at/seed0'))
    ]
    assert pretend(path) == []


def test_keep_starts_anew_what_was_half_trained_with_another_config(here, data):
    path = write_study(here, data, FEW + "methods['Two'] = dict(first=dict(terms=['kd']), terms=['kd'])\n")
    pretend(path, only='*/two/*', cut=('Two',))
    two, half = 'small/clean/two/seed0', here / 'work_dirs/studies/tiny/small/clean/two/seed0/epoch_1.pth'
    # Another teacher than the kept one changes nothing for what began with it.
    path.write_text(path.read_text() + "teachers['big']['overrides']['model']['backbone']['depth'] = 8\n")
    for _ in range(2):
        half.write_text('goes on')
        execute.check_unchanged(plan.load_study(str(path)).only(['*/two/*']), 'keep')
        assert half.read_text() == 'goes on'
        assert pretend(path, 'keep', '*/two/*', ('Two',)) == [two]
    path.write_text(path.read_text() + "common['train_cfg'] = dict(max_epochs=3)\n")
    runs = plan.load_study(str(path)).only(['*/two/*'])
    execute.check_unchanged(runs, 'keep')
    assert not half.exists()
    assert not runs[-1].record
    assert (half.parent / 'first/result.json').is_file()
    assert pretend(path, 'keep', '*/two/*') == [two]


def test_a_wrong_metric_is_reported_at_the_first_result(here, data):
    path = write_study(here, data, FEW + "metric = 'accuracy/top5'\n")
    with pytest.raises(UserError, match=r"no number for the metric '.*5': give the study one of accuracy/top1"):
        pretend(path)
    assert len(list(here.rglob('result.json'))) == 1
    with pytest.raises(UserError, match='has no number for the metric'):
        pretend(path)
    assert len(list(here.rglob('result.json'))) == 1


@pytest.mark.parametrize(('options', 'threads'), [(['--threads', '3'], '3'), ([], '1')])
def test_given_threads_go_before_exported_ones(here, data, monkeypatch, options, threads):
    monkeypatch.setenv('MKL_NUM_THREADS', '1')

    class StoppedError(Exception):
        pass

    def stop(*_):
        raise StoppedError

    monkeypatch.setattr(tool, 'Execution', stop)
    with pytest.raises(StoppedError):
        tool.main([str(write_study(here, data)), *options])
    assert (os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']) == (threads, threads)


@pytest.mark.parametrize(
    ('exported', 'options', 'threads'),
    [('5', [], 5), ('5,2', [], 5), ('5', ['--threads', '3'], 3), ('0', ['--jobs', '1000'], 1), (None, [], None)],
)
def test_ray_reserves_the_exported_number_of_threads(here, data, monkeypatch, exported, options, threads):
    if exported is None:
        monkeypatch.delenv('OMP_NUM_THREADS')
    else:
        monkeypatch.setenv('OMP_NUM_THREADS', exported)

    class StoppedError(Exception):
        pass

    def stop(*arguments):
        raise StoppedError(*arguments)

    monkeypatch.setattr(tool, 'RayLauncher', stop)
    with pytest.raises(StoppedError) as stopped:
        tool.main([str(write_study(here, data, FEW)), '--launcher', 'ray', *options])
    assert stopped.value.args[0] == (threads or len(os.sched_getaffinity(0)))


def test_a_missing_package_of_a_back_end_is_named_before_anything_trains(here, data, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='pip install wandb'):
        tool.main([str(write_study(here, data)), '--watch', 'wandb'])
    assert not (here / 'work_dirs').exists()


def test_pickled_code_is_refused_from_the_first_line_on(here, data):
    guard_checkpoints(allow_pickle=True)
    tool.main([str(write_study(here, data)), '--list'])
    torch.save({'state_dict': {}, 'payload': Path}, here / 'x.pth')
    with pytest.raises(UserError, match='refused'):
        _load_checkpoint(str(here / 'x.pth'))


def test_what_a_session_before_has_left_in_the_log_is_no_reason(here, data):
    run = plan.load_study(str(write_study(here, data))).runs[0]
    run.folder.mkdir(parents=True)
    log = 'error: no space left\n' + execute._SESSION + 'Traceback ...\nKeyError: 1\n'
    (run.folder / 'log.txt').write_text(log)
    assert execute.last_error(run, 1) == 'KeyError: 1'
    (run.folder / 'log.txt').write_text(log + execute._SESSION + 'error: no such file\nlast words\n')
    assert execute.last_error(run, 1) == 'error: no such file'


def test_a_linked_folder_of_a_run_is_unlinked(here, data):
    run = plan.load_study(str(write_study(here, data))).runs[0]
    (here / 'elsewhere').mkdir()
    (here / 'elsewhere/answer').touch()
    run.folder.mkdir(parents=True)
    (run.folder / 'answers').symlink_to(here / 'elsewhere')
    (run.folder / 'run.json').write_text('{"digest": "another"}')
    execute.check_unchanged([run], 'redo')
    assert list(run.folder.iterdir()) == []
    assert (here / 'elsewhere/answer').exists()


def test_mlflows_experiment_is_made_before_the_runs_that_share_it(here, data, monkeypatch):
    calls = []
    mlflow = SimpleNamespace(
        __spec__=ModuleSpec('mlflow', None), set_tracking_uri=calls.append, set_experiment=calls.append
    )
    monkeypatch.setitem(sys.modules, 'mlflow', mlflow)
    monkeypatch.setitem(sys.modules, 'sqlalchemy', SimpleNamespace(__spec__=ModuleSpec('sqlalchemy', None)))
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'tiny')
    monkeypatch.setattr(tool.Execution, 'run', lambda self: calls.append('runs'))
    tool.main([str(write_study(here, data)), '--jobs', '2', '--watch', 'mlflow'])
    assert calls == ['sqlite:///mlflow.db', 'tiny', 'runs']


def test_a_teacher_answers_once_for_all_seeds_and_methods(here, data):
    path = write_study(
        here,
        data,
        FEW
        + """
methods['Two'] = dict(first=dict(), terms=['kd'])
teacher_cache = True
networks['small']['overrides'] = dict(train_dataloader=dict(dataset=dict(seed=0)))
seeds = [0, 1]
""",
    )
    tool.main([str(path), '--only', '*/kd/seed0'])
    folder = here / 'work_dirs/studies/tiny/teachers/big/clean/seed0/answers'
    (file,) = folder.glob('*.sqlite')

    def answers() -> int:
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute('SELECT COUNT(*) FROM answers').fetchone()[0]

    first = answers()
    assert 190 < first <= 200  # 100 pictures in 2 epochs; a crop may be drawn twice
    tool.main([str(path), '--only', '*/two/seed1'])
    assert answers() == first
    assert list(folder.glob('*.sqlite')) == [file]


def test_ray_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(UserError, match=r'study-cluster'):
        execute.RayLauncher(1, 0)


def test_runs_go_to_ray_as_command_lines(monkeypatch, here):
    """A stand-in for Ray that runs each task at once: what is submitted, awaited and cancelled."""

    class Ray:
        exceptions = type('E', (), {'RayError': type('RayError', (Exception,), {})})
        cancelled, options = [], {}

        def is_initialized(self):
            return False

        def init(self, **_):
            pass

        def remote(self, **options):
            self.options.update(options)
            return lambda task: type('T', (), {'remote': staticmethod(lambda *a: ('ref', task(*a)))})

        def wait(self, handles, num_returns, timeout):
            return handles[:num_returns], handles[num_returns:]

        def get(self, handle):
            return handle[1]

        def cancel(self, handle, force):
            self.cancelled.append(handle)

    ray = Ray()
    monkeypatch.setitem(sys.modules, 'ray', ray)
    monkeypatch.setattr(execute, 'TRAIN', here / 'train.py')
    (here / 'train.py').write_text('import os, sys\nprint(sys.argv[1:], os.environ["OMP_NUM_THREADS"])\nsys.exit(3)')
    launcher = execute.RayLauncher(2, 0.5, ['--watch'])
    assert ray.options == dict(num_cpus=2, num_gpus=0.5, max_retries=2)
    handle = launcher.start(plan.Run('n', 'c', 'm', 0, Path('.'), {}))
    assert launcher.wait([handle], 1) == [(handle, 3)]
    assert Path('log.txt').read_text() == "['config.py', '--resume', '--watch'] 2\n"
    launcher.stop([handle])
    assert ray.cancelled == [handle]
