import copy
import pickle
import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from tiny import CLASSES, PREPROCESSOR, classifier, saved_teacher
from torch.nn.parallel import DistributedDataParallel

from kd_plugins import functional
from kd_plugins.distillation import samples as samples_module
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.distillation.term import Batch, Term
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

pytestmark = pytest.mark.usefixtures('hub')
KD = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc')
STAGES = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3']
PAIR = ['backbone.stage1.0.conv1', 'backbone.stage1']
HINT = dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto')
BSS = KD | dict(name='bss', loss=dict(type='kd_plugins.BSSLoss', attack_size=4), weight=2.0)
VID = dict(name='vid', loss=dict(type='kd_plugins.VIDLoss'))
GAN = dict(name='gan', loss=dict(type='kd_plugins.NSTGANLoss', hidden=8), student=STAGES[2], teacher=STAGES[2])


@pytest.fixture
def student():
    return MODELS.build(classifier())


@pytest.fixture
def teacher(tmp_path):
    return saved_teacher(tmp_path)


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16)


def losses_of(core, features, images, samples=None):
    return core(features, core.teacher_features(images, samples), images, samples)


def distil(student, teacher, terms, images):
    """Return what a step of distillation computes, with the core it came from and the student's features."""
    core = Distillation(student, teacher, terms)
    lines = core.dry_run(student, images, None)
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    return core, features, losses_of(core, features, images, None), lines


def test_losses_are_the_functions_of_the_features(student, teacher, images):
    terms = [
        KD | dict(weight=3),
        dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student=STAGES, teacher=STAGES, weight=2.0),
        dict(name='fsp', loss=dict(type='kd_plugins.FSPLoss'), student=PAIR, teacher=PAIR),
    ]
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
    assert lines == [
        'hint: FitNetLoss student backbone.stage2 (6, 8, 8, 8) -> teacher backbone.stage3 (6, 16, 4, 4), '
        'adapter of 144 parameters'
    ]


def test_levels_are_picked_in_the_order_given(student, teacher, images):
    term = dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student=STAGES, teacher=STAGES[1:])
    term |= dict(student_levels=[2, 1], teacher_levels=[1, 0])
    core, features, losses, lines = distil(student, teacher, [term], images)
    targets = core.teacher(images, None)
    expected = sum(functional.at_loss(features[tap][0], targets[tap][0]) for tap in STAGES[1:])
    torch.testing.assert_close(losses['loss_at'], expected)
    assert lines == [
        'at: ATLoss student backbone.stage1+backbone.stage2+backbone.stage3 [2, 1] (6, 16, 4, 4) (6, 8, 8, 8) -> '
        'teacher backbone.stage2+backbone.stage3 [1, 0] (6, 16, 4, 4) (6, 8, 8, 8)'
    ]


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


def test_weight_zero_is_not_computed(student, teacher, images):
    core, features, losses, _ = distil(student, teacher, [KD | dict(weight=0, adapter='auto')], images)
    assert losses['loss_kd'] == 0
    core.teacher.model.forward = None  # the teacher does not run
    losses_of(core, features, images, None)['loss_kd'].backward()
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


class Rows(torch.nn.Module):
    """A user's loss that views maps as rows, which channels-last ones do not allow."""

    def forward(self, student, teacher):
        return (student.view(len(student), -1) - teacher.view(len(teacher), -1)).square().mean()


@pytest.mark.parametrize('bf16', [False, True])
def test_a_loss_of_ones_own_may_view_maps_as_rows(student, teacher, images, bf16):
    student.to(memory_format=torch.channels_last)
    term = dict(name='rows', loss=Rows(), student=STAGES[2], teacher=STAGES[2])
    core, features, losses, _ = distil(student, teacher | dict(bf16=bf16), [term], images)
    own, (other,) = features[STAGES[2]][0], core.teacher(images, None)[STAGES[2]]
    assert not own.is_contiguous()
    assert not other.is_contiguous()
    torch.testing.assert_close(losses['loss_rows'], torch.nn.functional.mse_loss(own, other.float()))


@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('kind', [torch.nn.MSELoss, torch.nn.HuberLoss])
def test_a_loss_of_torch_learns_from_a_teacher_of_either_precision(student, teacher, images, kind, bf16):
    term = dict(name='own', loss=dict(type=kind), student=STAGES[2], teacher=STAGES[2])
    core, features, losses, _ = distil(student, teacher | dict(bf16=bf16), [term], images)
    (target,) = core.teacher(images, None)[STAGES[2]]
    assert target.dtype == (torch.bfloat16 if bf16 else torch.float32)
    torch.testing.assert_close(losses['loss_own'], kind()(features[STAGES[2]][0], target.float()))
    losses['loss_own'].backward()
    assert all(p.grad is not None for p in student.backbone.stage2.parameters())
    rounded = {STAGES[2]: [features[STAGES[2]][0].bfloat16()]}  # a student in bfloat16
    loss = losses_of(core, rounded, images)['loss_own']
    assert loss.dtype == target.dtype
    torch.testing.assert_close(loss.float(), losses['loss_own'], rtol=0.02, atol=0)


class Looping(torch.nn.Module):
    """Runs its layer several times, in training other ones, and may fail after it."""

    def __init__(self, runs, in_training=None, fails=False):
        super().__init__()
        self.conv, self.runs, self.fails = torch.nn.Conv2d(3, 3, 1), dict(tensor=runs, loss=in_training or runs), fails

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for _ in range(self.runs[mode]):
            self.conv(inputs)
        if self.fails:
            raise AssertionError('one image at a time')
        return {}


@pytest.mark.parametrize(
    ('student', 'teacher', 'message'),
    [
        (
            Looping(1, fails=True),
            Looping(2),
            r'in the dry run Looping stopped behind its taps \(AssertionError: one image at a time\)$',
        ),
        (
            Looping(2),
            Looping(1, fails=True),
            r'stopped behind its taps \(UserError: the teacher, Looping',
        ),
        (Looping(2, in_training=1), Looping(2), r"'conv' yields 1 level\(s\) in this pass, and 2 in the dry run$"),
    ],
)
def test_levels_that_do_not_match_are_explained(monkeypatch, images, student, teacher, message):
    """As of a detector that predicts for one image at a time, or whose head runs twice outside training."""
    monkeypatch.setattr('kd_plugins.distillation.distillation.build_teacher', lambda config: teacher)
    term = dict(name='fit', loss=dict(type='kd_plugins.FitNetLoss'), student='conv', teacher='conv')
    core = Distillation(student, dict(config=None), [term])

    def step():
        core.dry_run(student, images, None)
        core.losses(lambda mode: student(images, mode=mode), images, None)

    with pytest.raises(UserError, match=rf"^term 'fit': the student's taps give \d.* and teacher_levels; .*{message}"):
        step()


class _Branches(torch.nn.Module):
    """Gives the maps of three branches, one below the other, in training, and those of one outside it."""

    def forward(self, x):
        return torch.cat([x, x, x]) if self.training else x


def test_a_tap_of_several_branches_in_training_is_explained(monkeypatch, images):
    """As of mmdet's TridentNet."""
    student = Looping(1)
    student.conv = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), _Branches())
    monkeypatch.setattr('kd_plugins.distillation.distillation.build_teacher', lambda config: Looping(1))
    term = dict(name='fit', loss=dict(type='kd_plugins.FitNetLoss'), student='conv', teacher='conv')
    core = Distillation(student, dict(config=None), [term])
    core.dry_run(student, images, None)
    rows = f"'conv' yields {3 * len(images)} features for {len(images)} images in this pass, as of several branches"
    with pytest.raises(UserError, match=f'{rows}, and one for each in the dry run: tap a module before'):
        core.losses(lambda mode: student(images, mode=mode), images, None)


def test_data_samples_may_be_a_tensor_of_labels(student, teacher, images):
    core = Distillation(student, teacher, [KD])
    labels = torch.zeros(len(images), dtype=torch.long)
    core.dry_run(student, images, labels)
    losses = core.losses(lambda mode: {'loss': student(images).mean()}, images, labels)
    assert losses['loss_kd'] > 0


def test_what_a_loss_counts_stays_as_it_was_where_the_tap_runs_for_it_alone(teacher, images):
    class Counting(Looping):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            super().forward(inputs, data_samples, mode)
            self.conv.seen += mode == 'loss'

    student = Counting(0, in_training=1)
    student.conv.register_buffer('seen', torch.zeros(1))
    term = dict(name='fit', loss=dict(type='kd_plugins.FitNetLoss'), student='conv', teacher='backbone.stage1')
    core = Distillation(student, teacher, [term | dict(adapter='auto', resize='student')])
    core.dry_run(student, images, labelled([0] * len(images)))
    assert student.conv.seen == 0


def test_teacher_follows_to(student, teacher, images):
    core, *_ = distil(student, teacher, [KD], images)
    core.double()
    assert core.teacher.model.head.fc.weight.dtype == torch.float64
    assert list(core.state_dict()) == []


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_loss_that_is_not_finite_stops_with_its_name(student, teacher, images, value):
    core, *_ = distil(student, teacher, [KD, KD | dict(name='other')], images)
    core.terms[1].weight = value
    with pytest.raises(UserError, match=r'^loss_other is (nan|inf) at iteration \d+: training stops'):
        core.losses(lambda mode: student(images, labelled([0] * 6), mode=mode), images, None)


def frozen(student, *modules):
    for name in modules:
        student.get_submodule(name).requires_grad_(False)
    return student


BELOW = ['backbone.stem', 'backbone.stage1']


@pytest.mark.parametrize('weight', [1.0, dict(at=[0, 60], value=[0, 1])])
def test_a_term_that_reaches_no_weight_of_the_student_is_refused(student, teacher, images, weight):
    frozen(student, *BELOW)
    term = HINT | dict(student=STAGES[:1], teacher=STAGES[:1], weight=weight)
    with pytest.raises(UserError, match=r"term 'hint': no gradient flows from backbone.stage1 into") as error:
        distil(student, teacher, [KD, term], images)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('taps', 'weight'), [(STAGES[:2], 1.0), (STAGES[:1], 0)])
def test_frozen_levels_beside_trained_ones_are_common(student, teacher, images, taps, weight):
    term = HINT | dict(student=taps, teacher=taps, weight=weight)
    distil(frozen(student, *BELOW), teacher, [term], images)


def test_a_level_without_gradient_is_found_beside_others(student, teacher, images):
    """A tap inside a block with activation checkpointing adds to the loss, and trains nothing."""
    core, features, *_ = distil(student, teacher, [HINT | dict(student=STAGES[:2], teacher=STAGES[:2])], images)
    core.gradients_checked = False
    cut = features | {STAGES[0]: [x.detach() for x in features[STAGES[0]]]}
    with pytest.raises(UserError, match=r"term 'hint': no gradient flows from backbone.stage1 into"):
        losses_of(core, cut, images, None)
    core.terms[0].weight = 0
    losses_of(core, cut, images, None)
    taken = HINT | dict(student=STAGES[:2], teacher=STAGES[:2], student_levels=[1], teacher_levels=[1])
    core, features, *_ = distil(student, teacher, [taken], images)
    core.gradients_checked = False
    losses_of(core, features | {STAGES[0]: [x.detach() for x in features[STAGES[0]]]}, images, None)


@pytest.mark.parametrize(
    ('kind', 'tap'), [('KDLoss', 'head.fc'), ('CosineLoss', STAGES[2]), ('NSTLoss', STAGES[2]), ('VIDLoss', STAGES[2])]
)
def test_a_teacher_may_run_in_inference_mode(student, teacher, images, kind, tap):
    term = dict(name='x', loss=dict(type=f'kd_plugins.{kind}'), student=tap, teacher=tap)
    core, features, losses, _ = distil(student, teacher, [term], images)
    network = core.teacher.model
    network.forward = torch.inference_mode()(network.forward)
    assert network(images, mode='tensor')[0].is_inference()
    core.dry_run(student, images, None)
    value = losses_of(core, features, images)['loss_x']
    torch.testing.assert_close(value, losses['loss_x'])
    value.backward()
    assert any(p.grad.any() for p in student.backbone.stage1.parameters())


def test_layers_in_the_place_of_images_are_refused(student, teacher, images):
    """As a DETR's decoder returns them: (layers, images, queries, channels)."""
    core = Distillation(
        student, teacher, [dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), student=STAGES[2], teacher=STAGES[2])]
    )
    given = {STAGES[2]: [torch.randn(3, len(images), 10, 16)]}
    batch = Batch(images, None, core.recorder, core.teachers)
    with pytest.raises(
        UserError, match=r"'sp': the student's 'backbone.stage3' yields \(3, 6, 10, 16\) for 6 images: its layers"
    ):
        core.terms[0].prepare(given, [given], batch)


def test_a_tap_that_does_not_run_in_training(student, teacher, images):
    core, *_ = distil(student, teacher, [KD], images)
    core.gradients_checked = False
    with pytest.raises(UserError, match=r"term 'kd': the student's taps give 0 feature\(s\), the teacher's 1"):
        losses_of(core, {'head.fc': []}, images, None)


def test_without_gradient_none_is_missed(student, teacher, images):
    with torch.no_grad():
        distil(student, teacher, [KD], images)


def test_two_views_an_image(student, teacher, images):
    core = Distillation(student, teacher, [KD])
    for inputs, kind in (
        (dict(sup=images, unsup=images), 'a dict of sup, unsup'),
        ([images, images], 'a list'),
        (None, 'a NoneType'),
    ):
        with pytest.raises(UserError, match=f'with one view per image, got {kind} as inputs'):
            core.teacher_features(inputs, None)


def test_forward_of_another_kind(teacher):
    class Tutorial(torch.nn.Module):
        def forward(self, imgs, labels, mode):
            raise AssertionError

    with pytest.raises(
        UserError,
        match=r'Tutorial cannot be distilled: its forward takes \(imgs, labels, mode\), '
        r'expected \(inputs, data_samples, mode\)',
    ):
        Distillation(Tutorial(), teacher, [KD])


def test_name_that_the_student_uses_already(student, teacher, images):
    core, features, *_ = distil(student, teacher, [KD | dict(name='cls')], images)
    with pytest.raises(UserError, match="already has a 'loss_cls': rename the term 'cls'"):
        core.with_task_losses({'loss_cls': torch.zeros(())}, losses_of(core, features, images, None))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(student='head.fcc'),
            "the student, ImageClassifier, has no module 'head.fcc' to tap; nearest names: head.fc",
        ),
        (
            dict(teacher='neck.nothing'),
            "the teacher, ImageClassifier, has no module 'neck.nothing' to tap; nearest names:",
        ),
        (
            dict(loss=dict(type='kd_plugins.KDLos')),
            "'kd_plugins.KDLos' is not a registered module; nearest names: kd_plugins.KD",
        ),
        (
            dict(loss=dict(type='kd_plugins.KDLoss', tua=2)),
            r"term 'kd' \(KDLoss\) has no option 'tua': did you mean 'tau'",
        ),
        (dict(loss=dict(type='kd_plugins.KDLoss', tau=-1)), "the loss of term 'kd': .*tau"),
        (dict(loss='KDLoss'), "must be a config dict with a 'type'"),
        (dict(wieght=2), "term 'kd' has no option 'wieght': did you mean 'weight'"),
        (dict(weight='much'), 'must be a number'),
        (dict(weight=-1), 'must be finite and not below 0, got -1'),
        (dict(weight=dict(at=[0, 1], value=[1, -1])), r"must be finite and not below 0, got .*'value': \[1, -1\]"),
        (dict(name=''), "the name of a term must be a string that is not empty, got ''"),
        (dict(student=None), 'student must be the name of a module or a list of such names, got None'),
        (dict(teacher=[]), r'teacher must be the name of a module or a list of such names, got \[\]'),
        (dict(loss=dict(type='torch.nn.MSELoss', reduction='none')), r'MSELoss must return a scalar, got \(6, 4\)'),
        (dict(weight=dict(at=[0], values=[1])), "has no option 'values': did you mean 'value'"),
        (dict(adapter='automatic'), "must be None, 'auto', 'mlp', 'abf' or a config dict"),
        (dict(student='neck.gap'), r'student neck.gap \(6, 16, 1, 1\) -> teacher head.fc \(6, 4\): shape mismatch'),
        (dict(student=['head.fc', 'head.fc2']), "no module 'head.fc2'"),
        (dict(student=['head.fc', 'neck']), r"student's taps give 2 feature\(s\), the teacher's 1"),
        (dict(student_levels=[0, 1]), r"student_levels of term 'kd' are \[0, 1\], but head.fc of the student gives 1"),
        (dict(teacher_levels=[2]), r"teacher_levels of term 'kd' are \[2\], but head.fc of the teacher gives 1 level"),
        (dict(teacher_levels=[0, 0]), 'or pick levels of each by student_levels and teacher_levels'),
        (dict(student_levels=[]), r"student_levels of term 'kd' must list indices of levels, from 0, .* got \[\]"),
        (dict(student_levels=[-1]), r'must list indices of levels, from 0, as \[0, 1, 2\], got \[-1\]'),
        (dict(teacher_levels=1), 'must list indices of levels, from 0, .* got 1'),
        (dict(student='head.loss_module'), 'outputs no tensor in a forward pass'),
        (dict(loss=dict(type='kd_plugins.FSPLoss')), 'takes two features'),
        (
            dict(
                loss=dict(type='torch.nn.MSELoss'), student='backbone.stage2', teacher='backbone.stage3', adapter='auto'
            ),
            r"shape mismatch: .*; for maps of one size, give the term resize='student' or resize='teacher'$",
        ),
    ],
)
def test_errors_are_one_line(student, teacher, images, change, message):
    with pytest.raises(UserError, match=message) as error:
        Distillation(student, teacher, [KD | change]).dry_run(student, images, None)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'mark', ['batch_relational', 'takes_pairs', 'needs_labels', 'needs_indices', 'per_level', 'adversaries']
)
def test_a_plain_module_that_declares_what_only_a_loss_can(student, teacher, images, mark):
    loss = torch.nn.MSELoss()
    setattr(loss, mark, True)
    with pytest.raises(UserError, match=f'MSELoss has {mark}, which counts only in a subclass of .*DistillationLoss'):
        distil(student, teacher, [dict(name='x', loss=loss, student='head.fc', teacher='head.fc')], images)


def test_features_that_are_scalars():
    term = Term('x', torch.nn.MSELoss(), 's', 't')
    term.choose_teachers(1)
    networks = SimpleNamespace(model=torch.nn.ModuleDict(dict(s=torch.nn.Identity(), t=torch.nn.Identity())))
    teacher = SimpleNamespace(model=networks.model, input_size=lambda inputs: (1, 1))
    batch = Batch(torch.ones(1, 3, 1, 1), None, networks, [teacher])
    line = term.prepare({'s': [torch.ones(())]}, [{'t': [torch.zeros(())]}], batch)
    assert line == 'x: MSELoss student s () -> teacher t ()'


def test_missing_option_and_repeated_name(student, teacher):
    with pytest.raises(UserError, match="term 'kd' needs the option 'teacher'"):
        Distillation(student, teacher, [{k: v for k, v in KD.items() if k != 'teacher'}])
    with pytest.raises(UserError, match="two terms are named 'kd'"):
        Distillation(student, teacher, [KD, KD])
    with pytest.raises(UserError, match="the teacher has no option 'ckeckpoint': did you mean 'checkpoint'"):
        Distillation(student, dict(config=teacher['config'], ckeckpoint=''), [KD])


def test_logits_of_other_class_counts(student, tmp_path, images):
    teacher_config = saved_teacher(tmp_path)
    teacher_config['config']['head'] = teacher_config['config']['head'] | dict(num_classes=CLASSES + 3)
    teacher_config['checkpoint'] = None
    with pytest.raises(UserError, match=r'student head.fc \(6, 4\) -> teacher head.fc \(6, 7\): shape mismatch'):
        Distillation(student, teacher_config, [KD]).dry_run(student, images, None)


@pytest.mark.parametrize('kind', ['NSTLoss', 'ATLoss', 'CWDLoss'])
def test_maps_of_one_position_are_noted_where_they_are_all_alike(student, teacher, images, monkeypatch, kind):
    lines = []
    monkeypatch.setattr('kd_plugins.distillation.term.print_log', lambda line, *_: lines.append(line))
    loss = dict(type=f'kd_plugins.{kind}')
    for taps in (['backbone.stage3'], ['backbone.stage3', 'neck.gap']):
        term = dict(name='maps', loss=loss, student=taps, teacher=taps)
        Distillation(student, teacher, [term]).dry_run(student, images, None)
        assert len(lines) == len(taps) - 1
    assert lines[0].startswith(f"term 'maps': {kind} compares where a map is active, and these have one position")
    feature = torch.rand(4, 5, 1, 1, requires_grad=True)
    MODELS.build(loss)(feature, torch.rand(4, 5, 1, 1)).backward()
    torch.testing.assert_close(feature.grad, torch.zeros_like(feature))


def test_out_of_memory_is_not_reported_as_a_shape_mismatch(student, tmp_path, images, monkeypatch):
    def forward(*args):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')

    distillation = Distillation(student, saved_teacher(tmp_path), [KD])
    monkeypatch.setattr(type(distillation.terms[0].loss), 'forward', forward)
    with pytest.raises(torch.OutOfMemoryError):
        distillation.dry_run(student, images, None)


def two_teachers(folder, **second):
    """Return the config dicts of two teachers with different weights."""
    configs = []
    for name, depth, width in (('a', 14, 4), ('b', 8, second.get('width', 4))):
        (folder / name).mkdir()
        configs.append(saved_teacher(folder / name, depth, width))
    return configs


def test_mean_over_teachers_has_the_gradient_of_their_mean_probability(student, tmp_path, images):
    tau = 3.0
    term = KD | dict(loss=dict(type='kd_plugins.KDLoss', tau=tau), weight=2.0)
    core, features, losses, _ = distil(student, two_teachers(tmp_path), [term], images)
    logits, targets = features['head.fc'][0], [teacher(images, None)['head.fc'][0] for teacher in core.teachers]
    assert not torch.allclose(*targets)
    each = [functional.kd_loss(logits, target, tau) for target in targets]
    torch.testing.assert_close(losses['loss_kd'], 2 * (each[0] + each[1]) / 2)
    mean = sum((x / tau).softmax(1) for x in targets) / 2
    divergence = tau**2 * (mean * (mean.log() - (logits / tau).log_softmax(1))).sum(1).mean()
    assert divergence < losses['loss_kd'] / 2 - 1e-6  # the value is another, by a constant
    own, expected = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (losses['loss_kd'], 2 * divergence))
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-7)


def test_every_teacher_has_adapters_of_its_own(student, tmp_path, images):
    term = HINT | dict(student=STAGES[:2], teacher=STAGES[:2])
    core, features, losses, lines = distil(student, two_teachers(tmp_path, width=6), [term], images)
    adapters = core.terms[0].adapters
    assert [x.out_channels for x in adapters] == [4, 8, 6, 12]
    assert list(core.state_dict()) == [f'terms.0.adapters.{i}.{x}' for i in range(4) for x in ('weight', 'bias')]
    targets = [teacher(images, None) for teacher in core.teachers]
    expected = (
        sum(
            functional.fitnet_loss(adapters[2 * i + j](features[tap][0]), target[tap][0])
            for i, target in enumerate(targets)
            for j, tap in enumerate(STAGES[:2])
        )
        / 2
    )
    torch.testing.assert_close(losses['loss_hint'], expected)
    assert lines == [
        'hint: FitNetLoss student backbone.stage1+backbone.stage2 (6, 4, 16, 16) (6, 8, 8, 8) -> '
        'teacher 0 backbone.stage1+backbone.stage2 (6, 4, 16, 16) (6, 8, 8, 8), '
        'teacher 1 backbone.stage1+backbone.stage2 (6, 6, 16, 16) (6, 12, 8, 8), adapter of 230 parameters'
    ]


def test_a_loss_with_parameters_of_its_own_is_copied_for_every_level_and_teacher(student, tmp_path, images):
    term = VID | dict(student=STAGES[:2], teacher=STAGES[:2])
    core, features, losses, lines = distil(student, two_teachers(tmp_path, width=6), [term], images)
    modules = [core.terms[0].loss, *core.terms[0].copies]
    assert [len(x.scale) for x in modules] == [4, 8, 6, 12]
    assert len(core.state_dict()) == 16
    targets = [teacher(images, None) for teacher in core.teachers]
    expected = (
        sum(
            modules[2 * i + j](features[tap][0], target[tap][0])
            for i, target in enumerate(targets)
            for j, tap in enumerate(STAGES[:2])
        )
        / 2
    )
    torch.testing.assert_close(losses['loss_vid'], expected)
    losses['loss_vid'].backward()
    assert all(p.grad.abs().sum() > 0 for p in core.parameters())
    sizes = [4 + 4 * 4 * 3, 8 + 8 * 8 * 3, 6 + 6 * (4 + 6 + 6), 12 + 12 * (8 + 12 + 12)]
    assert lines[0].endswith(f'loss of {sum(sizes)} parameters')


def test_a_term_may_learn_from_some_teachers_only(student, tmp_path, images):
    terms = [
        KD,
        KD | dict(name='second', teachers=[1]),
        HINT | dict(student=STAGES[1], teacher='backbone.stage2.1', teachers=[0]),
    ]
    core, features, losses, _ = distil(student, two_teachers(tmp_path), terms, images)
    targets = [teacher(images, None) for teacher in core.teachers]
    assert [set(target) for target in targets] == [{'head.fc', 'backbone.stage2.1'}, {'head.fc'}]
    torch.testing.assert_close(
        losses['loss_second'], functional.kd_loss(features['head.fc'][0], targets[1]['head.fc'][0])
    )
    core.terms[0].weight = core.terms[2].weight = 0.0
    core.teachers[0].model.forward = None  # no term with a weight needs it
    again = losses_of(core, features, images, None)
    torch.testing.assert_close(again['loss_second'], losses['loss_second'])


def test_a_list_of_one_teacher_is_the_teacher(student, teacher, images):
    states = []
    for teacher_config in (teacher, [teacher]):
        torch.manual_seed(3)
        core, _, losses, lines = distil(student, teacher_config, [KD | dict(adapter='auto')], images)
        assert core.teacher is core.teachers[0]
        states.append((lines, losses['loss_kd'].item(), list(core.state_dict())))
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ('terms', 'message'),
    [
        (
            [KD | dict(teachers=[2])],
            r"term 'kd': teachers must list indices of teachers, each once, from 0 to 1, got \[2\]",
        ),
        ([KD | dict(teachers=[])], r'teachers must list indices of teachers'),
        ([KD | dict(teachers=[0, 0])], r'teachers must list indices of teachers'),
        ([KD | dict(teachers=1)], r'teachers must list indices of teachers.* got 1'),
        ([KD | dict(teachers=[0.0, 1.0])], r'teachers must list indices of teachers.* got \[0\.0, 1\.0\]'),
        ([KD | dict(teachers=[0])], r'teacher 1: no term uses it'),
        (
            [KD, KD | dict(name='x', teacher='backbone.stage2.1')],
            r"teacher 1: the teacher, .* has no module 'backbone.stage2.1' .*teachers=\[\.\.\.\] in a term",
        ),
    ],
)
def test_mistakes_with_teachers(student, tmp_path, terms, message):
    with pytest.raises(UserError, match=message) as error:
        Distillation(student, two_teachers(tmp_path), terms)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('given', [[], None, 'teacher.py', ['teacher.py']])
def test_no_teacher(student, given):
    with pytest.raises(UserError, match='a distillation needs a teacher'):
        Distillation(student, given, [KD])


def test_a_network_is_no_teacher_and_fills_no_page(student):
    with pytest.raises(UserError, match=r'got ImageClassifier\( \(data_preprocessor\).*\.\.\.$') as error:
        Distillation(student, student, [KD])
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize('given', [[], None, KD, dict(kd=KD), ['kd']])
def test_no_terms(student, teacher, given):
    with pytest.raises(UserError, match='a distillation needs terms: give a list of config dicts'):
        Distillation(student, teacher, given)


@pytest.mark.parametrize(
    ('task', 'meant'), [('train', 'train'), ('log', 'log'), ('off', 'off'), (True, 'train'), (False, 'log')]
)
def test_what_becomes_of_the_task(student, teacher, task, meant):
    assert Distillation(student, teacher, [KD], task=task).task == meant


@pytest.mark.parametrize(
    ('task', 'words'),
    [
        ('of', "'of': did you mean 'off'"),
        ('no', "'no': options are train, log, off"),
        (None, 'None'),
        (1, '1'),
        ([], ''),
    ],
)
def test_another_task_is_refused(student, teacher, task, words):
    with pytest.raises(UserError, match=f'^task is {words}'):
        Distillation(student, teacher, [KD], task=task)


def test_a_student_without_a_head_has_no_loss_of_its_task(student, teacher):
    student.head = None
    with pytest.raises(UserError, match=r"ImageClassifier has no head.*give it a head, or task='off'"):
        Distillation(student, teacher, [KD | dict(student='neck')], task='log')
    Distillation(student, teacher, [KD | dict(student='neck')], task='off')


def test_booleans_must_be_booleans(student, teacher):
    with pytest.raises(UserError, match="bf16 must be True or False, got 'no'"):
        Distillation(student, teacher | dict(bf16='no'), [KD])


def labelled(labels):
    return [DataSample().set_gt_label(label) for label in labels]


@pytest.fixture
def sure(student, tmp_path):
    """Return a student and a teacher's config dict; both predict class 1 for most images, normalised differently."""
    teacher_config = saved_teacher(tmp_path)
    teacher_config['config'] = teacher_config['config'] | dict(
        data_preprocessor=PREPROCESSOR | dict(mean=[100.0, 120, 140])
    )
    state = torch.load(teacher_config['checkpoint'])
    state['state_dict']['head.fc.bias'][1] += 2
    torch.save(state, teacher_config['checkpoint'])
    with torch.no_grad():
        student.head.fc.bias[1] += 2
    return student.train(), teacher_config


def test_bss_compares_on_samples_at_the_boundary(sure, images):
    student, teacher_config = sure
    labels = torch.tensor([1, 1, 0, 1, 1, 1])
    core, features, _, lines = distil(student, teacher_config, [BSS | dict(weight=0)], images)
    core.terms[0].weight = 2.0
    passes = []
    handle = student.register_forward_hook(lambda module, args, output: passes.append(args[0]))
    torch.manual_seed(5)
    losses = losses_of(core, features, images, labelled(labels))
    handle.remove()
    teacher, (logits,) = core.teacher, features['head.fc']

    def target_logits(x, indices=None):
        return teacher.model(teacher._convert(x, None), mode='tensor')

    torch.manual_seed(5)
    targets = target_logits(images)
    chosen = functional.base_samples(logits, targets, labels, 4)
    made = functional.boundary_attack(
        images[chosen], labels[chosen], functional.draw_targets(targets[chosen], labels[chosen]), target_logits
    )
    assert lines == ['bss: BSSLoss student head.fc (6, 4) -> teacher head.fc (6, 4)']
    assert len(chosen) == 4
    assert len(passes) == 1
    assert torch.equal(passes[0], made)
    assert (made - images[chosen]).abs().max() > 0.01
    expected = functional.bss_loss(student(made, mode='tensor'), target_logits(made))
    torch.testing.assert_close(losses['loss_bss'], 2 * expected)
    losses['loss_bss'].backward()
    assert student.backbone.stage1[0].conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())
    state = torch.load(teacher_config['checkpoint'])['state_dict']
    assert all(torch.equal(x, state[k]) for k, x in teacher.model.state_dict().items())


def test_bss_with_scales_for_other_channels(sure, images):
    student, teacher_config = sure
    term = BSS | dict(loss=BSS['loss'] | dict(scale=[0.8, 0.8]))
    core, features, _, _ = distil(student, teacher_config, [term | dict(weight=0)], images)
    core.terms[0].weight = 2.0
    with pytest.raises(UserError, match=r"term 'bss': scale: expected one for each of 3 channels, got 2"):
        core(features, core.teacher_features(images, None), images, labelled([1] * 6))


def test_bss_caches_the_batch_only(sure, tmp_path, images):
    student, teacher_config = sure
    core, features, _, _ = distil(
        student, teacher_config | dict(cache=str(tmp_path / 'cache')), [BSS | dict(weight=0)], images
    )
    core.terms[0].weight = 2.0
    calls = []
    for name in ('get', 'put'):
        method = getattr(core.teacher._cache, name)
        setattr(
            core.teacher._cache,
            name,
            lambda kind, keys, *rest, name=name, method=method: (
                calls.append((name, len(keys))),
                method(kind, keys, *rest),
            )[1],
        )
    values = []
    for _ in range(2):
        torch.manual_seed(5)
        values.append(losses_of(core, features, images, labelled([1] * 6))['loss_bss'].item())
    assert values[0] == values[1] > 0
    assert calls == [('get', 6), ('put', 6), ('get', 6)]  # the first finds nothing


def test_bss_without_base_samples_is_0_with_a_gradient_of_0_everywhere(sure, images):
    student, teacher_config = sure
    core, *_ = distil(student, teacher_config, [BSS | dict(adapter='auto', weight=0)], images)
    core.terms[0].weight = 2.0
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    statistics = {k: v.clone() for k, v in student.state_dict().items()}
    losses = core(
        features, core.teacher_features(images, labelled([0, 2, 3, 0, 2, 3])), images, labelled([0, 2, 3, 0, 2, 3])
    )
    assert losses['loss_bss'] == 0
    losses['loss_bss'].backward()
    for parameter in [*student.parameters(), *core.parameters()]:
        assert parameter.grad.abs().max() == 0
    assert all(torch.equal(v, statistics[k]) for k, v in student.state_dict().items())  # no second pass


def test_bss_needs_two_base_samples(sure, images):
    student, teacher_config = sure
    term = dict(name='bss', loss=dict(type='kd_plugins.BSSLoss', attack_size=1), student='head.fc', teacher='head.fc')
    core = Distillation(student, teacher_config, [term])
    core.dry_run(student, images, None)
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    labels, passes = torch.ones(len(images), dtype=torch.long), []
    assert len(core.terms[0].loss.choose(features['head.fc'][0], core.teacher(images, None)['head.fc'][0], labels)) == 1
    student.register_forward_hook(lambda *x: passes.append(x))
    loss = losses_of(core, features, images, labelled(labels))['loss_bss']
    loss.backward(retain_graph=True)
    assert loss == 0
    masked = {'head.fc': [features['head.fc'][0].masked_fill(torch.eye(6, 4, dtype=torch.bool), -torch.inf)]}
    loss = losses_of(core, masked, images, labelled(labels))['loss_bss']
    loss.backward()
    assert loss == 0
    assert not passes


def test_bss_attacks_every_teacher_on_its_own(sure, tmp_path, images):
    student, teacher_config = sure
    (tmp_path / 'b').mkdir()
    teachers = [teacher_config, saved_teacher(tmp_path / 'b', 8)]
    core, features, _, _ = distil(student, teachers, [BSS | dict(weight=0)], images)
    core.terms[0].weight = 2.0
    with torch.no_grad():
        core.teachers[1].model.head.fc.bias.copy_(torch.tensor([-9.0, 9, -9, -9]))
    torch.manual_seed(5)
    loss = losses_of(core, features, images, labelled([1] * 6))['loss_bss']
    torch.manual_seed(5)
    parts = []
    for index in range(2):
        core.terms[0].teachers = [index]
        parts.append(losses_of(core, features, images, labelled([1] * 6))['loss_bss'])
    torch.testing.assert_close(loss, (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize(
    ('samples', 'found'),
    [
        (None, 'got None'),
        ([DataSample()] * 6, 'got None'),
        ([DataSample().set_gt_label([1, 2])] * 6, 'got 2 numbers'),
        ([DataSample().set_gt_label(1).set_gt_score(torch.tensor([0.5, 0.5, 0, 0]))] * 6, 'got a gt_score'),
        (torch.zeros(6), 'got None'),
    ],
)
@pytest.mark.parametrize('name', ['BSSLoss', 'DKDLoss'])
def test_a_loss_of_labels_needs_one_class_an_image(sure, images, name, samples, found):
    """Said in the first step, even where its weight is 0 there and for long."""
    later = dict(at=[0, 9], value=[0, 1], by='iter')
    term = dict(KD, name='term', loss=dict(type=f'kd_plugins.{name}'), weight=0)
    core, features, losses, _ = distil(*sure, [term], images)
    assert losses['loss_term'] == 0
    core.terms[0].weight, core.gradients_checked = Schedule(**later), False
    with pytest.raises(UserError, match=f"term 'term': {name} needs images of one class each.* {found}.*") as error:
        losses_of(core, features, images, samples)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('loss', 'label', 'noted'),
    [
        (dict(type='kd_plugins.KDLoss'), [1, 2], True),
        (dict(type='kd_plugins.DISTLoss'), [], True),
        (dict(type='kd_plugins.KDLoss', use_sigmoid=True), [1, 2], False),
        (dict(type='kd_plugins.KDLoss'), 1, False),
        (dict(type='kd_plugins.CosineLoss'), [1, 2], False),
    ],
)
def test_a_softmax_over_classes_of_which_an_image_has_several_is_noted(
    student, teacher, images, loss, label, noted, monkeypatch
):
    lines = []
    monkeypatch.setattr(samples_module, 'print_log', lambda line, *_: lines.append(line))
    core = Distillation(student, teacher, [dict(KD, loss=loss)])
    core.dry_run(student, images, None)
    for _ in range(2):  # once
        with core.recorder.recording() as features:
            student(images, mode='tensor')
        losses_of(core, features, images, labelled([label] * 6))
    assert len(lines) == noted
    assert all('KDLoss(use_sigmoid=True) compares each class by itself' in line for line in lines)


def test_labels_reach_a_loss_against_each_teacher(student, teacher, images):
    dkd, dist = (dict(KD, name=x, loss=dict(type=f'kd_plugins.{x.upper()}Loss')) for x in ('dkd', 'dist'))
    core = Distillation(student, [teacher, teacher], [dkd | dict(weight=2.0), dist])
    core.dry_run(student, images, None)
    with torch.no_grad():
        core.teachers[1].model.head.fc.bias.copy_(torch.tensor([-2.0, 2, 0, 1]))
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    labels = torch.tensor([3, 0, 1, 1, 2, 3])
    losses = losses_of(core, features, images, labelled(labels))
    logits = features['head.fc'][0]
    targets = [x['head.fc'][0] for x in core.teacher_features(images, None)]
    expected = sum(functional.dkd_loss(logits, t, labels) for t in targets)
    torch.testing.assert_close(losses['loss_dkd'], expected)
    torch.testing.assert_close(losses['loss_dist'], sum(functional.dist_loss(logits, t) for t in targets) / 2)
    with pytest.raises(UserError, match=r'shape mismatch: dkd_loss: expected labels from 0 to 3 .*, got .* 1 to 4; '):
        losses_of(core, features, images, labelled(labels + 1))


def test_bss_takes_one_tap(student, teacher, images):
    with pytest.raises(UserError, match='BSSLoss takes one feature per network, its logits, got 2'):
        Distillation(student, teacher, [BSS | dict(student=['head.fc'] * 2, teacher=['head.fc'] * 2)]).dry_run(
            student, images, None
        )


def test_critic_is_built_once_and_trained(student, teacher, images):
    core, _, losses, lines = distil(student, teacher, [GAN | dict(weight=3.0)], images)
    assert lines == [
        'gan: NSTGANLoss student backbone.stage3 (6, 16, 4, 4) -> teacher backbone.stage3 (6, 16, 4, 4), '
        'loss of 145 parameters'
    ]
    assert list(core.state_dict()) == [
        f'terms.0.loss.critic.{x}.{y}' for x in ('hidden', 'out') for y in ('weight', 'bias')
    ]
    losses['loss_gan'].backward()
    assert all(p.grad.abs().sum() > 0 for p in core.parameters())
    assert student.backbone.stage3[0].conv1.weight.grad.abs().sum() > 0
    before = torch.get_rng_state()
    Distillation(student, teacher, [GAN]).dry_run(student, images, None)
    assert torch.equal(before, torch.get_rng_state())


def test_critic_of_weight_0_gets_a_gradient_of_0(student, teacher, images):
    core, _, losses, _ = distil(student, teacher, [GAN | dict(weight=0)], images)
    assert losses['loss_gan'] == 0
    losses['loss_gan'].backward()
    assert all(p.grad.abs().max() == 0 for p in core.parameters())


def test_without_the_task_its_losses_give_no_gradient(student, teacher, images):
    core = Distillation(student, teacher, [HINT | dict(student=STAGES[1], teacher=STAGES[1])], task=False)
    core.dry_run(student, images, None)
    with core.recorder.recording() as features:
        task = student(images, labelled([0] * 6), mode='loss')
    task |= dict(loss_many=[task['loss'], task['loss']])
    losses = core.with_task_losses(task, losses_of(core, features, images, None))
    assert set(losses) == {'loss', 'loss_many', 'loss_hint'}
    assert losses['loss'] == task['loss'] > 0
    total, _ = student.parse_losses(losses)
    total.backward()
    reached = {name for name, p in student.named_parameters() if p.grad is not None}
    above = ('backbone.stage3', 'head')
    assert reached == {name for name, _ in student.named_parameters() if not name.startswith(above)}
    core.terms[0].weight = 0.0
    core.terms[0].adapters.requires_grad_(False)
    with pytest.raises(UserError, match="with task='log' only the terms train the student, but all their weights are"):
        core.with_task_losses(task, losses_of(core, features, images, None))


def test_a_loss_of_the_task_that_is_not_finite_is_named(student, teacher, images):
    term = HINT | dict(student=STAGES[1], teacher=STAGES[1])
    for task, stopped in (('train', True), ('log', False)):
        core = Distillation(student, teacher, [term], task=task)
        core.dry_run(student, images, None)

        def run(mode):
            return student(images, labelled([0] * 6), mode=mode) | dict(loss_box=torch.tensor(torch.nan))

        with pytest.raises(UserError, match='loss_box is nan at') if stopped else nullcontext():
            core.losses(run, images, None)


def test_without_the_task_the_student_runs_once_to_its_last_tap(student, teacher, images):
    """Neither annotations nor the layers behind the tap are needed."""
    core = Distillation(student, teacher, [HINT | dict(student=STAGES[1], teacher=STAGES[1], weight=3.0)], task='off')
    core.dry_run(student, images, None)
    student.backbone.stage3 = student.head = None
    modes = []

    def run(mode):
        modes.append(mode)
        return student(images, None, mode=mode)

    losses = core.losses(run, images, None)
    assert modes == ['tensor']
    assert set(losses) == {'loss_hint'}
    with core.recorder.recording(stop=True) as features:
        student(images)
    adapted = core.terms[0].adapters[0](features[STAGES[1]][0])
    expected = functional.fitnet_loss(adapted, core.teacher(images, None)[STAGES[1]][0])
    torch.testing.assert_close(losses['loss_hint'], 3 * expected)
    losses['loss_hint'].backward()
    assert student.backbone.stage1[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('term', 'static', 'missed'),
    [
        (KD, False, False),
        (HINT | dict(student=STAGES[1], teacher=STAGES[1]), True, False),
        (HINT | dict(student=STAGES[1], teacher=STAGES[1]), False, True),
    ],
)
def test_data_parallel_without_the_task_needs_a_gradient_everywhere(
    student, teacher, images, monkeypatch, term, static, missed
):
    wrapper = SimpleNamespace(module=student, find_unused_parameters=False, static_graph=static)
    monkeypatch.setattr(DistributedDataParallel, '_get_active_ddp_module', lambda: wrapper)
    core = Distillation(student, teacher, [term], task=False)
    core.dry_run(student, images, None)
    for _ in range(2):
        with core.recorder.recording() as features:
            task = student(images, labelled([0] * 6), mode='loss')
        with (
            pytest.raises(UserError, match=r'no gradient reaches backbone.stage3\S+, .*: set find_unused_param')
            if missed
            else nullcontext()
        ):
            core.with_task_losses(task, losses_of(core, features, images, None))


def test_copies_have_a_student_of_their_own(sure, images):
    student, teacher_config = sure
    core = Distillation(student, teacher_config, [BSS, GAN])
    core.dry_run(student, images, None)
    owner = torch.nn.ModuleList([student])
    owner.distillation = core
    other = copy.deepcopy(owner)
    assert other.distillation.recorder.model is other[0] is not student
    assert other.distillation.teacher is core.teacher
    loaded = pickle.loads(pickle.dumps(owner))
    assert loaded.distillation.recorder.model is loaded[0]
    assert not any(name.startswith('student') for name, _ in core.named_modules())


@pytest.mark.parametrize('task', ['log', 'off'])
def test_without_the_task_a_loss_may_be_computed_in_validation(student, teacher, images, task):
    core = Distillation(student, teacher, [KD], task)
    samples = [DataSample().set_gt_label(1) for _ in images]
    with torch.no_grad():
        losses = core.losses(lambda mode: student(images, samples, mode=mode), images, samples)
    assert losses['loss_kd'] > 0
    core.terms[0].weight = 0.0
    with pytest.raises(UserError, match='all their weights are 0 in this iteration'):
        core.losses(lambda mode: student(images, samples, mode=mode), images, samples)


@pytest.mark.parametrize(
    ('own', 'theirs', 'scale', 'reach'),
    [
        (dict(mean=None, std=None), {}, 1 / 60, r'0 to 255, but before the student.s these images reach \d\.\d+:'),
        (dict(mean=[0.4] * 3, std=[0.2] * 3), {}, 1, r'0 to 255, but before the student.s these images reach [01]'),
        (dict(mean=[100.0] * 3), dict(mean=[0.4] * 3, std=[0.2] * 3), 1, r'0 to 1, but .* reach \d{3}'),
        (dict(mean=[0.5] * 3, std=[0.2] * 3), dict(mean=[0.4] * 3, std=[0.2] * 3), 1, None),
        (dict(mean=[100.0] * 3), {}, 1, None),
        (dict(mean=[100.0] * 3), dict(mean=[0.0] * 3, std=[255.0] * 3), 1, None),  # to pixels of 0 to 1
        (dict(mean=None, std=None), dict(mean=[0.0] * 3, std=[255.0] * 3), 1 / 255, r'0 to 255, .* reach [01]'),
        (dict(mean=None, std=None), dict(mean=None, std=None, pad_value=9), 1 / 255, None),
        (dict(mean=None, std=None), {}, 0, None),
        (dict(mean=None, std=None), {}, 1, None),
        (dict(mean=[100.0] * 3), dict(mean=None, std=None), 1, None),
    ],
)
def test_images_that_the_pipeline_has_scaled_are_refused(tmp_path, own, theirs, scale, reach):
    """A teacher would get them normalised twice, almost all alike."""
    student = MODELS.build(classifier() | dict(data_preprocessor=PREPROCESSOR | own))
    teacher = saved_teacher(tmp_path) | dict(data_preprocessor=PREPROCESSOR | theirs)
    pixels = torch.rand(4, 3, 16, 16) * (1 if max(own['mean'] or [255]) < 1 else 255)
    images = student.data_preprocessor(dict(inputs=pixels * scale))['inputs']
    samples = [DataSample().set_gt_label(1) for _ in images]
    for given in (teacher, teacher | dict(data_preprocessor={})):
        core = Distillation(student, given, [KD])
        refused = reach and given is teacher
        with pytest.raises(UserError, match=reach) if refused else nullcontext():
            core.losses(lambda mode: student(images, samples, mode=mode), images, samples)
