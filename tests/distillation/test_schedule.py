import pytest
from mmengine.logging import MessageHub

from kd_plugins.distillation.schedule import Schedule
from kd_plugins.errors import UserError


@pytest.fixture
def hub(hub):
    hub.update_info_dict(dict(iter=150, epoch=1))
    return hub


@pytest.mark.parametrize(('time', 'value'), [(-1, 4), (0, 4), (15, 2.5), (30, 1), (31, 1)])
def test_is_linear_between_points_and_constant_outside(time, value):
    assert Schedule([0, 30], [4, 1]).value_at(time) == pytest.approx(value)


def test_equal_times_make_a_step():
    schedule = Schedule([0, 30, 30, 40], [1, 1, 0, 0])
    assert [schedule.value_at(t) for t in (0, 29.9, 30, 35, 50)] == pytest.approx([1, 1, 0, 0, 0])


@pytest.mark.parametrize(('by', 'at'), [('iter', 300), ('epoch', 3), ('progress', 0.3)])
def test_units_agree(hub, by, at):
    schedule = Schedule([0, at], [0, 1], by)
    for iteration in (100, 150):  # the start and the middle of an epoch of 100 iterations
        hub.update_info('iter', iteration)
        value = schedule()
    assert value == pytest.approx(0.5)


@pytest.mark.parametrize('by', ['epoch', 'progress'])
def test_the_epoch_is_the_loops(hub, by):
    """Resumed at epoch 4 with batches half as large: 100 iterations per epoch before, 200 after."""
    schedule = Schedule([0, 10 if by == 'epoch' else 1], [0, 10], by)
    values = []
    for epoch, iteration in ((4, 400), (4, 500), (5, 600), (5, 799), (6, 800)):
        for name, value in dict(iter=iteration, epoch=epoch, max_iters=2000).items():
            hub.update_info(name, value)
        values.append(schedule())
    assert values == pytest.approx([4, 4.5, 5, 5.995, 6])


def test_a_run_resumed_within_an_epoch_starts_that_epoch_again(hub):
    """As mmengine's loop by epochs does, whatever the checkpoint's iteration."""
    schedule = Schedule([0, 10], [0, 10])
    for name, value in dict(iter=60, epoch=0).items():
        hub.update_info(name, value)
    assert schedule() == 0


def test_an_epoch_begins_at_a_whole_number(hub):
    schedule = Schedule([0, 29, 29], [0, 0, 1])  # 29 * 7 / 700 * 100 is less, in floating point
    for name, value in dict(iter=29 * 7, epoch=29, max_iters=700, max_epochs=100).items():
        hub.update_info(name, value)
    assert schedule() == 1


def test_a_run_by_iterations_has_progress_and_no_epochs(hub):
    for name, value in dict(iter=250, epoch=0, max_epochs=1).items():
        hub.update_info(name, value)
    assert Schedule([0, 1], [0, 1], 'progress')() == pytest.approx(0.25)
    assert Schedule([0, 1], [0, 1], 'epoch')() == pytest.approx(0.25)
    hub.update_info('cfg', "a = 1\ntrain_cfg = dict(\n    max_iters=1000, type='IterBasedTrainLoop')\nb = 2")
    with pytest.raises(UserError, match="give by='iter' or by='progress'"):
        Schedule([0, 1], [0, 1], 'epoch')()


def test_the_time_is_that_of_the_run_that_trains(hub):
    schedule = Schedule([0, 300], [0, 1], 'iter')
    later = MessageHub.get_instance('built later')
    assert schedule() == pytest.approx(0.5)
    later.update_info_dict(dict(loop_stage='train', iter=300))
    assert schedule() == 1
    later.pop_info('loop_stage')  # which leaves its last iteration
    assert schedule() == pytest.approx(0.5)
    hub.pop_info('loop_stage')
    with pytest.raises(UserError, match='follows a runner, and none trains: in a loop of your own give a number'):
        schedule()
    assert Schedule([0, 10], [2, 2])() == 2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(at=[0], value=[1, 2]), 'as many values'),
        (dict(at=[], value=[]), 'as many values'),
        (dict(at=[3, 1], value=[1, 2]), 'must not decrease'),
        (dict(at=0, value=[1]), 'two lists of finite numbers'),
        (dict(at=[0], value=['1']), 'two lists of finite numbers'),
        (dict(at=[0], value=[float('nan')]), 'two lists of finite numbers'),
        (dict(at=[0], value=[1], by='step'), "'epoch', 'iter' or 'progress'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(UserError, match=message):
        Schedule(**options)
