"""The search for a term's weight: its rounds, what its runs see, what follows from it."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest
from tiny_study import FEW, TOOLS, write_study

from kd_plugins.distillation.distillation import DIVERGED
from kd_plugins.errors import UserError
from kd_plugins.studies import execute, plan, report
from kd_plugins.studies.run import Run
from kd_plugins.studies.search import SEARCH_SEED, Search, rounds_of, searched_terms, with_weight
from kd_plugins.utils.scalars import lines_of

_spec = importlib.util.spec_from_file_location('study', TOOLS / 'study.py')
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

SEARCH = (
    FEW
    + """
methods['Searched'] = dict(terms=['kd'], search=dict(weight=[0.1, 0.3, 1.0, 3.0, 10.0]))
validation = dict(size=30)
common = dict(train_cfg=dict(max_epochs=8))
seeds = [4, 5]
"""
)
# Scores by weight and epoch: 0.1 leads at first, and of the better three 1.0 does in the end.
SCORES = {
    (0.1, 2): 50.0, (0.3, 2): 20.0, (1.0, 2): 45.0, (3.0, 2): 40.0, (10.0, 2): 30.0,
    (0.1, 4): 60.0, (1.0, 4): 70.0, (3.0, 4): 50.0, (0.1, 8): 61.0, (1.0, 8): 71.0,
}  # fmt: skip


class Pretended:
    """A launcher whose runs end at once; those of a search score as ``SCORES`` say, or else diverge."""

    def __init__(self, scores=None, stop_after=math.inf, status='error: disk full'):
        self.scores, self.stop_after, self.status, self.started = scores or SCORES, stop_after, status, []

    def start(self, run):
        if len(self.started) >= self.stop_after:
            raise KeyboardInterrupt
        self.started.append((run.folder.name, run.until) if run.part == 'search' else run.name)
        log = run.folder / '2026/vis_data/scalars.json'
        log.parent.mkdir(parents=True, exist_ok=True)
        score = self.scores.get((float(run.folder.name), run.until)) if run.part == 'search' else 50.0
        if score is None:
            (run.folder / 'log.txt').write_text(self.status + '\n')
            return run
        epoch = run.until or 8
        with log.open('a') as file:
            file.write(json.dumps({'accuracy/top1': score, 'step': epoch}) + '\n')
        (run.folder / 'result.json').write_text(json.dumps({'metrics': {'accuracy/top1': score, 'epoch': epoch}}))
        return run

    def wait(self, handles, seconds):
        return [(run, 0 if run.finished else 1) for run in handles]

    def stop(self, handles):
        pass


class Lingering(Pretended):
    """Its runs write their score, and some time later their result."""

    asked = 0

    def start(self, run):
        super().start(run)
        file = run.folder / 'result.json'
        return run, file, file.read_text(), file.unlink()

    def wait(self, handles, seconds):
        self.asked += 1
        if self.asked % 3:
            return []
        for _, file, text, _ in handles:
            file.write_text(text)
        return [(handle, 0) for handle in handles]


def make(path: Path, launcher: Pretended, jobs: int = 1, changed: str = 'stop') -> execute.Execution:
    study = plan.load_study(str(path))
    execute.check_unchanged(study.runs, changed)
    execution = execute.Execution(study, study.runs, launcher, jobs, changed)
    execution.run()
    return execution


def weights_of(path: Path, method: str = 'Searched') -> set[float]:
    study = plan.load_study(str(path))
    return {run.config['custom_hooks'][-1]['terms'][0]['weight'] for run in study.students if run.method == method}


def test_the_better_half_goes_on_and_the_best_is_the_methods_weight(here, data, capsys):
    path = write_study(here, data, SEARCH)
    tool.main([str(path), '--list'])
    listed = capsys.readouterr().out
    assert '9 runs, 72 epochs; before them the search for 1 weight(s): 5 runs, 24 epochs in all' in listed
    assert 'waits   small/clean/searched/seed4' in listed
    launcher = Pretended()
    assert not make(path, launcher).failed
    searched = [run for run in launcher.started if isinstance(run, tuple)]
    assert searched == [
        *((name, 2) for name in ('0.1', '0.3', '1', '3', '10')),
        *((name, 4) for name in ('0.1', '1', '3')),
        *((name, 8) for name in ('1', '0.1')),  # the better one first
    ]
    study = plan.load_study(str(path))
    (search,) = study.searches
    assert (search.best, search.default, search.sizes, search.cost) == (1.0, 1.0, [5, 3, 2], 5 * 2 + 3 * 2 + 2 * 4)
    assert weights_of(path) == {1.0}
    config = (study.root / 'small/clean/searched/seed5/config.py').read_text()
    assert "'weight': 1.0" in config
    assert 'StopHook' not in config
    assert not any(run.changed or run.waits for run in study.runs)
    launcher = Pretended()
    make(path, launcher)
    assert not launcher.started

    report.report(study, keep_changed=False)
    rows = list(csv.DictReader((study.root / 'search.csv').open()))
    assert {(float(x['weight']), int(x['epoch'])): float(x['score']) for x in rows} == SCORES
    assert {x['weight'] for x in rows if x['found'] == 'True'} == {'1'}
    table = (study.root / 'table.md').read_text()
    assert '| small / clean / Searched | weight=1 | 1 | epoch 2: 0.1: 50.0, 0.3: 20.0, ' in table
    assert '| 24 of 24 |' in table
    assert 'on 30 training images held out, never on the test set; one run for each weight, of seed 2004' in table


@pytest.mark.parametrize('jobs', [1, 2])
def test_a_run_that_has_scored_and_not_ended_is_in_its_round_still(here, data, jobs):
    path = write_study(here, data, SEARCH)
    # The weight that is tried last leads, so that the run which ends a round goes on in the next one.
    launcher = Lingering({(weight, epoch): 50 + weight for weight in (0.1, 0.3, 1.0, 3.0, 10.0) for epoch in (2, 4, 8)})
    assert not make(path, launcher, jobs).failed
    assert [x[1] for x in launcher.started if isinstance(x, tuple)] == [2] * 5 + [4] * 3 + [8] * 2
    assert weights_of(path) == {10.0}


def test_the_runs_of_a_search_name_no_test_set_and_are_none_of_the_table(here, data):
    study = plan.load_study(str(write_study(here, data, SEARCH)))
    searching = [run for run in study.runs if run.part == 'search']
    assert [run.folder.name for run in searching] == ['0.1', '0.3', '1', '3', '10']
    for run in searching:
        assert "'test'" not in run.text
        train, val = (run.config[f'{x}_dataloader']['dataset']['dataset'] for x in ('train', 'val'))
        assert (train['split'], train['validation']) == ('train', dict(size=30))
        assert (val['split'], val['validation']) == ('train', dict(size=30, part='val'))
        assert run.config['randomness']['seed'] == 4 + SEARCH_SEED
        assert run.needs == study.teachers
        assert run not in study.students
    assert all("'test'" in run.text for run in study.students)
    chosen = study.only(['*/searched/seed5'])
    assert chosen == [*study.teachers, *searching, chosen[-1]]
    assert study.only(['*/kd/seed5'])[0].part == 'teacher'
    assert len(study.only(['*/kd/seed5'])) == 2


def test_a_search_that_was_stopped_goes_on(here, data):
    path = write_study(here, data, SEARCH)
    first = Pretended(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        make(path, first)
    second = Pretended()
    make(path, second)
    assert len(set(first.started + second.started)) == len(first.started) + len(second.started)
    whole = Pretended()
    make(write_study(here, data, SEARCH + "root = 'whole'\n"), whole)
    assert sorted(first.started + second.started, key=str) == sorted(whole.started, key=str)
    assert weights_of(path) == {1.0}


def test_a_weight_that_diverges_is_left_out_and_one_that_fails_stops_the_method_alone(here, data):
    path = write_study(here, data, SEARCH)
    diverged = f'error: loss_kd is nan at iteration 3: {DIVERGED}; lower it'
    some = {key: value for key, value in SCORES.items() if key[0] not in (1.0, 3.0, 10.0)}
    launcher = Pretended(some, status=diverged)
    assert not make(path, launcher).failed
    (search,) = plan.load_study(str(path)).searches
    # Two are left after the first round, and one after the second, which ends the search.
    assert [set(x) for x in search.rounds] == [{0.1, 0.3, 1.0, 3.0, 10.0}, {0.1, 0.3}]
    assert search.best == 0.1
    assert weights_of(path) == {0.1}
    assert 'diverged' in report.search_table(plan.load_study(str(path)))[1][3]

    execution = make(write_study(here, data, SEARCH + "root = 'none'\n"), Pretended({(0, 0): 1.0}, status=diverged))
    assert {run.method for run in execution.failed} == {'Searched'}
    assert set(execution.failed.values()) == {
        'not started, since every weight of its search diverged: give it smaller ones'
    }

    execution = make(write_study(here, data, SEARCH + "root = 'full'\n"), Pretended(some))
    reasons = {run.name: reason for run, reason in execution.failed.items()}
    assert reasons['small / clean / Searched / weight 1 to epoch 2'] == 'error: disk full'
    assert reasons['small / clean / Searched / seed 4'].startswith('not started, since small / clean / Searched / wei')
    assert {run.method for run in execution.failed} == {'Searched'}
    assert {run.method for run in plan.load_study(str(path)).students if run.finished} == {'Baseline', 'KD', 'AT'}


def test_a_weight_that_is_added_is_searched_and_runs_of_another_one_are_reported(here, data):
    path = write_study(here, data, SEARCH)
    make(path, Pretended())
    longer = SEARCH.replace('10.0]', '10.0, 2.0]')
    path = write_study(here, data, longer)
    study = plan.load_study(str(path))
    students = [run for run in study.students if run.method == 'Searched']
    assert all(run.waits and not run.changed for run in students)
    execute.check_unchanged(study.runs, 'stop')
    launcher = Pretended(SCORES | {(2.0, 2): 55.0, (2.0, 4): 80.0, (2.0, 8): 90.0})
    make(path, launcher)
    assert launcher.started == [('2', 2), ('2', 4), ('2', 8)]
    study = plan.load_study(str(path))
    assert weights_of(path) == {2.0}
    with pytest.raises(UserError, match=r'2 runs were made with another config .*searched/seed4'):
        execute.check_unchanged(study.runs, 'stop')
    execute.check_unchanged(study.runs, 'redo')
    launcher = Pretended()
    make(path, launcher)
    assert launcher.started == [f'small / clean / Searched / seed {seed}' for seed in (4, 5)]


def test_keep_starts_a_search_anew_that_has_not_found_its_weight(here, data):
    path = write_study(here, data, SEARCH)
    launcher = Pretended(stop_after=3)  # the teacher and two weights, which end their first round
    with pytest.raises(KeyboardInterrupt):
        make(path, launcher)
    weight = plan.load_study(str(path)).root / 'small/clean/searched/search/0.1'
    assert ('0.1', 2) in launcher.started
    (weight / 'epoch_2.pth').write_text('of the old rate')
    path = write_study(here, data, SEARCH + "common['optim_wrapper'] = dict(optimizer=dict(lr=0.5))\n")
    launcher = Pretended()
    make(path, launcher, changed='keep')
    assert not (weight / 'epoch_2.pth').exists()
    assert [x for x in launcher.started if isinstance(x, tuple)][:5] == [(x, 2) for x in ('0.1', '0.3', '1', '3', '10')]
    assert all("'lr': 0.5" in x.read_text() for x in weight.parent.glob('*/config.py'))
    path = write_study(here, data, SEARCH + "common['optim_wrapper'] = dict(optimizer=dict(lr=0.7))\n")
    launcher = Pretended()
    make(path, launcher, changed='keep')  # all is finished, the search too
    assert not launcher.started


@pytest.mark.parametrize(('better', 'interrupted'), [(False, False), (True, False), (True, True)])
def test_redo_makes_what_another_weight_changes_and_nothing_else(here, data, better, interrupted):
    """Of a search that gets a further weight, the students wait; as does a search that starts from one of them."""
    more = """
methods['Next'] = dict(first='Searched', terms=['kd'], search=dict(weight=[0.1, 0.3]))
methods['Last'] = dict(first='Searched', terms=['kd'])
seeds = [4]
"""
    scores = SCORES | {(0.3, 8): 10.0}
    make(write_study(here, data, SEARCH + more), Pretended(scores))
    path = write_study(here, data, SEARCH.replace('10.0]', '10.0, 2.0]') + more)
    launcher = Pretended(scores | {(2.0, epoch): 90.0 if better else 1.0 for epoch in (2, 4, 8)})
    if interrupted:
        launcher.stop_after = 3
        with pytest.raises(KeyboardInterrupt):
            make(path, launcher, changed='redo')
        launcher.stop_after = math.inf
    assert not make(path, launcher, changed='redo').failed
    students = [f'small / clean / {method} / seed 4' for method in ('Searched', 'Next', 'Last')]
    if better:
        assert launcher.started[:4] == [('2', 2), ('2', 4), ('2', 8), students[0]]
        assert sorted(map(str, launcher.started[4:])) == sorted(map(str, [('0.1', 8), ('0.3', 8), *students[1:]]))
    else:
        assert launcher.started == [('2', 2)]
    assert not any(run.changed or not run.finished for run in plan.load_study(str(path)).runs)


@pytest.mark.parametrize('interrupted', [False, True])
def test_a_run_past_the_end_of_a_new_round_without_a_score_starts_over(here, data, interrupted):
    """Two weights have one round, three have two: the old runs have no score at the end of the first."""
    path = write_study(here, data, SEARCH.replace('[0.1, 0.3, 1.0, 3.0, 10.0]', '[0.1, 0.3]'))
    scores = {(weight, epoch): 50 + weight for weight in (0.1, 0.3, 2.0) for epoch in (4, 8)}
    launcher = Pretended(scores)
    make(path, launcher)
    assert [x for x in launcher.started if isinstance(x, tuple)] == [('0.1', 8), ('0.3', 8)]
    study = plan.load_study(str(path))
    old = study.root / 'small/clean/searched/search/0.1'
    (old / 'epoch_6.pth').write_text('past the new end')
    if interrupted:  # no result tells how far it has come
        (old / 'result.json').unlink()
    path = write_study(here, data, SEARCH.replace('[0.1, 0.3, 1.0, 3.0, 10.0]', '[0.1, 0.3, 2.0]'))
    launcher = Pretended(scores)
    assert not make(path, launcher).failed
    assert launcher.started == [('0.1', 4), ('0.3', 4), ('2', 4), ('2', 8), ('0.3', 8)]
    assert not (old / 'epoch_6.pth').exists()
    assert weights_of(path) == {2.0}


def test_a_search_whose_runs_log_no_score_says_so(here, data):
    class Silent(Pretended):
        def start(self, run):
            super().start(run)
            (run.folder / '2026/vis_data/scalars.json').write_text('')
            return run

    path = write_study(here, data, SEARCH)
    for _ in range(2):  # the second time it goes on from where it ended
        reasons = {run.name: reason for run, reason in make(path, Silent()).failed.items()}
        assert reasons['small / clean / Searched / weight 0.1 to epoch 2'] == (
            "its scalars.json has no 'accuracy/top1' of epoch 2: a search needs a LoggerHook"
        )


def test_a_weight_that_changes_in_time_keeps_its_course_and_named_terms_alone_get_one():
    terms = [
        dict(name='a', loss=0, weight=dict(at=[0, 1, 2], value=[0.0, 4.0, 1.0], by='progress')),
        dict(name='b', loss=1),
        dict(name='c', loss=2, weight=5.0),
    ]
    before = json.dumps(terms)
    made = with_weight(terms, ['a', 'b'], 8.0)
    assert [term.get('weight') for term in made] == [
        dict(at=[0, 1, 2], value=[0.0, 8.0, 2.0], by='progress'),
        8.0,
        5.0,
    ]
    assert json.dumps(terms) == before


@pytest.mark.parametrize('weight', [0.1, 0.0])
def test_a_weight_may_be_taken_again(tmp_path, monkeypatch, weight):
    """A run takes it when the study is read, and when the run starts."""
    terms = [dict(name='a', weight=dict(at=[0, 1], value=[0.1, 0.3], by='progress'))]
    search = Search('accuracy/top1', [1], ['a'], 0.3)
    monkeypatch.setattr(Search, 'best', weight)
    run = Run('n', 'c', 'm', 0, tmp_path, dict(custom_hooks=[dict(terms=terms)]), search=search)
    run.take_weight()
    once = run.text
    run.take_weight()
    assert run.text == once
    assert run.config['custom_hooks'][-1]['terms'][0]['weight']['value'][1] == pytest.approx(weight)


def test_scalars_are_read_again_when_they_have_changed(tmp_path):
    path = tmp_path / 'scalars.json'
    path.write_text('{"step": 1}\n')
    assert lines_of(path) == [dict(step=1)]
    assert lines_of(path) is lines_of(path)
    with path.open('a') as file:
        file.write('{"step": 2}\n{"st')
    assert lines_of(path) == [dict(step=1), dict(step=2)]


def test_a_weight_that_is_always_0_cannot_be_searched():
    terms = [dict(name='a', weight=dict(at=[0, 1], value=[0.0, 0.0], by='progress'))]
    with pytest.raises(UserError, match="'a' is 0 at all times"):
        searched_terms('here', terms, None)


@pytest.mark.parametrize(
    ('count', 'given', 'whole', 'epochs'),
    [
        (2, None, 30, [30]),
        (3, None, 30, [15, 30]),
        (4, None, 30, [15, 30]),
        (5, None, 30, [7, 15, 30]),
        (16, None, 3, [1, 3]),
        (4, [2, 9], 30, [2, 9]),
    ],
)
def test_the_last_round_is_the_whole_training_and_each_ends_at_half_the_next(count, given, whole, epochs):
    assert rounds_of('x', count, given, whole) == epochs


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        ('dict(search=dict(weight=[1, 2]))', r"\['X'\] has search, but no terms whose weight"),
        ("dict(wrap=dict(type='X'), search=dict(weight=[1, 2]))", 'has search, but no terms'),
        (
            "dict(terms=['kd'], search=dict(weight=[]))",
            r'the weight of search is \[\], expected at least two different',
        ),
        ("dict(terms=['kd'], search=dict(weight=[1]))", r'is \[1\], expected at least two'),
        ("dict(terms=['kd'], search=dict(weight=[1, 1.0]))", 'expected at least two different numbers'),
        ("dict(terms=['kd'], search=dict(weight=[1, -2]))", r'is \[1, -2\], expected .* none below 0'),
        ("dict(terms=['kd'], search=dict(weight=[1, '2']))", 'expected at least two different numbers'),
        ("dict(terms=['kd'], search=dict(weight=3))", 'the weight of search is 3'),
        ("dict(terms=['kd'], search=[1, 2])", r'search is \[1, 2\], expected the weights to choose from, as search='),
        ("dict(terms=['kd'], search=dict(weights=[1, 2]))", "search is {'weights'.*expected the weights to choose"),
        (
            "dict(terms=['kd'], search=dict(weight=[1, 2], epoch=[1]))",
            "search has no option 'epoch'; options are epochs",
        ),
        ("dict(terms=['kd'], search=dict(weight=[1, 2], epochs=[1, 2]))", 'of 2 weights one is left after 1 round'),
        ("dict(terms=['kd'], search=dict(weight=[1, 2, 3], epochs=[2, 1]))", 'expected whole numbers that rise'),
        ("dict(terms=['kd'], search=dict(weight=[1, 2], epochs=[]))", r'the epochs of search are \[\]'),
        ("dict(terms=['kd'], search=dict(weight=[1, 2], epochs=[9]))", 'the training ends after 8'),
        ("dict(terms=['kd'], search=dict(weight=[1, 2], terms=['no']))", "names the term 'no', but the method has kd"),
        ("dict(terms=['kd'], search=dict(weight=[1, 2], terms='kd'))", "the terms of search are 'kd', expected names"),
        ("dict(terms=['bss'], search=dict(weight=[1, 2]))", r"the terms kd, bss: name those .*terms=\['bss'\]"),
        ('dict(first=dict(search=dict(weight=[1, 2])))', r"\['first'\] has no option 'search'"),
        (
            "dict(terms=['kd'], search=dict(weight=[1, 2]))\nvalidation = None",
            'never on the test set: give the study val',
        ),
        (
            "dict(terms=['kd'], search=dict(weight=[1, 2]), overrides=dict(train_cfg=dict(max_epochs=None)))",
            'search halves by epochs, but the training has no train_cfg.max_epochs',
        ),
    ],
)
def test_mistakes_in_a_search_are_reported_in_one_line(here, data, method, message):
    path = write_study(here, data, f"{SEARCH}\nmethods['X'] = {method}\n")
    with pytest.raises(UserError, match=message) as error:
        plan.load_study(str(path))
    assert '\n' not in str(error.value)
