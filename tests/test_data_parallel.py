"""Two processes train as one does: results of one launch of ``workers/data_parallel.py``."""

import pytest
import torch
from tiny import equal

RELATIONAL, PER_SAMPLE = ('rkd-d', 'rkd-a', 'rkd-da', 'sp', 'pkt', 'dist', 'own'), ('kd', 'dkd', 'at', 'nst')
TERMS = RELATIONAL + PER_SAMPLE
BOTH = pytest.mark.parametrize('way', ['hook', 'model'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory, two_processes):
    folder = tmp_path_factory.mktemp('data_parallel')
    two_processes('data_parallel.py', folder)
    return folder


@pytest.fixture(scope='module')
def ranks(folder):
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(2)]


def runs(ranks, way, name):
    """Return the run of one process, and those of the two ranks."""
    alone = ranks[0]['alone'] | ranks[1]['alone']
    return alone[way, name], [rank['together'][way, name] for rank in ranks]


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def steps(run, key):
    """Return the change of the parameters in each iteration."""
    return [{k: after[k] - before[k] for k in after} for before, after in zip(run[key], run[key][1:], strict=False)]


@BOTH
def test_relational_loss_is_that_of_the_global_batch(ranks, way):
    alone, together = runs(ranks, way, 'terms')
    for i, name in enumerate(RELATIONAL):
        expected = alone['losses'][i][f'loss_{name}']
        assert expected > 1e-4
        assert [run['losses'][i][f'loss_{name}'] for run in together] == pytest.approx([expected] * 2, rel=1e-9)


@BOTH
def test_per_sample_losses_average_to_that_of_the_global_batch(ranks, way):
    alone, together = runs(ranks, way, 'terms')
    for i, name in enumerate(PER_SAMPLE, len(RELATIONAL)):
        values = [run['losses'][i][f'loss_{name}'] for run in together]
        assert values[0] != values[1]
        assert sum(values) / 2 == pytest.approx(alone['losses'][i][f'loss_{name}'], rel=1e-9)


@BOTH
def test_every_gradient_is_that_of_the_global_batch(ranks, way):
    """Each iteration has one term only, so the step of the weights shows its gradient."""
    alone, together = runs(ranks, way, 'terms')
    expected = steps(alone, 'states')
    assert len(expected) >= len(TERMS)
    for run in together:
        assert_close(run['states'][0], alone['states'][0])
        for i, name in enumerate(TERMS):
            step = steps(run, 'states')[i]
            assert step['maps.weight'].norm() > 1e-3, name
            assert_close(step, expected[i])


@BOTH
@pytest.mark.parametrize('name', ['adapters', 'accumulation', 'critic'])
def test_adapters_train_as_in_one_process(ranks, way, name):
    alone, together = runs(ranks, way, name)
    moved = [any(x.any() for x in step.values()) for step in steps(alone, 'adapters')]
    assert moved == [True] * 8 if name != 'accumulation' else moved == [False, True] * 4
    for run in together:
        assert_close(run['adapters'], alone['adapters'])
        assert_close(run['states'], alone['states'])
    assert all(equal(*pair) for pair in zip(*(run['adapters'] for run in together), strict=True))


def test_pending_gradients_of_all_processes_are_resumed(ranks):
    for rank in ranks:
        for whole, resumed in rank['pending']:
            assert_close(whole, resumed)


@BOTH
def test_norms_of_gradients_are_those_of_the_global_batch(ranks, way):
    alone, together = runs(ranks, way, 'watched')
    assert alone['norms'].keys() == {f'train/gradient/{name}' for name in ('kd', 'sp', 'task')}
    for name, norms in alone['norms'].items():
        assert min(norms) > 1e-3
        for run in together:
            assert run['norms'][name] == pytest.approx(norms, rel=1e-5)
            assert_close(run['states'], alone['states'])


@BOTH
def test_a_norm_is_taken_where_one_process_has_no_gradient(ranks, way):
    first, second = (rank['one graph'][way] for rank in ranks)
    assert first == second
    assert len(first['train/gradient/own']) == 8
    assert min(first['train/gradient/own']) > 1e-3


@BOTH
def test_banks_are_those_of_one_process(ranks, way):
    alone, together = runs(ranks, way, 'banks')
    start, first, *_, last = alone['adapters']
    for bank in ('student_bank', 'teacher_bank'):
        rows = [(x[f'terms.0.loss.{bank}'] != start[f'terms.0.loss.{bank}']).all(1) for x in (first, last)]
        assert [x.sum() for x in rows] == [8, 64]
    for run in together:
        assert_close([x['loss_crd'] for x in run['losses']], [x['loss_crd'] for x in alone['losses']])
        assert_close(run['adapters'], alone['adapters'])
        assert_close(run['states'], alone['states'])
    assert all(equal(*pair) for pair in zip(*(run['adapters'] for run in together), strict=True))


@BOTH
def test_a_process_without_samples_to_attack_does_not_hang(ranks, way):
    """Both networks predict class 0, and only rank 0 has images of that class."""
    alone, (first, second) = runs(ranks, way, 'bss')
    assert all(step['loss_bss'] > 0 for step in [*alone['losses'], *first['losses']])
    assert all(step['loss_bss'] == 0 for step in second['losses'])
    assert len(second['losses']) == 8
    assert all(equal(*states) for states in zip(first['states'], second['states'], strict=True))
    assert steps(first, 'states')[0]['maps.weight'].norm() > 1e-3


def test_both_ways_attack_alike(ranks):
    for rank in ranks:
        hook, model = (rank['together'][way, 'bss'] for way in ('hook', 'model'))
        assert hook['losses'] == model['losses']
        assert equal(hook['states'][-1], model['states'][-1])


@BOTH
@pytest.mark.parametrize('task', ['log', 'off'])
def test_hints_alone_leave_the_layers_above_as_they_were(ranks, way, task):
    first, second = (rank['hints'][way, task] for rank in ranks)
    assert equal(first['end'], second['end'])
    assert equal(first['adapters'], second['adapters'])
    moved = {name for name in first['end'] if not torch.equal(first['start'][name], first['end'][name])}
    reached = {name for name in first['end'] if not any(x in name for x in ('backbone.stage3', 'head.'))}
    assert moved == reached
    assert 0 < len(moved) < len(first['end'])


@BOTH
@pytest.mark.parametrize('task', ['log', 'off'])
def test_hints_alone_raise_without_find_unused_parameters(ranks, way, task):
    for rank in ranks:
        error = rank['refused'][way, task]
        assert error.startswith(f"with task='{task}' no gradient reaches")
        assert error.endswith('set find_unused_parameters=True in the config')


@BOTH
def test_without_the_task_two_processes_train_as_one(ranks, way):
    alone, together = runs(ranks, way, 'without task')
    assert all(step['maps.weight'].norm() > 1e-4 for step in steps(alone, 'states'))
    for run in together:
        assert_close(run['states'], alone['states'])
        assert run['losses'][0].keys() == {'loss', 'loss_kd', 'loss_sp'}


@BOTH
def test_a_loss_that_is_not_finite_stops_every_process(ranks, way):
    first, second = (rank['infinite'][way] for rank in ranks)
    assert first.startswith('loss_hint is not finite in another process at iteration 1: training stops')
    assert second.startswith(('loss_hint is inf at iteration 1', 'loss_hint is -inf at iteration 1'))


def test_processes_with_unlike_losses_do_not_wait_for_each_other(ranks):
    first, second = (rank['unlike'] for rank in ranks)
    assert first.startswith('loss_grid is not finite in another process at iteration')
    assert second.startswith('loss_grid is nan at iteration')


@BOTH
def test_ranks_of_a_real_run_end_with_the_same_weights(ranks, way):
    """A trainable adapter of a term with weight 0 must not count as an unused parameter."""
    first, second = (rank['real'][way] for rank in ranks)
    assert first['iterations'] == 6
    assert equal(first['parameters'], second['parameters'])
    assert equal(first['adapters'], second['adapters'])
    assert len(first['adapters']) == 4


@BOTH
def test_checkpoint_of_a_real_run_is_the_stock_students(folder, ranks, way):
    checkpoint = torch.load(folder / 'real' / way / 'epoch_2.pth', weights_only=False)
    assert list(checkpoint['state_dict']) == ranks[0]['stock']
    for name, value in ranks[0]['real'][way]['parameters'].items():
        if not name.startswith('distillation.'):
            assert torch.equal(checkpoint['state_dict'][name.removeprefix('student.')], value)


@BOTH
def test_shapes_that_differ_between_ranks_are_refused(ranks, way):
    for rank in ranks:
        error = rank['shapes'][way]
        assert error.startswith(
            'a relational loss compares the samples of all processes, but the shapes of their features differ'
        )
        assert '(4, 5, 5, 5), (4, 5, 7, 7)' in error
