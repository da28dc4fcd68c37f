import copy
import itertools

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from tiny import classification_config, classifier, equal, image_folder, saved_teacher, train, weights

from kd_plugins.errors import UserError
from kd_plugins.hooks import WatchHook
from kd_plugins.registry import OPTIM_WRAPPERS

pytestmark = pytest.mark.usefixtures('device')
STAGE = 'backbone.stage3'
KD = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc', weight=0.5)
# Of weight 0 from the third iteration on.
NST = dict(
    name='nst',
    loss=dict(type='kd_plugins.NSTLoss'),
    student=STAGE,
    teacher=STAGE,
    weight=dict(at=[0, 2, 2], value=[5.0, 4.0, 0.0], by='iter'),
)
HINT = dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), student=STAGE, teacher=STAGE, adapter='auto')


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shared')
    return image_folder(folder / 'data'), saved_teacher(folder)


def config_of(way, shared, work_dir, terms, watch=None, task='train', **more):
    """Return the config of a run of three iterations, watched or not."""
    data, teacher = shared
    distillation = dict(teacher=teacher, terms=terms, task=task)
    hooks = [] if watch is None else [dict(type='kd_plugins.WatchHook', **watch)]
    model = more.pop('model', None)
    if way == 'hook':
        hooks.append(dict(type='kd_plugins.DistillationHook', **distillation))
    else:
        model = dict(type='kd_plugins.Distiller', student=classifier(), input_shape=(3, 16, 16), **distillation)
    return classification_config(data, work_dir, model, custom_hooks=hooks, **dict(epochs=1) | more)


def scalar(runner, name):
    return runner.message_hub.get_scalar(f'train/{name}').data[0].tolist()


BOTH = pytest.mark.parametrize('way', ['hook', 'model'])


@BOTH
def test_losses_weights_and_shares(tmp_path, shared, way):
    class Recording(Hook):
        priority = 'VERY_LOW'
        raw = ()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.raw = (*self.raw, 'train/raw_loss/nst' in runner.message_hub.log_scalars)

    config = config_of(way, shared, tmp_path / 'run', [KD, NST, HINT], {})
    runner = Runner.from_cfg(config)
    recording = Recording()
    runner.register_hook(recording)
    runner.train()
    values = {name: scalar(runner, f'loss_{name}') for name in ('kd', 'nst', 'hint')}
    values['task'] = scalar(runner, 'loss')  # as mmpretrain logs it
    assert scalar(runner, 'weight/kd') == [0.5] * 3
    assert scalar(runner, 'weight/nst') == [5.0, 4.5, 0.0]
    assert scalar(runner, 'raw_loss/kd') == pytest.approx([2 * x for x in values['kd']])
    assert scalar(runner, 'raw_loss/hint') == pytest.approx(values['hint'])
    assert recording.raw == (True, True, False)  # not computed, so not logged
    for i in range(3):
        total = sum(x[i] for x in values.values())
        for name, x in values.items():
            assert scalar(runner, f'loss_share/{name}')[i] == pytest.approx(x[i] / total)
    assert all(0 < x < 60 for x in scalar(runner, 'teacher_time'))
    assert not any('gradient' in name for name in runner.message_hub.log_scalars)
    hooks = [hook for hook in runner.hooks if isinstance(hook, WatchHook)]
    assert hooks[0]._distillation.observer is None  # no longer


def test_a_negative_loss_has_a_negative_share():
    hook = WatchHook()
    hook._losses = dict(kd=torch.tensor(3.0), vid=torch.tensor(-1.0))

    class Term:
        name = 'vid'

        def current_weight(self):
            return 0.5

    class Hub:
        def __init__(self):
            self.found, self.log_scalars = {}, {}

        def update_scalar(self, name, value, resumed):
            self.found[name] = value

    hook._distillation = type('Distillation', (), dict(terms=[Term()]))
    runner = type('Runner', (), dict(message_hub=Hub()))
    hook.after_train_iter(runner, 0)
    found = runner.message_hub.found
    assert (found['train/loss_share/kd'], found['train/loss_share/vid']) == (0.75, -0.25)
    assert found['train/raw_loss/vid'] == -2


@OPTIM_WRAPPERS.register_module()
class Scaled(OptimWrapper):
    """A wrapper with the scale of a ``GradScaler``, which a CPU does not have."""

    class Scaler:
        def get_scale(self):
            return 1024.0

    loss_scaler = Scaler()


@BOTH
@pytest.mark.parametrize('kind', ['OptimWrapper', 'kd_plugins.BF16OptimWrapper', 'kd_plugins.Scaled'])
def test_gradients_are_those_of_the_steps(tmp_path, shared, way, kind):
    """With one term at a time and plain SGD, the step of the weights shows its gradient."""
    terms = [
        term | dict(weight=dict(at=[0, i, i, i + 1, i + 1], value=[0.0, 0, 2, 2, 0], by='iter'))
        for i, term in enumerate((KD, NST))
    ]
    config = config_of(way, shared, tmp_path / 'run', terms, dict(gradients=1), 'log')
    config.optim_wrapper = dict(type=kind, optimizer=dict(type='SGD', lr=0.1))
    config.param_scheduler = None
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    runner = Runner.from_cfg(config)
    states = []

    class Recording(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            model = getattr(runner.model, 'student', runner.model)
            states.append([p.detach().clone() for p in model.parameters()])

        def after_train(self, runner):
            self.before_train_iter(runner, 0)

    runner.register_hook(Recording())
    runner.train()
    norms = [
        sum((a - b).square().sum() for a, b in zip(*pair, strict=True)).sqrt().item() / 0.1
        for pair in itertools.pairwise(states)
    ]
    assert min(norms) > 1e-2
    assert scalar(runner, 'gradient/kd') == pytest.approx([norms[0], 0.0], rel=1e-3)
    assert scalar(runner, 'gradient/nst') == pytest.approx([0.0, norms[1]], rel=1e-3)
    assert 'train/gradient/task' not in runner.message_hub.log_scalars  # it gives none


@BOTH
def test_watching_changes_nothing(tmp_path, shared, way):
    runs = [
        train(config_of(way, shared, tmp_path / name, [KD, NST, HINT], watch))
        for name, watch in (('plain', None), ('watched', dict(gradients=2)))
    ]
    assert equal(*(weights(runner.model) for runner in runs))
    assert len(scalar(runs[1], 'gradient/task')) == 1  # iteration 2 of 3
    saved = [torch.load(tmp_path / name / 'epoch_1.pth', weights_only=False) for name in ('plain', 'watched')]
    assert saved[0]['message_hub']['log_scalars'].keys() == saved[1]['message_hub']['log_scalars'].keys()
    names = [[*runner.message_hub.log_scalars] for runner in runs]
    assert names[0] == [name for name in names[1] if name in names[0]]
    assert not any('/' in name.removeprefix('train/') for name in names[0])


def test_accumulated_gradients_are_those_of_each_batch(tmp_path, shared):
    runs = [
        train(config_of('hook', shared, tmp_path / f'run{count}', [KD], dict(gradients=1), optim_wrapper=wrapper))
        for count, wrapper in (
            (n, dict(optimizer=dict(type='SGD', lr=0.0), accumulative_counts=n, clip_grad=dict(max_norm=1e-4)))
            for n in (1, 3)
        )
    ]
    first, other = (scalar(runner, 'gradient/task') for runner in runs)
    assert first == pytest.approx(other, rel=1e-4)
    assert min(first) > 1e-2


REFUSED = {
    'gradients': (
        dict(watch=dict(gradients=-1)),
        r"gradients must be a number of iterations, or 0 for 'never', got -1",
    ),
    'task': (dict(terms=[KD | dict(name='task')]), "a term is named 'task'.*rename the term"),
    'compile': (dict(watch=dict(gradients=1), compile=True), 'a compiled model has no gradient of a single term'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused(tmp_path, shared, name):
    options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        train(config_of('hook', shared, tmp_path / 'run', **dict(terms=[KD], watch={}) | options))


def test_reentrant_checkpointing_ends_in_one_line(tmp_path, shared):
    class Checkpointed(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=True)

    config = config_of('hook', shared, tmp_path / 'run', [KD], dict(gradients=1))
    runner = Runner.from_cfg(config)
    runner.model.backbone.stage2 = Checkpointed(copy.deepcopy(runner.model.backbone.stage2))
    with pytest.raises(UserError, match=r'WatchHook: the gradient of kd alone cannot be computed.*with_cp'):
        runner.train()


def test_it_leaves_the_message_to_the_hook_where_no_loss_was_computed(tmp_path, shared):
    model = dict(type='kd_plugins.MutualLearning', student=classifier(), update='alternating')
    config = config_of('hook', shared, tmp_path / 'run', [dict(KD, student='student.head.fc')], {}, model=model)
    with pytest.raises(UserError, match=r"DistillationHook adds its terms.*update='joint'"):
        train(config)


def test_a_run_without_a_teacher_trains(tmp_path, shared):
    runner = train(
        classification_config(
            shared[0], tmp_path / 'run', epochs=1, custom_hooks=[dict(type='kd_plugins.WatchHook', gradients=1)]
        )
    )
    assert runner.iter == 3
    assert not any('share' in name for name in runner.message_hub.log_scalars)
