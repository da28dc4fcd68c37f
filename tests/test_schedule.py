import pytest
from mmengine.logging import MessageHub

from kd_plugins.errors import UserError
from kd_plugins.schedule import Schedule


@pytest.fixture
def hub():
    hub = MessageHub.get_current_instance()
    for name, value in dict(iter=150, max_iters=1000, max_epochs=10).items():
        hub.update_info(name, value)
    yield hub
    for name in ('iter', 'max_iters', 'max_epochs'):
        hub.runtime_info.pop(name)


@pytest.mark.parametrize(('time', 'value'), [(-1, 4), (0, 4), (15, 2.5), (30, 1), (31, 1)])
def test_is_linear_between_points_and_constant_outside(time, value):
    assert Schedule([0, 30], [4, 1]).value_at(time) == pytest.approx(value)


def test_equal_times_make_a_step():
    schedule = Schedule([0, 30, 30, 40], [1, 1, 0, 0])
    assert [schedule.value_at(t) for t in (0, 29.9, 30, 35, 50)] == pytest.approx([1, 1, 0, 0, 0])


@pytest.mark.parametrize(('by', 'at'), [('iter', 300), ('epoch', 3), ('progress', 0.3)])
def test_units_agree(hub, by, at):
    assert Schedule([0, at], [0, 1], by)() == pytest.approx(0.5)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(at=[0], value=[1, 2]), 'as many values'),
    (dict(at=[], value=[]), 'as many values'),
    (dict(at=[3, 1], value=[1, 2]), 'must not decrease'),
    (dict(at=[0], value=[1], by='step'), "'epoch', 'iter' or 'progress'"),
])
def test_refuses(options, message):
    with pytest.raises(UserError, match=message):
        Schedule(**options)
