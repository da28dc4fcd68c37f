"""The study tool on networks of a second: what it trains, skips, resumes, reports and writes."""

import csv
import importlib.util
import json
import os
import pickle
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from kd_plugins.datasets.cifar import CIFAR10
from kd_plugins.errors import UserError

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
sys.path.append(str(TOOLS))  # last, since tools/test.py must not hide the standard library's test
_spec = importlib.util.spec_from_file_location('study', TOOLS / 'study.py')
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)
from studies import execute, figures, plan, report, results  # noqa: E402

NETWORK = '''
_base_ = {root!r}
model = dict(
    type='ImageClassifier', backbone=dict(type='kd_plugins.CifarResNet', depth=8, width=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16, loss=dict(type='CrossEntropyLoss', loss_weight=1.)))
data_preprocessor = dict(num_classes=10, mean=[120.0] * 3, std=[60.0] * 3, to_rgb=False)
train_dataloader = dict(
    batch_size=20, num_workers=0, collate_fn=dict(type='kd_plugins.whole_batch'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='kd_plugins.BatchedImages', padding=4, flip_prob=0.5, dataset=dict(
        type='kd_plugins.CIFAR10', data_root={data!r}, split='train')))
val_dataloader = dict(
    batch_size=20, num_workers=0, collate_fn=dict(type='kd_plugins.whole_batch'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='kd_plugins.BatchedImages', dataset=dict(
        type='kd_plugins.CIFAR10', data_root={data!r}, split='test')))
val_evaluator = dict(type='Accuracy', topk=(1, ))
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
default_hooks = dict(logger=dict(interval=1))
'''
STUDY = '''
teachers = dict(big=dict(config='net.py', overrides=dict(model=dict(backbone=dict(depth=14)))))
networks = dict(small=dict(config='net.py', teacher='big'))
methods = {{
    'Baseline': dict(),
    'Hinton': dict(terms=['kd_alpha'], overrides=dict(model=dict(head=dict(loss=dict(loss_weight=0.1))))),
    'Two stages': dict(first=dict(hook=dict(task=False), terms=[dict(
        name='hint', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', student='backbone.stage2',
        teacher='backbone.stage2')]), terms=['kd']),
}}
corruptions = {{'clean': dict(), 'sigma=0.4': dict(label_noise=dict(rate=0.4))}}
common = dict(model=dict(head=dict(cal_acc=True)))
seeds = [0, 1]
terms_from = {methods!r}
references = [dict(network='small', table=\'\'\'
method    clean      sigma=0.4
Hinton    90.0±0.5   80.0 ± 1.0
Teacher   95.0       94.0
\'\'\')]
'''


def write_cifar(root: Path, per_file: int = 20) -> None:
    """Write the official layout; a picture's brightness tells its class."""
    rng = np.random.default_rng(0)
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        labels = np.arange(per_file) % 10
        data = rng.integers(0, 60, (per_file, 3072)) + 19 * labels[:, None]
        entry = {'data': data.astype(np.uint8), 'labels': labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))


def write_study(folder: Path, data: Path, more: str = '') -> Path:
    base = ROOT / 'configs/_base_/default_runtime.py'
    (folder / 'net.py').write_text(NETWORK.format(root=str(base), data=str(data)))
    path = folder / 'tiny.py'
    path.write_text(STUDY.format(methods=str(ROOT / 'configs/_base_/methods.py')) + more)
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('cifar')
    write_cifar(root)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return tmp_path


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / 'result.json').read_text())['metrics']


def test_two_jobs_make_all_runs_the_tables_and_the_figures_and_a_second_call_makes_none(here, data, capsys):
    study = str(write_study(here, data))
    tool.main([study, '--jobs', '2'])
    root = here / 'work_dirs/studies/tiny'
    folders = {path.parent.relative_to(root).as_posix() for path in root.rglob('result.json')}
    students = {f'small/{c}/{m}/seed{s}' for c in ('clean', 'sigma=0.4') for m in ('baseline', 'hinton', 'two-stages')
                for s in (0, 1)}
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
            round(a, 4), round(b, 4)}
        tex = next(x for x in (root / 'table.tex').read_text().splitlines() if x.startswith(f'{method} &'))
        assert rf'{mean:.2f} $\pm$ {std:.2f}' in tex
    for method, mean in means.items():
        cell = next(x for x in table.splitlines() if x.startswith(f'| {method} |')).split('|')[2]
        assert ('**' in cell) == (mean == max(means.values()))
        assert ('↓' in cell) == (mean < means['Baseline'])
    teacher = metrics_of(root / 'teachers/big/clean/seed0')['accuracy/top1']
    assert f'| Teacher | {teacher:.2f} (n=1) [95.0] | {teacher:.2f} (n=1) [94.0] |' in table
    for row in rows:  # the best epoch, from the log of the run
        values = [json.loads(x)['accuracy/top1'] for path in Path(row['folder']).glob('*/vis_data/scalars.json')
                  for x in path.read_text().splitlines() if 'accuracy/top1' in x]
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
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert all(line.startswith('changed ') for line in lines)
    with execute.alone_in(root), pytest.raises(UserError, match='another call is at work'):
        tool.main([study, '--changed', 'redo'])
    assert {path: path.stat().st_mtime_ns for path in root.rglob('result.json')} == times
    tool.main([study, '--table'])
    assert '— (2 missing)' in (root / 'table.md').read_text()
    tool.main([study, '--table', '--changed', 'keep'])
    assert '— (2 missing)' not in (root / 'table.md').read_text()
    tool.main([study, '--changed', 'redo', '--only', '*clean/baseline/seed0'])
    assert metrics_of(root / 'small/clean/baseline/seed0')['epoch'] == 1
    assert metrics_of(root / 'small/clean/baseline/seed1')['epoch'] == 2


def test_a_method_that_fails_is_told_and_stops_no_other(here, data, capsys):
    study = str(write_study(here, data, '''
methods = {
    'Baseline': dict(), 'Unknown': dict(terms=['no_such']), 'Wrong': dict(terms=[dict(
        name='x', loss=dict(type='kd_plugins.KDLoss'), student='head.fcc', teacher='head.fc')]),
    'After': dict(first=dict(terms=['no_such']), terms=[])}
corruptions = {'clean': dict()}
seeds = [0]
'''))
    with pytest.raises(UserError, match='4 of 6 runs failed'):
        tool.main([study, '--jobs', '2'])
    told = capsys.readouterr().err
    assert "small / clean / Unknown / seed 0: " in told
    assert "has no terms 'no_such': it has kd, " in told
    assert 'small / clean / Wrong / seed 0: error: ' in told
    assert 'head.fcc' in told
    assert 'After / seed 0: not started, since small / clean / After / seed 0 (first stage) failed' in told
    table = (here / 'work_dirs/studies/tiny/table.md').read_text()
    assert table.count('— (1 missing)') == 3
    assert '| Baseline | **' in table


def test_it_resumes_after_a_kill_and_its_children_do_not_outlive_it(here, data):
    more = '''
methods = {'Baseline': dict(), 'KD': dict(terms=['kd'])}
corruptions = {'clean': dict()}
seeds = [0]
common = dict(train_cfg=dict(max_epochs=12, val_interval=12))
'''
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


def test_no_two_calls_work_on_one_study(here):
    with execute.alone_in(here / 'root'), pytest.raises(UserError, match='another call is at work'), \
            execute.alone_in(here / 'root'):
        pass


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


FEW = """
methods = {'Baseline': dict(), 'KD': dict(terms=['kd']), 'AT': dict(terms=['kd_alpha'])}
corruptions = {'clean': dict()}
seeds = [0]
"""


def test_a_run_remembers_the_teacher_that_it_was_trained_from(here, data):
    path = write_study(here, data, FEW)
    pretend(path, only='*/kd/*')
    path.write_text(path.read_text() + "teachers['big']['overrides']['model']['backbone']['depth'] = 8\n")
    assert pretend(path, 'keep') == ['small/clean/baseline/seed0', 'small/clean/at/seed0']  # AT from the old teacher
    with pytest.raises(UserError, match='3 runs were made with another config'):
        pretend(path)
    assert pretend(path, 'redo') == [f'{x}/clean/{y}' for x, y in (
        ('teachers/big', 'seed0'), ('small', 'kd/seed0'), ('small', 'at/seed0'))]
    assert pretend(path) == []


def test_keep_starts_anew_what_was_half_trained_with_another_config(here, data):
    path = write_study(here, data, FEW + "methods['Two'] = dict(first=dict(terms=['kd']), terms=['kd'])\n")
    pretend(path, only='*/two/*', cut=('Two', ))
    two, half = 'small/clean/two/seed0', here / 'work_dirs/studies/tiny/small/clean/two/seed0/epoch_1.pth'
    # Another teacher than the kept one changes nothing for what began with it.
    path.write_text(path.read_text() + "teachers['big']['overrides']['model']['backbone']['depth'] = 8\n")
    for _ in range(2):
        half.write_text('goes on')
        execute.check_unchanged(plan.load_study(str(path)).only(['*/two/*']), 'keep')
        assert half.read_text() == 'goes on'
        assert pretend(path, 'keep', '*/two/*', ('Two', )) == [two]
    path.write_text(path.read_text() + "common['train_cfg'] = dict(max_epochs=3)\n")
    runs = plan.load_study(str(path)).only(['*/two/*'])
    execute.check_unchanged(runs, 'keep')
    assert not half.exists()
    assert not runs[-1].record
    assert (half.parent / 'first/result.json').is_file()
    assert pretend(path, 'keep', '*/two/*') == [two]


def test_a_wrong_metric_is_told_at_the_first_result(here, data):
    path = write_study(here, data, FEW + "metric = 'accuracy/top5'\n")
    with pytest.raises(UserError, match="no metric 'accuracy/top5': give the study one of accuracy/top1, epoch"):
        pretend(path)
    assert len(list(here.rglob('result.json'))) == 1
    with pytest.raises(UserError, match='no metric'):
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


def test_a_teacher_of_the_students_own_architecture_is_another_run(here, data):
    path = write_study(here, data, "teachers['big']['overrides'] = dict()\nteacher_seeds = 'each'\n")
    study = plan.load_study(str(path))
    seeds = {run.seed: run.config['randomness']['seed'] for run in study.teachers}
    assert seeds == {0: 1000, 1: 1001}
    assert {run.config['randomness']['seed'] for run in study.students} == {0, 1}
    assert 'one teacher for each seed, of seed 1000 + that, trained on clean data' in report.caption(study)
    path.write_text(path.read_text() + "teacher_seeds = 'one'\nseeds = [7, 8]\n")
    assert 'one teacher for all seeds, of seed 1007, ' in report.caption(plan.load_study(str(path)))


def test_a_teacher_answers_once_for_all_seeds_and_methods(here, data):
    path = write_study(here, data, FEW + """
methods['Two'] = dict(first=dict(), terms=['kd'])
teacher_cache = True
networks['small']['overrides'] = dict(train_dataloader=dict(dataset=dict(seed=0)))
seeds = [0, 1]
""")
    tool.main([str(path), '--only', '*/kd/seed0'])
    folder = here / 'work_dirs/studies/tiny/teachers/big/clean/seed0/answers'
    (file, ) = folder.glob('*.sqlite')

    def answers() -> int:
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute('SELECT COUNT(*) FROM answers').fetchone()[0]

    first = answers()
    assert 190 < first <= 200  # 100 pictures in 2 epochs; a crop may be drawn twice
    tool.main([str(path), '--only', '*/two/seed1'])
    assert answers() == first
    assert list(folder.glob('*.sqlite')) == [file]


def drawn(study: plan.Study, values: dict[plan.Run, results.Result], monkeypatch) -> dict[str, list]:
    """Return the axes of every figure by its file's name."""
    axes = {}
    monkeypatch.setattr(figures, '_save', lambda study, figure, last, name, pyplot: axes.update({name: figure.axes}))
    list(figures.figures(study, values))
    return axes


@pytest.mark.parametrize(('average', 'centre'), [('mean', 7.), ('median', 6.)])
def test_figures_show_the_average_that_the_study_asks_for(here, data, monkeypatch, average, centre):
    study = plan.load_study(str(write_study(here, data, f"seeds = [0, 1, 2]\naverage = '{average}'\n")))
    values = finished(study, {(c, 'Baseline', s): x for c in ('clean', 'sigma=0.4')
                              for s, x in enumerate((5., 6., 10.))})
    for run in values:
        log = run.folder / 'time/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(
            json.dumps({'accuracy/top1': values[run].last - 2 + x, 'step': x}) + '\n' for x in (1, 2)))
    axes = drawn(study, values, monkeypatch)
    assert list(axes['noise.png'][0].lines[0].get_ydata()) == [centre, centre]
    assert list(axes['curves.png'][0].lines[0].get_ydata()) == [centre - 1, centre]


def test_figures_have_no_panel_without_a_line(here, data, monkeypatch):
    study = plan.load_study(str(write_study(here, data, """
networks['later'] = networks['small']
seeds = [0]
""")))
    values = finished(study, {(c, 'Baseline', 0): 50. for c in ('clean', 'sigma=0.4')})
    values = {run: value for run, value in values.items() if run.network == 'small'}
    for run in values:
        scores = 2 if run.corruption == 'clean' else 1
        log = run.folder / 'time/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(json.dumps({'accuracy/top1': 50., 'step': x + 1}) + '\n' for x in range(scores)))
    axes = drawn(study, values, monkeypatch)
    assert [x.get_title() for x in axes['noise.png']] == ['small']
    assert [x.get_title() for x in axes['curves.png']] == ['small, clean']
    log = next(run for run in values if run.corruption == 'clean').folder / 'time/vis_data/scalars.json'
    log.write_text(log.read_text().splitlines()[0])
    assert 'curves.png' not in drawn(study, values, monkeypatch)


def test_dashed_lines_are_named_where_there_are_some(here, data, monkeypatch):
    study = plan.load_study(str(write_study(here, data, 'seeds = [0]\n')))
    values = finished(study, {(c, 'Baseline', 0): 50. for c in ('clean', 'sigma=0.4')})
    for run in values:
        train = {'accuracy_top-1_0': 70., 'accuracy_top-1_1': 1., 'accuracy_top-1_ensemble': 2.}
        lines = [{'epoch': 1, 'step': 9, **(train if run.corruption == 'clean' else {})},
                 {'accuracy/top1': 50., 'step': 1}, {'accuracy/top1': 60., 'step': 2}]
        log = run.folder / 'time/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    clean, noisy = drawn(study, values, monkeypatch)['curves.png']
    assert [(x.get_linestyle(), list(x.get_ydata())) for x in clean.lines] == [('-', [50., 60.]), ('--', [70.])]
    assert len(noisy.lines) == 1
    assert (clean.get_xlabel(), noisy.get_xlabel()) == ('epoch (solid: test, dashed: training)', 'epoch')


def test_full_poster_studies_log_the_training_accuracy(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ('table3', 'table4', 'noise', 'imbalance'):
        study = plan.load_study(f'configs/studies/poster_{name}.py')
        for run in study.students:
            model = run.config['model']
            assert model.get('student', model)['head']['cal_acc'] is True
    samples = [DataSample().set_gt_label(x) for x in (0, 1)]
    for method, key in (('Baseline', 'accuracy_top-1'), ('ONE', 'accuracy_top-1_0'), ('DML', 'accuracy_top-1_0')):
        run = next(run for run in study.students if run.method == method)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(run.config['model'] | dict(data_preprocessor=None))
        assert key in model(torch.randn(2, 3, 32, 32), samples, mode='loss')


def test_a_teacher_for_each_seed_and_kind_of_data(here, data):
    path = str(write_study(here, data))

    def teachers(more: str) -> list[str]:
        write_study(here, data, more)
        return [x.folder.relative_to(here / 'r').as_posix() for x in plan.load_study(path, str(here / 'r')).teachers]

    assert teachers('') == ['teachers/big/clean/seed0']
    assert teachers("teacher_seeds = 'each'") == ['teachers/big/clean/seed0', 'teachers/big/clean/seed1']
    assert teachers("teacher_data = 'same'") == ['teachers/big/clean/seed0', 'teachers/big/sigma=0.4/seed0']
    assert teachers("corruptions = {'noisy': dict(label_noise=dict(rate=0.2))}") == ['teachers/big/clean/seed0']
    study = plan.load_study(path, str(here / 'r'))
    assert 'label_noise' not in study.teachers[0].config['train_dataloader']['dataset']['dataset']
    assert study.students[0].config['train_dataloader']['dataset']['dataset']['label_noise'] == dict(rate=0.2)


def test_conditions_reach_the_innermost_data_set_and_wrap_what_is_not_cifar():
    loader = dict(dataset=dict(type='A', dataset=dict(type='kd_plugins.CIFAR100', split='train')))
    plan.corrupt(loader, dict(imbalance=dict(gamma=1)))
    assert loader['dataset']['dataset'] == dict(type='kd_plugins.CIFAR100', split='train', imbalance=dict(gamma=1))
    loader = dict(dataset=dict(type='CustomDataset', data_root='x'))
    plan.corrupt(loader, dict(label_noise=dict(rate=.1)))
    assert loader['dataset'] == dict(type='kd_plugins.Corrupted', dataset=dict(type='CustomDataset', data_root='x'),
                                     label_noise=dict(rate=.1))


def test_wrapping_keeps_the_networks_record_and_the_overrides(here, data):
    path = write_study(here, data, "methods = {'Baseline': dict(), 'ONE': dict(wrap=dict(type='X', branches=3), "
                                   'overrides=dict(model=dict(backbone=dict(width=8))))}\n')
    one = next(run for run in plan.load_study(str(path)).students if run.method == 'ONE')
    assert (one.config['model']['type'], one.config['model']['branches']) == ('X', 3)
    assert one.config['model']['student']['backbone'] == dict(type='kd_plugins.CifarResNet', depth=8, width=8)
    assert not one.needs


@pytest.mark.parametrize(('more', 'told'), [
    ("methods = {'A': dict(term=['kd'])}", "has no option 'term'"),
    ("methods = {'A': dict(first=dict(term=['kd']))}", r"methods\['A'\]\['first'\] has no option 'term'"),
    ("methods = {'A': dict(first=dict(first=dict()))}", r"\['first'\] has no option 'first'"),
    ("methodes = {}", "a study has no option 'methodes'; the nearest is 'methods'"),
    ("teachers_common = {}", "the nearest is 'teacher_common'"),
    ('seeds = [0, 0]', r'seeds is \[0, 0\], expected a list of different whole numbers from 0 to 999'),
    ('seeds = []', r'seeds is \[\], expected'),
    ('seeds = 3', 'seeds is 3, expected'),
    ('seeds = [0, -1]', 'expected a list of different'),
    ('seeds = [0.5]', 'expected a list of different'),
    ('seeds = [1000]', 'expected a list of different'),  # a teacher's
    ("baseline = 'Student'", "baseline is 'Student', expected one of the methods Baseline, Hinton, Two stages"),
    ("networks = dict(small=dict(teacher='big'))", r"networks\['small'\] names no config"),
    ("teachers = dict(big=dict())", r"teachers\['big'\] names no config"),
    ("methods = {'A-b': dict(), 'a b': dict()}", 'must differ'),
    ("teacher_data = 'dirty'", "teacher_data is 'dirty', expected one of 'clean', 'same'"),
    ("networks = dict(small=dict(config='net.py'))", "needs a teacher, but network 'small' names none"),
    ("networks = dict(small=dict(config='net.py', teacher='b'))", "there is no teacher 'b' among big"),
    ("networks = dict(small=dict(config='nowhere.py', teacher='big'))", 'nowhere.py does not exist'),
])
def test_mistakes_in_a_study_are_told_in_one_line(here, data, more, told):
    path = write_study(here, data, more.replace('= dict(small=', '= dict(_delete_=True, small='))
    text = path.read_text().replace('_delete_=True, ', '')
    path.write_text(text)
    with pytest.raises(UserError, match=told) as error:
        plan.load_study(str(path))
    assert '\n' not in str(error.value)


def test_only_names_what_exists(here, data):
    with pytest.raises(UserError, match='no run matches nothing; runs are named as small/clean/baseline/seed0'):
        plan.load_study(str(write_study(here, data))).only(['nothing'])


def finished(study: plan.Study, values: dict[tuple[str, str, int], float]) -> dict[plan.Run, results.Result]:
    return {run: results.Result(values[run.corruption, run.method, run.seed], 0., 1.) for run in study.students
            if (run.corruption, run.method, run.seed) in values}


def test_tables_of_errors_of_medians_and_of_missing_runs(here, data):
    path = str(write_study(here, data, "error = True\nseeds = [0, 1, 2]\naverage = 'median'\n"))
    study = plan.load_study(path)
    values = {('clean', 'Baseline', s): x for s, x in enumerate((5., 6., 10.))}
    values |= {('clean', 'Hinton', s): x for s, x in enumerate((7., 7., 1.))}
    values[('sigma=0.4', 'Baseline', 0)] = 4.
    table = report.markdown(study, report.grids(study, finished(study, values)))
    std = [statistics.stdev(x) for x in ((5., 6., 10.), (7., 7., 1.))]
    assert f'| Baseline | **6.00 ± {std[0]:.2f}** | **4.00 (n=1, 2 missing)** |' in table
    assert f'| Hinton | 7.00 ± {std[1]:.2f} ↓ [90.0 ± 0.5] | — (3 missing) [80.0 ± 1.0] |' in table
    assert 'error (%)' in table
    assert 'median' in table
    assert 'n = 3' in table
    tex = report.latex(study, report.grids(study, finished(study, values)))
    worse = rf'\textcolor{{blue}}{{7.00 $\pm$ {std[1]:.2f}}}$\downarrow$'
    assert rf'Hinton & {worse} {{\scriptsize[90.0 $\pm$ 0.5]}} &' in tex
    for part in (r'\toprule', r'\midrule', r'\bottomrule', r'\begin{tabular}{lcc}'):
        assert part in tex


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
    launcher = execute.RayLauncher(2, 0.5)
    assert ray.options == dict(num_cpus=2, num_gpus=0.5, max_retries=2)
    handle = launcher.start(plan.Run('n', 'c', 'm', 0, Path('.'), {}))
    assert launcher.wait([handle], 1) == [(handle, 3)]
    assert Path('log.txt').read_text() == "['config.py', '--resume'] 2\n"
    launcher.stop([handle])
    assert ray.cancelled == [handle]


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/studies').glob('*.py')), ids=lambda path: path.stem)
def test_shipped_studies_spell_out(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = plan.load_study(str(path))
    options = study.options
    assert len(study.students) == len(options['networks']) * len(options['methods']) * len(
        options['corruptions']) * len(options['seeds'])
    published = report.references(study)
    known = {(n, c, m) for n in options['networks'] for c in options['corruptions']
             for m in [*options['methods'], 'Teacher']}
    assert known & published.keys()
    if 'quick' not in path.stem:
        assert published.keys() <= known
    for run in {(x.network, x.method): x for x in study.runs}.values():  # the texts are configs
        namespace = {}
        exec(run.text, {}, namespace)
        assert namespace['train_cfg']['max_epochs'] > 0
        assert ('teachers' in run.folder.parts) == (run.part == 'teacher')
    raw = {'backbone.stem', 'backbone.stage1', 'backbone.stage2', 'backbone.stage3'}
    for run in study.runs:  # on a WRN these are sums of no fixed size, on which the two losses diverge
        if run.config['model'].get('backbone', {}).get('type') != 'kd_plugins.WideResNet':
            continue
        for term in (term for hook in run.config.get('custom_hooks', []) for term in hook.get('terms', [])):
            if term['loss']['type'] in ('kd_plugins.FitNetLoss', 'kd_plugins.FSPLoss'):
                assert not raw & {*np.ravel([term['student'], term['teacher']])}
    os.fspath(study.root)


def test_a_networks_own_terms_go_before_the_studys(here, data):
    (here / 'own.py').write_text("methods = dict(kd=[dict(name='own')])")
    path = write_study(here, data, FEW + "networks['other'] = dict(networks['small'], terms_from='own.py')\n")
    terms = {(run.network, run.method): run.config['custom_hooks'][-1]['terms']
             for run in plan.load_study(str(path)).students if run.method == 'KD'}
    assert [term['name'] for term in terms['small', 'KD']] == ['kd']
    assert terms['small', 'KD'][0]['loss']['type'] == 'kd_plugins.KDLoss'
    assert terms['other', 'KD'] == [dict(name='own')]
    problems = {(run.network, run.method): run.problem for run in plan.load_study(str(path)).students}
    assert problems['other', 'AT'] == "own.py has no terms 'kd_alpha': it has kd"
    assert not problems['small', 'AT']
