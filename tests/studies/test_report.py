"""Tables and figures of a study."""

import csv
import io
import json
import statistics

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from tiny_study import ROOT, write_study

from kd_plugins.studies import figures, plan, report, results


def drawn(study: plan.Study, values: dict[plan.Run, results.Result], monkeypatch) -> dict[str, list]:
    """Return the axes of every figure by its file's name."""
    axes = {}
    monkeypatch.setattr(figures, '_save', lambda study, figure, last, name, pyplot: axes.update({name: figure.axes}))
    list(figures.figures(study, values, results.gains(study, values)))
    return axes


@pytest.mark.parametrize(('average', 'centre'), [('mean', 7.0), ('median', 6.0)])
def test_figures_show_the_average_that_the_study_asks_for(here, data, monkeypatch, average, centre):
    study = plan.load_study(str(write_study(here, data, f"seeds = [0, 1, 2]\naverage = '{average}'\n")))
    values = finished(
        study, {(c, 'Baseline', s): x for c in ('clean', 'sigma=0.4') for s, x in enumerate((5.0, 6.0, 10.0))}
    )
    for run in values:
        log = run.folder / 'time/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(
            ''.join(json.dumps({'accuracy/top1': values[run].last - 2 + x, 'step': x}) + '\n' for x in (1, 2))
        )
    axes = drawn(study, values, monkeypatch)
    assert list(axes['noise.png'][0].lines[0].get_ydata()) == [centre, centre]
    assert list(axes['curves.png'][0].lines[0].get_ydata()) == [centre - 1, centre]


def test_figures_have_no_panel_without_a_line(here, data, monkeypatch):
    study = plan.load_study(
        str(
            write_study(
                here,
                data,
                """
networks['later'] = networks['small']
seeds = [0]
""",
            )
        )
    )
    values = finished(study, {(c, 'Baseline', 0): 50.0 for c in ('clean', 'sigma=0.4')})
    values = {run: value for run, value in values.items() if run.network == 'small'}
    for run in values:
        scores = 2 if run.corruption == 'clean' else 1
        log = run.folder / 'time/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(json.dumps({'accuracy/top1': 50.0, 'step': x + 1}) + '\n' for x in range(scores)))
    axes = drawn(study, values, monkeypatch)
    assert [x.get_title() for x in axes['noise.png']] == ['small']
    assert [x.get_title() for x in axes['curves.png']] == ['small, clean']
    log = next(run for run in values if run.corruption == 'clean').folder / 'time/vis_data/scalars.json'
    log.write_text(log.read_text().splitlines()[0])
    assert 'curves.png' not in drawn(study, values, monkeypatch)


def test_balanced_data_lie_behind_the_last_gamma_and_old_figures_go(here, data, monkeypatch):
    more = """
corruptions = {'clean': dict(), 'a': dict(imbalance=dict(gamma=0.2)), 'b': dict(imbalance=dict(gamma=1)),
               'both': dict(imbalance=dict(gamma=3), label_noise=dict(rate=0.1))}
seeds = [0]
"""
    study = plan.load_study(str(write_study(here, data, more)))
    values = finished(
        study, {(c, 'Baseline', 0): x for c, x in (('clean', 90.0), ('a', 20.0), ('b', 40.0), ('both', 1.0))}
    )
    (axis,) = drawn(study, values, monkeypatch)['imbalance.png']
    assert axis.lines[0].get_xydata().tolist() == [[0.2, 20], [1, 40], [1.8, 90]]
    assert [x.get_text() for x in axis.get_xticklabels()] == ['0.2', '1', 'balanced']
    one = {run: value for run, value in values.items() if run.corruption in ('clean', 'b')}
    (axis,) = drawn(study, one, monkeypatch)['imbalance.png']
    assert axis.lines[0].get_xydata().tolist() == [[1, 40], [2, 90]]
    study.root.mkdir(parents=True)
    for name in ('noise.png', 'curves.png', 'imbalance.png', 'mine.png'):
        (study.root / name).write_text('of an earlier call')
    assert drawn(study, {run: value for run, value in values.items() if run.corruption == 'a'}, monkeypatch) == {}
    assert [path.name for path in study.root.iterdir()] == ['mine.png']


def test_dashed_lines_are_named_where_there_are_some(here, data, monkeypatch):
    study = plan.load_study(str(write_study(here, data, 'seeds = [0]\n')))
    values = finished(study, {(c, 'Baseline', 0): 50.0 for c in ('clean', 'sigma=0.4')})
    for run in values:
        train = {'accuracy_top-1_0': 70.0, 'accuracy_top-1_1': 1.0, 'accuracy_top-1_ensemble': 2.0}
        lines = [
            {'epoch': 1, 'step': 9, **(train if run.corruption == 'clean' else {})},
            {'accuracy/top1': 50.0, 'step': 1},
            {'accuracy/top1': 60.0, 'step': 2},
        ]
        log = run.folder / 'time/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    clean, noisy = drawn(study, values, monkeypatch)['curves.png']
    assert [(x.get_linestyle(), list(x.get_ydata())) for x in clean.lines] == [('-', [50.0, 60.0]), ('--', [70.0])]
    assert len(noisy.lines) == 1
    assert (clean.get_xlabel(), noisy.get_xlabel()) == ('epoch (solid: test, dashed: training)', 'epoch')


def test_full_poster_studies_log_the_training_accuracy(monkeypatch, hub):
    monkeypatch.chdir(ROOT)
    for name in ('table3', 'table4', 'noise', 'imbalance'):
        study = plan.load_study(f'configs/studies/poster_{name}.py')
        for run in study.students:
            model = run.config['model']
            assert model.get('student', model)['head']['cal_acc'] is True
            means = {x['data_src']: x for x in run.config['log_processor']['custom_cfg']}
            assert means.keys() == {'accuracy_top-1', 'accuracy_top-1_0'}
            assert run.config['default_hooks']['logger']['ignore_last'] is False
    samples = [DataSample().set_gt_label(x) for x in (0, 1)]
    for method, key in (('Baseline', 'accuracy_top-1'), ('ONE', 'accuracy_top-1_0'), ('DML', 'accuracy_top-1_0')):
        run = next(run for run in study.students if run.method == method)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(run.config['model'] | dict(data_preprocessor=None))
        assert key in model(torch.randn(2, 3, 32, 32), samples, mode='loss')


def finished(study: plan.Study, values: dict[tuple[str, str, int], float]) -> dict[plan.Run, results.Result]:
    return {
        run: results.Result(values[run.corruption, run.method, run.seed], 0.0, 1.0)
        for run in study.students
        if (run.corruption, run.method, run.seed) in values
    }


def test_the_dashed_line_is_an_epochs_mean(here, data):
    poster = Config.fromfile(str(ROOT / 'configs/studies/_base_/poster.py'))
    study = plan.load_study(
        str(
            write_study(
                here,
                data,
                f"""
common = {poster.curves.to_dict()!r} | dict(train_cfg=dict(max_epochs=1))
common['default_hooks']['logger']['interval'] = 2
""",
            )
        )
    )
    (run,) = study.only(['small/clean/baseline/seed0'])
    config = Config(run.config)
    seen = []
    runner = Runner.from_cfg(config)
    step = runner.model.train_step
    runner.model.train_step = lambda *args, **options: (seen.append(step(*args, **options)), seen[-1])[1]
    runner.train()
    assert len(seen) == 5
    mean = statistics.fmean(x['accuracy_top-1'].item() for x in seen)
    assert mean != seen[-1]['accuracy_top-1'].item()
    _, train = figures.curves(study, run)
    assert train == {1: pytest.approx(mean, abs=1e-4)}


def test_the_best_epoch_is_chosen_on_the_held_out_part(here, data):
    path = write_study(here, data, 'seeds = [0]\n')
    runs = plan.load_study(str(path)).students
    lines = [
        {'accuracy/top1': test, 'validation/top1': val, 'step': i + 1}
        for i, (test, val) in enumerate([(30.0, 50.0), (70.0, 60.0), (80.0, 55.0), (60.0, 60.0)])
    ]
    log = runs[0].folder / 'time/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    rest = ['{"accuracy/top1": 99.', '99', '{"accuracy/top1": null, "validation/top1": 99.0}', '\udce9']
    text = '\n'.join([*map(json.dumps, lines), *rest])
    log.write_text(text, errors='surrogateescape')  # a kill can cut a line, a bad disk anything
    (runs[0].folder / 'result.json').write_text(json.dumps({'metrics': lines[-1]}))
    held_out = 'validation = dict(size=30)\n'
    for more, best in (('', 80.0), (held_out, 70.0), (held_out + 'error = True\n', 30.0)):
        study = plan.load_study(str(write_study(here, data, 'seeds = [0]\n' + more)))
        found = results.result_of(study, study.students[0])
        assert found.last == (40.0 if 'error' in more else 60.0)
        assert found.best == best
        assert ('chosen on 30 training images held out' in report.caption(study)) == ('validation' in more)
    (runs[0].folder / 'result.json').write_text(json.dumps({'metrics': {'accuracy/top1': 60.0}}))  # made without it
    log.write_text(json.dumps({'accuracy/top1': 70.0, 'step': 1}) + '\n')
    found = results.result_of(study, study.students[0])
    assert (found.last, found.best) == (40.0, None)
    assert report.long_form(study, {study.students[0]: found}).splitlines()[1].split(',')[5:7] == ['40.0000', '']


def test_the_table_as_csv_and_what_the_stages_are(here, data):
    study = plan.load_study(
        str(
            write_study(
                here,
                data,
                """
methods['Named'] = dict(first='Baseline', terms=['kd'])
methods['Plain'] = dict(first=dict())
methods['Joint'] = dict(first=dict(terms=['kd'], hook=dict(task='train')))
methods['Online'] = dict(first=dict(wrap=dict(type='kd_plugins.MutualLearning')))
""",
            )
        )
    )
    values = {('clean', 'Baseline', 0): 5.0, ('clean', 'Baseline', 1): 8.0, ('clean', 'Hinton', 0): 4.0}
    text = report.tidy(study, report.grids(study, finished(study, values)))
    rows = {(x['method'], x['column']): x for x in csv.DictReader(io.StringIO(text))}
    assert len(rows) == 8 * 2  # seven methods and the teacher
    assert rows['Baseline', 'clean'] == {
        'table': 'tiny',
        'method': 'Baseline',
        'column': 'clean',
        'n': '2',
        'mean': '6.5000',
        'std': f'{statistics.stdev((5.0, 8.0)):.4f}',
        'published': '',
        'best': 'True',
        'worse than baseline': 'False',
    }
    assert rows['Hinton', 'clean'] == rows['Baseline', 'clean'] | {
        'method': 'Hinton',
        'n': '1',
        'mean': '4.0000',
        'std': '',
        'published': '90.0 ± 0.5',
        'best': 'False',
        'worse than baseline': 'True',
    }
    assert rows['Teacher', 'sigma=0.4']['published'] == '94.0'
    assert rows['Named', 'clean']['mean'] == ''
    caption = report.caption(study)
    for message in (
        'Two stages: first hint, then the task + kd;',
        'Named: first Baseline, then the task + kd;',
        'Plain: first the task, then the task;',
        'Joint: first the task + kd, then the task;',
        'Online: first the task + kd_plugins.MutualLearning, then the task;',
    ):
        assert message in caption


def test_tables_of_errors_of_medians_and_of_missing_runs(here, data):
    path = str(write_study(here, data, "error = True\nseeds = [0, 1, 2]\naverage = 'median'\n"))
    study = plan.load_study(path)
    values = {('clean', 'Baseline', s): x for s, x in enumerate((5.0, 6.0, 10.0))}
    values |= {('clean', 'Hinton', s): x for s, x in enumerate((7.0, 7.0, 1.0))}
    values[('sigma=0.4', 'Baseline', 0)] = 4.0
    table = report.markdown(study, report.grids(study, finished(study, values)))
    std = [statistics.stdev(x) for x in ((5.0, 6.0, 10.0), (7.0, 7.0, 1.0))]
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


@pytest.mark.parametrize(('error', 'last', 'best'), [(False, 40.0, 55.0), (True, 60.0, 45.0)])
def test_a_metric_that_is_a_fraction_is_shown_in_percent(here, data, error, last, best):
    options = f"seeds = [0]\nmetric = 'reid/mAP'\nfraction = True\nerror = {error}\n"
    study = plan.load_study(str(write_study(here, data, options)))
    run = study.students[0]
    scores = run.folder / '20261126_000000/vis_data/scalars.json'
    scores.parent.mkdir(parents=True)
    scores.write_text('{"reid/mAP": 0.55, "step": 1}\n{"reid/mAP": 0.4, "step": 2}\n')
    (run.folder / 'result.json').write_text('{"metrics": {"reid/mAP": 0.4}}')
    found = results.result_of(study, run)
    assert (found.last, found.best) == (pytest.approx(last), pytest.approx(best))
    assert figures.curves(study, run)[0] == {1: pytest.approx(best), 2: pytest.approx(last)}


def test_a_metric_that_is_not_finite_is_left_out(here, data):
    study = plan.load_study(str(write_study(here, data, 'seeds = [0, 1, 2]\n')))
    for seed, score in ((0, 'NaN'), (1, '40.0'), (2, '42.0')):
        folder = study.root / f'small/clean/baseline/seed{seed}'
        folder.mkdir(parents=True)
        (folder / 'result.json').write_text(f'{{"metrics": {{"accuracy/top1": {score}, "epoch": 2}}}}')
    report.report(study, keep_changed=True)
    assert '41.00 ± 1.41 (n=2, 1 missing)' in (study.root / 'table.md').read_text()


def test_equal_differences_have_no_p(here, data):
    study = plan.load_study(str(write_study(here, data, 'seeds = [0, 1, 2]\n')))
    values = {('clean', 'Baseline', s): x for s, x in enumerate((55.12, 54.98, 55.31))}
    values |= {('clean', 'Hinton', s): x for s, x in enumerate((56.34, 56.20, 56.53))}
    assert len({values['clean', 'Hinton', s] - values['clean', 'Baseline', s] for s in range(3)}) > 1  # in binary
    (gain,) = results.gains(study, finished(study, values))
    assert (gain.values, gain.p) == ((1.22, 1.22, 1.22), None)


def test_gains_are_paired_by_seed(here, data, monkeypatch):
    study = plan.load_study(str(write_study(here, data, 'seeds = [0, 1, 2]\n')))
    values = {('clean', 'Baseline', s): x for s, x in enumerate((5.0, 6.0, 10.0))}
    values |= {('clean', 'Hinton', s): x for s, x in enumerate((6.0, 7.5, 12.0))}
    values[('clean', 'Two stages', 1)] = 4.0
    values[('sigma=0.4', 'Hinton', 0)] = 4.0  # has no baseline
    hinton, two = found = results.gains(study, done := finished(study, values))
    assert hinton.values == (1.0, 1.5, 2.0)
    # t = 1.5 / (0.5 / sqrt(3)) = 5.196; with two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    t = 1.5 * 3**0.5 / 0.5
    assert hinton.p == pytest.approx(1 - t / (t**2 + 2) ** 0.5, abs=1e-9)
    assert (two.method, two.values, two.p) == ('Two stages', (-2.0,), None)
    lines = list(csv.DictReader(io.StringIO(report.paired(found))))
    assert [(x['method'], x['n'], x['gain'], x['std']) for x in lines] == [
        ('Hinton', '3', '1.5000', '0.5000'),
        ('Two stages', '1', '-2.0000', ''),
    ]
    (axis,) = drawn(study, done, monkeypatch)['gains.png']
    assert [bar.get_width() for bar in axis.patches] == [1.5, -2.0]


def test_of_errors_a_smaller_one_is_a_gain(here, data):
    study = plan.load_study(str(write_study(here, data, 'seeds = [0]\nerror = True\n')))
    values = finished(study, {('clean', 'Baseline', 0): 5.0, ('clean', 'Hinton', 0): 3.0})
    assert [gain.values for gain in results.gains(study, values)] == [(2.0,)]
