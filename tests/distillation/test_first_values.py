import logging
import math

import pytest
import torch
from mmengine.logging import MessageHub
from mmpretrain.structures import DataSample
from tiny import classifier, saved_teacher

from kd_plugins.distillation import first_values
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.registry import MODELS

pytestmark = pytest.mark.usefixtures('hub')
KD = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc', weight=3.0)
BSS = KD | dict(name='bss', loss=dict(type='kd_plugins.BSSLoss'))
RISING = KD | dict(name='rising', weight=dict(at=[0, 2], value=[0.0, 8.0], by='iter'))


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(first_values, 'print_log', lambda text, logger, level=logging.INFO: lines.append((level, text)))
    return lines


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    return saved_teacher(tmp_path_factory.mktemp('teacher'))


def steps(teacher, terms, count=1, task='train', scale=1.0, batch=4):
    """Return the losses of some steps on the same images."""
    torch.manual_seed(0)
    student = MODELS.build(classifier()).eval()
    core = Distillation(student, teacher, terms, task)
    images = torch.randn(batch, 3, 16, 16)
    samples = [DataSample().set_gt_label(1) for _ in images]

    def run(mode):
        found = student(images, samples, mode=mode)
        return {key: scale * value for key, value in found.items()} if mode == 'loss' else found

    found = []
    for iteration in range(count):
        MessageHub.get_instance('trains').update_info('iter', iteration)
        found.append({key: float(x.detach()) for key, x in core.losses(run, images, samples).items()})
    return found


def test_each_term_is_logged_once_when_it_is_first_computed(teacher, logged):
    rising = steps(teacher, [KD, RISING], 3)
    raw, task = rising[0]['loss_kd'] / 3, rising[0]['loss']
    line = f"distillation term {{}}: first value {raw:.3g} x weight {{}} = {{:.3g}}, beside the task's {task:.3g}"
    assert [level for level, _ in logged] == [logging.INFO] * 2
    assert [text for _, text in logged] == [
        line.format('kd', 3, 3 * raw),
        line.format('rising', 'up to 8', 8 * raw),
    ]
    assert rising[0]['loss_rising'] == 0
    assert math.isclose(rising[1]['loss_rising'], 4 * raw, rel_tol=1e-5)


@pytest.mark.parametrize(('weight', 'apart'), [(3.0, False), (1e-4, True), (1e7, True)])
def test_losses_a_thousand_times_apart_are_noticed(teacher, logged, weight, apart):
    (found,) = steps(teacher, [KD, KD | dict(name='b', weight=weight)])
    values = {"term 'kd'": found['loss_kd'], "term 'b'": found['loss_b'], 'the task': found['loss']}
    assert (max(values.values()) > 1000 * min(values.values())) == apart
    notices = [text for level, text in logged if level == logging.WARNING]
    assert len(notices) == apart
    if apart:
        least, most = min(values, key=values.get), max(values, key=values.get)
        assert notices[0].startswith(f'the losses of {least} and of {most} start more than a thousand times apart, at ')


def test_without_a_task_and_without_a_weight(teacher, logged):
    steps(teacher, [KD, KD | dict(name='never', weight=0.0)], 2, task='off')
    ((_, text),) = logged
    assert text.startswith('distillation term kd: first value ')
    assert 'beside' not in text
    logged.clear()
    steps(teacher, [KD], scale=1e-6)  # a task that is next to nothing beside the term
    notice = next(text for level, text in logged if level == logging.WARNING)
    assert notice.startswith("the losses of the task and of term 'kd' start more than")


@pytest.mark.parametrize(('loss', 'least'), [('RKDLoss', 3), ('SPLoss', 2), ('PKTLoss', 2)])
def test_a_term_that_starts_at_0_is_noticed(teacher, logged, loss, least):
    term = dict(name='few', loss=dict(type=f'kd_plugins.{loss}'), student='neck', teacher='neck')
    for batch in (least - 1, least):
        (found,) = steps(teacher, [KD, term, BSS], batch=batch)  # nothing to attack is no mistake
        notices = [text for level, text in logged if level == logging.WARNING]
        starts = [text for text in notices if 'starts at 0' in text]
        assert [text.startswith("term 'few' starts at 0, and trains nothing") for text in starts] == [True] * (
            batch < least
        )
        assert (found['loss_few'] == 0) == (batch < least)
        assert found['loss_bss'] == 0
        logged.clear()
