import random

import numpy as np
import pytest
import torch
from tiny import CLASSES, classifier, teacher_record

from kd_plugins import functional
from kd_plugins.distiller import Distillation, preserved_rng
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

KD = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')
STAGES = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3']
PAIR = ['backbone.stage1.0.conv1', 'backbone.stage1']
HINT = dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto')


@pytest.fixture
def student():
    return MODELS.build(classifier())


@pytest.fixture
def teacher(tmp_path):
    return teacher_record(tmp_path)


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16)


def distil(student, teacher, terms, images):
    """Return what a step of distillation computes, with the core it came from and the student's features."""
    core = Distillation(student, teacher, terms)
    lines = core.dry_run(student, images, None)
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    return core, features, core(features, images, None), lines


def test_losses_are_the_functions_of_the_features(student, teacher, images):
    terms = [KD | dict(weight=3),
             dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student=STAGES, teacher=STAGES, weight=2.0),
             dict(name='fsp', loss=dict(type='kd_plugins.FSPLoss'), student=PAIR, teacher=PAIR)]
    core, features, losses, _ = distil(student, teacher, terms, images)
    targets = core.teacher(images, None)
    assert set(losses) == {'loss_kd', 'loss_at', 'loss_fsp'}
    kd = functional.kd_loss(features['head.fc'][0], targets['head.fc'][0])
    torch.testing.assert_close(losses['loss_kd'], 3 * kd)
    at = sum(functional.at_loss(features[tap][0], targets[tap][0]) for tap in STAGES)
    torch.testing.assert_close(losses['loss_at'], 2 * at)
    fsp = functional.fsp_loss([features[tap][0] for tap in PAIR], [targets[tap][0] for tap in PAIR])
    torch.testing.assert_close(losses['loss_fsp'], fsp)


def test_report_names_taps_shapes_and_adapter(student, teacher, images):
    *_, lines = distil(student, teacher, [HINT | dict(student=STAGES[1], teacher=STAGES[2])], images)
    assert lines == ['hint: FitNetLoss student backbone.stage2 (6, 8, 8, 8) -> teacher backbone.stage3 (6, 16, 4, 4), '
                     'adapter of 144 parameters']


def test_dry_run_changes_nothing(student, teacher, images):
    student.train()
    student.backbone.stage2.eval()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    modes = [m.training for m in student.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    Distillation(student, teacher, [KD | dict(adapter='auto')]).dry_run(student, images, None)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert [m.training for m in student.modules()] == modes
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


def test_preserved_rng_still_draws_inside():
    with preserved_rng():
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3))


def test_weight_zero_is_not_computed(student, teacher, images):
    core, features, losses, _ = distil(student, teacher, [KD | dict(weight=0, adapter='auto')], images)
    assert losses['loss_kd'] == 0
    core.teacher.model.forward = None  # the teacher is not even asked
    core(features, images, None)['loss_kd'].backward()
    assert all(p.grad.abs().max() == 0 for p in core.parameters())


def test_gradient_reaches_student_and_adapter_but_not_teacher(student, teacher, images):
    core, _, losses, _ = distil(student, teacher, [HINT | dict(student=STAGES, teacher=STAGES)], images)
    losses['loss_hint'].backward()
    assert student.backbone.stage3[0].conv1.weight.grad.abs().sum() > 0
    assert len(core.terms[0].adapters) == 3
    assert all(p.grad.abs().sum() > 0 for p in core.parameters())
    assert all(p.grad is None for p in core.teacher.model.parameters())


def test_inline_adapter(student, teacher, images):
    adapter = dict(type='mmcv.cnn.ConvModule', in_channels=4, out_channels=4, kernel_size=3, padding=1)
    term = HINT | dict(student=STAGES[0], teacher=STAGES[0], adapter=adapter)
    core, *_ = distil(student, teacher, [term], images)
    assert type(core.terms[0].adapters[0]).__name__ == 'ConvModule'


def test_teacher_follows_to(student, teacher, images):
    core, *_ = distil(student, teacher, [KD], images)
    core.double()
    assert core.teacher.model.head.fc.weight.dtype == torch.float64
    assert list(core.state_dict()) == []


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_loss_that_is_not_finite_stops_with_its_name(student, teacher, images, value):
    core, features, _, _ = distil(student, teacher, [KD, KD | dict(name='other')], images)
    core.terms[1].weight = value
    with pytest.raises(UserError, match=r'^loss_other is (nan|inf) at iteration \d+: training stops'):
        core(features, images, None)


def test_name_that_the_student_uses_already(student, teacher, images):
    core, features, *_ = distil(student, teacher, [KD | dict(name='cls')], images)
    with pytest.raises(UserError, match="already has a 'loss_cls': rename the term 'cls'"):
        core.add_to({'loss_cls': torch.zeros(())}, features, images, None)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(student='head.fcc'), "no module 'head.fcc' to tap; nearest names: head.fc"),
    (dict(teacher='neck.nothing'), "no module 'neck.nothing' to tap; nearest names:"),
    (dict(loss=dict(type='kd_plugins.KDLos')),
     "'kd_plugins.KDLos' is no registered module; nearest names: kd_plugins.KD"),
    (dict(loss=dict(type='kd_plugins.KDLoss', tua=2)), r"term 'kd' \(KDLoss\) has no option 'tua': did you mean 'tau'"),
    (dict(loss=dict(type='kd_plugins.KDLoss', tau=-1)), "the loss of term 'kd': .*tau"),
    (dict(loss='KDLoss'), "must be a record with a 'type'"),
    (dict(wieght=2), "term 'kd' has no option 'wieght': did you mean 'weight'"),
    (dict(weight='much'), 'must be a number'),
    (dict(weight=dict(at=[0], values=[1])), "has no option 'values': did you mean 'value'"),
    (dict(adapter='automatic'), "must be None, 'auto' or a module record"),
    (dict(student='neck.gap'), r'student neck.gap \(6, 16, 1, 1\) -> teacher head.fc \(6, 4\): these cannot meet'),
    (dict(student=['head.fc', 'head.fc2']), "no module 'head.fc2'"),
    (dict(student=['head.fc', 'neck']), r"student's taps give 2 feature\(s\), the teacher's 1"),
    (dict(student='head.loss_module'), 'puts out no tensor in a forward pass'),
    (dict(loss=dict(type='kd_plugins.FSPLoss')), 'takes two features'),
])
def test_mistakes_are_told_in_one_line(student, teacher, images, change, message):
    with pytest.raises(UserError, match=message) as error:
        Distillation(student, teacher, [KD | change]).dry_run(student, images, None)
    assert '\n' not in str(error.value)


def test_missing_option_and_repeated_name(student, teacher):
    with pytest.raises(UserError, match="term 'kd' needs the option 'teacher'"):
        Distillation(student, teacher, [{k: v for k, v in KD.items() if k != 'teacher'}])
    with pytest.raises(UserError, match="two terms are named 'kd'"):
        Distillation(student, teacher, [KD, KD])
    with pytest.raises(UserError, match="the teacher has no option 'ckeckpoint': did you mean 'checkpoint'"):
        Distillation(student, dict(config=teacher['config'], ckeckpoint=''), [KD])


def test_logits_of_other_class_counts_cannot_meet(student, tmp_path, images):
    record = teacher_record(tmp_path)
    record['config']['head'] = record['config']['head'] | dict(num_classes=CLASSES + 3)
    record['checkpoint'] = None
    with pytest.raises(UserError, match=r"student head.fc \(6, 4\) -> teacher head.fc \(6, 7\): these cannot meet"):
        Distillation(student, record, [KD]).dry_run(student, images, None)
