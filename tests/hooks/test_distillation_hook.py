import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from tiny import (
    Moves,
    classification_config,
    classifier,
    coco_folder,
    equal,
    image_folder,
    saved_teacher,
    stock_detector,
    train,
    weights,
)

from kd_plugins.errors import UserError
from kd_plugins.hooks import DistillationHook
from kd_plugins.registry import MODELS, TRANSFORMS

pytestmark = pytest.mark.usefixtures('device')  # mmengine's runner uses a GPU where there is one
STAGES = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3']
KD = dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='head.fc', teacher='head.fc', weight=0.5)
NST = dict(name='nst', loss=dict(type='kd_plugins.NSTLoss'), student=STAGES[2], teacher=STAGES[2], weight=5.0)
AT = dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student=STAGES, teacher=STAGES, weight=2.0)
HINT = dict(name='hint', loss=dict(type='kd_plugins.FitNetLoss'), student=STAGES[1], teacher=STAGES[1], adapter='auto')
BSS = KD | dict(
    name='bss', loss=dict(type='kd_plugins.BSSLoss'), weight=dict(at=[0, 0.8], value=[2.0, 0], by='progress')
)
VID = dict(name='vid', loss=dict(type='kd_plugins.VIDLoss'), student=STAGES[:2], teacher=STAGES[:2], weight=0.1)
ENDS = [*STAGES, 'neck.gap']
REVIEW = dict(name='review', loss=dict(type='kd_plugins.ReviewKDLoss'), student=ENDS, teacher=ENDS, adapter='abf')
MGD = dict(name='mgd', loss=dict(type='kd_plugins.MGDLoss'), student=STAGES[:2], teacher=STAGES[:2], weight=1e-4)
GAN = dict(name='gan', loss=dict(type='kd_plugins.NSTGANLoss', hidden=8), student=STAGES[2], teacher=STAGES[2])


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / 'data')


@pytest.fixture
def teacher(tmp_path):
    return saved_teacher(tmp_path)


def by_hook(teacher, terms, **more):
    return dict(custom_hooks=[dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms, **more)])


def by_model(teacher, terms, student=None, **more):
    return dict(
        model=dict(
            type='kd_plugins.Distiller',
            student=student or classifier(),
            teacher=teacher,
            terms=terms,
            input_shape=(3, 16, 16),
            **more,
        )
    )


def biased(teacher):
    """Let a teacher predict class 1 for most images, so that a student may agree with it."""
    checkpoint = saved(teacher['checkpoint'])
    checkpoint['state_dict']['head.fc.bias'][1] += 3
    torch.save(checkpoint, teacher['checkpoint'])
    return teacher


def backbone_alone(backbone=None):
    """Return the config dict of a student that is a backbone alone."""
    return classifier() | dict(neck=None, head=None) | ({} if backbone is None else dict(backbone=backbone))


def without_labels(data, work_dir, way, teacher, terms, student, **more):
    """Return the config of a run with ``task='off'`` on unlabelled images."""
    student = dict(student=student) if way is by_model else dict(model=student)
    model, distilled = (student, {}) if way is by_hook else ({}, student)
    config = classification_config(
        data,
        work_dir,
        default_hooks={x: dict(type=f'kd_plugins.{x}Hook') for x in ('Reseed', 'Export', 'Check')},
        **model,
        **way(teacher, terms, task='off', **distilled),
        **more,
    )
    config.train_dataloader.dataset.with_label = False
    return config


BOTH = pytest.mark.parametrize('way', [by_hook, by_model])


def saved(path):
    return torch.load(path, weights_only=False)


def core_of(runner):
    hooks = [hook for hook in runner.hooks if isinstance(hook, DistillationHook)]
    return hooks[0].distillation if hooks else runner.model.distillation


@BOTH
def test_zero_weights_equal_the_stock_run_bit_for_bit(tmp_path, data, teacher, way):
    stock = train(classification_config(data, tmp_path / 'stock'))
    terms = [
        KD | dict(weight=0),
        NST | dict(weight=0.0),
        HINT | dict(weight=0),
        BSS | dict(weight=0),
        GAN | dict(weight=0),
    ]
    train(classification_config(data, tmp_path / 'run', **way(teacher, terms)))
    assert equal(saved(tmp_path / 'run/epoch_2.pth')['state_dict'], weights(stock.model))


@TRANSFORMS.register_module(force=True)
class Remembering(BaseTransform):
    """Keeps the images that it has seen, as mmdet's CachedMosaic."""

    def __init__(self):
        self.results_cache = []

    def transform(self, results):
        self.results_cache.append(results['sample_idx'])
        return results


def test_a_dry_run_fills_no_cache_of_images(tmp_path, data, teacher):
    config = classification_config(data, tmp_path / 'run', epochs=1, **by_hook(teacher, [KD]))
    config.train_dataloader.dataset.pipeline.insert(1, dict(type=Remembering))
    runner = train(config)
    (kept,) = [x for x in runner.train_dataloader.dataset.pipeline.transforms if isinstance(x, Remembering)]
    assert len(kept.results_cache) == len(runner.train_dataloader.dataset)  # those of the epoch


def test_views_of_several_kinds_are_refused_before_anything_else(tmp_path, data, teacher):
    """A preprocessor of several branches (semi-supervised) is not said to lack a normalisation."""
    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [KD]))
    config.train_dataloader.collate_fn = dict(type=in_branches)
    with pytest.raises(UserError, match='with one view per image, got a dict of sup, unsup as inputs'):
        train(config)


def in_branches(samples):
    images = [sample['inputs'] for sample in samples]
    return dict(inputs=dict(sup=images, unsup=images), data_samples=None)


@BOTH
def test_checkpoint_is_the_stock_students(tmp_path, data, teacher, way):
    runner = train(classification_config(data, tmp_path / 'run', **way(teacher, [KD, NST, AT, HINT, GAN])))
    checkpoint = saved(tmp_path / 'run/epoch_2.pth')
    student = MODELS.build(classifier())
    assert list(checkpoint['state_dict']) == list(student.state_dict())
    student.load_state_dict(checkpoint['state_dict'], strict=True)
    trained = getattr(runner.model, 'student', runner.model)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(student.eval()(images), trained.cpu().eval()(images))


@pytest.mark.parametrize('terms', [[KD, NST, AT], [KD, BSS], [GAN]], ids=['no input of its own', 'bss', 'gan'])
def test_both_ways_train_the_same_student(tmp_path, data, teacher, terms):
    biased(teacher)
    for name, way in dict(hook=by_hook, model=by_model).items():
        runner = train(classification_config(data, tmp_path / name, **way(teacher, terms)))
        values = runner.message_hub.get_scalar(f'train/loss_{terms[-1]["name"]}').data[0]
        assert (values[:4] > 0).any()
        assert (values[5:] == 0).all() == (BSS in terms)
    states = [saved(tmp_path / name / 'epoch_2.pth')['state_dict'] for name in ('hook', 'model')]
    stock = train(classification_config(data, tmp_path / 'stock'))
    assert equal(*states)
    assert not equal(states[0], weights(stock.model))


@pytest.mark.parametrize('scheduler', ['LinearLR', 'CosineAnnealingLR', 'OneCycleLR'])
def test_options_by_parameter_reach_the_adapters(tmp_path, data, teacher, scheduler):
    """As a transformer's schedule gives biases and norms no weight decay."""
    options = dict(
        LinearLR=dict(start_factor=0.1), CosineAnnealingLR=dict(eta_min_ratio=0.1), OneCycleLR=dict(eta_max=0.1)
    )[scheduler]
    paramwise = dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.5,
        bias_lr_mult=2.0,
        custom_keys={'terms.1.adapters': dict(lr_mult=0.1, decay_mult=3.0), 'backbone': dict(lr_mult=0.5)},
    )
    terms = [HINT | dict(adapter='mlp'), HINT | dict(name='second')]
    states, groups = [], []
    for name, way in dict(hook=by_hook, model=by_model).items():
        config = classification_config(
            data,
            tmp_path / name,
            param_scheduler=[dict(type=scheduler, by_epoch=False, total_steps=6, **options)]
            if scheduler == 'OneCycleLR'
            else [dict(type=scheduler, by_epoch=False, end=6, **options)],
            **way(teacher, terms),
        )
        optimizer = dict(type='AdamW', lr=0.01, weight_decay=0.5, _delete_=True)
        config.merge_from_dict(dict(optim_wrapper=dict(optimizer=optimizer, paramwise_cfg=paramwise)))
        runner = train(config)
        states.append(saved(tmp_path / name / 'epoch_2.pth')['state_dict'])
        names = {p: n for n, p in core_of(runner).named_parameters()}
        found = {
            names[g['params'][0]]: g for g in runner.optim_wrapper.optimizer.param_groups if g['params'][0] in names
        }
        groups.append({n: (g['lr'], g['weight_decay']) for n, g in found.items()})
        assert groups[-1]['terms.0.adapters.0.1.weight'][1] == 0  # of the LayerNorm
        assert groups[-1]['terms.1.adapters.0.weight'][1] == 1.5
    assert groups[0] == {name: pytest.approx(pair) for name, pair in groups[1].items()}
    assert equal(*states)


@BOTH
def test_a_student_whose_forward_passes_its_arguments_on(tmp_path, data, teacher, way):
    class Passing(ImageClassifier):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    config = classification_config(data, tmp_path / 'run', epochs=1, **way(teacher, [KD]))
    config.model.get('student', config.model).type = Passing
    assert (train(config).message_hub.get_scalar('train/loss_kd').data[0] > 0).all()


def test_a_student_that_predicts_for_one_image_at_a_time(tmp_path, data, teacher):
    class Single(ImageClassifier):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            if mode != 'loss' and len(inputs) > 1:
                raise AssertionError('one\nimage')
            return super().forward(inputs, data_samples, mode)

    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [KD]))
    config.model.type = Single
    with pytest.raises(UserError, match=r'Single does not run on two images at once .*\(AssertionError: one image\)'):
        train(config)


def test_a_student_whose_head_runs_in_mode_loss_alone(tmp_path, data, teacher):
    class Retriever(ImageClassifier):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return self.extract_feat(inputs) if mode == 'tensor' else super().forward(inputs, data_samples, mode)

    config = classification_config(data, tmp_path / 'run', epochs=1, **by_hook(teacher, [KD]))
    config.model.type = Retriever
    assert (train(config).message_hub.get_scalar('train/loss_kd').data[0] > 0).all()
    config.work_dir = str(tmp_path / 'off')
    config.custom_hooks[0].task = 'off'
    with pytest.raises(UserError, match=r"'head\.fc' outputs no tensor in a forward pass"):
        train(config)


def test_a_student_that_takes_no_images_of_this_size(tmp_path, data, teacher):
    class Large(ImageClassifier):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            raise AssertionError('images of 16 pixels are smaller than the window')

    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [KD]))
    config.model.type = Large
    with pytest.raises(AssertionError, match='smaller than the window'):
        train(config)


def test_a_student_whose_train_step_bypasses_its_forward(tmp_path, data, teacher):
    class Direct(ImageClassifier):
        def train_step(self, data, optim_wrapper):
            loss, log = self.parse_losses(self.loss(**self.data_preprocessor(data, True)))
            optim_wrapper.update_params(loss)
            return log

    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [KD]))
    config.model.type = Direct
    with pytest.raises(UserError, match="a step of Direct ran no forward in mode 'loss'"):
        train(config)


@BOTH
def test_teacher_is_unchanged_and_in_no_state(tmp_path, data, teacher, way):
    config = classification_config(data, tmp_path / 'run', **way(teacher, [KD, AT]))
    config.custom_hooks = [*config.get('custom_hooks', []), dict(type='EMAHook')]
    runner = train(config)
    network = core_of(runner).teacher.model
    assert equal(network.state_dict(), saved(teacher['checkpoint'])['state_dict'])
    assert not any(module.training for module in network.modules())
    optimised = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params']}
    assert not optimised & {id(p) for p in network.parameters()}
    checkpoint = saved(tmp_path / 'run/epoch_2.pth')
    stock = MODELS.build(classifier()).state_dict()
    assert checkpoint['state_dict'].keys() == stock.keys()
    averaged = {key.removeprefix('module.') for key in checkpoint['ema_state_dict']} - {'steps'}
    assert averaged == stock.keys()


REFUSED = {
    'no teacher': dict(teacher=[]),
    'misspelt option of a teacher': dict(teacher=dict(ckeckpoint='')),
    'no checkpoint': dict(teacher=dict(checkpoint='none.pth')),
    'bf16': dict(teacher=dict(bf16='yes')),
    'no terms': dict(terms=[]),
    'terms in a dict': dict(terms=dict(kd=KD)),
    'twice the same name': dict(terms=[KD, KD]),
    'misspelt option': dict(terms=[KD | dict(wieght=1)]),
    'unknown loss': dict(terms=[KD | dict(loss=dict(type='kd_plugins.KLoss'))]),
    'option out of range': dict(terms=[KD | dict(loss=dict(type='kd_plugins.KDLoss', tau=0))]),
    'unknown tap': dict(terms=[KD | dict(student='head.fcc')]),
    'unknown tap of the teacher': dict(terms=[KD | dict(teacher='head.fcc')]),
    'channels': dict(terms=[HINT | dict(adapter=None, teacher=STAGES[2])]),
    'kind of feature': dict(terms=[NST | dict(student='head.fc')]),
    'number of taps': dict(terms=[AT | dict(teacher=STAGES[:2])]),
    'number of taps, with adapters': dict(terms=[HINT | dict(teacher=STAGES[:2])]),
    'no pair': dict(terms=[AT | dict(loss=dict(type='kd_plugins.FSPLoss'))]),
    'index of a teacher': dict(terms=[KD | dict(teachers=[1])]),
    'option of version 0.1': dict(terms=[KD | {'of': [0]}]),
    'negative weight': dict(terms=[KD | dict(weight=-1)]),
    'adapter': dict(terms=[HINT | dict(adapter='linear')]),
    'no scalar': dict(terms=[KD | dict(loss=torch.nn.MSELoss(reduction='none'))]),
    'task': dict(task='no'),
    'nothing trains': dict(terms=[KD | dict(weight=0)], task=False),
    'nothing trains without the task': dict(terms=[KD | dict(weight=0)], task='off'),
}


@pytest.mark.parametrize('change', REFUSED.values(), ids=REFUSED)
def test_both_ways_refuse_the_same(tmp_path, data, teacher, change):
    options = dict(teacher=teacher, terms=[KD]) | change
    if isinstance(options['teacher'], dict):
        options['teacher'] = teacher | options['teacher']
    messages = []
    for name, way in dict(hook=by_hook, model=by_model).items():
        config = classification_config(data, tmp_path / name, epochs=1, **way(**copy.deepcopy(options)))
        config.train_dataloader.batch_size = 2
        with pytest.raises(UserError) as error:
            train(config)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert '\n' not in messages[0]


def test_a_copy_taken_in_training_runs_its_own_layers(tmp_path, data, teacher, device):
    class Copy(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            copied = copy.deepcopy(runner.model)
            with torch.no_grad():
                copied.head.fc.bias += 1
            images = torch.randn(2, 3, 16, 16).to(device)
            outputs = [model.eval()(images) for model in (runner.model, copied)]
            torch.testing.assert_close(outputs[1], outputs[0] + 1)
            sample = DataSample().set_gt_label(1).to(device)
            assert set(copied(images, [sample, sample], mode='loss')) == {'loss'}
            runner.model.train()
            copies.append(copied)

    copies = []
    runner = Runner.from_cfg(classification_config(data, tmp_path / 'run', epochs=1, **by_hook(teacher, [KD])))
    runner.register_hook(Copy())
    runner.train()
    assert copies


@BOTH
def test_training_starts_again_after_an_interrupt(tmp_path, data, teacher, way):
    class Interrupt(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            raise KeyboardInterrupt

    config = classification_config(data, tmp_path / 'run', epochs=1, **way(teacher, [KD]))
    runner = Runner.from_cfg(config)
    runner.register_hook(interrupt := Interrupt())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner.hooks.remove(interrupt)
    runner.train()
    assert runner.iter == 3
    assert 'forward' not in vars(runner.model)


@BOTH
def test_no_handle_stays(tmp_path, data, teacher, way):
    runner = train(classification_config(data, tmp_path / 'run', **way(teacher, [KD, AT])))
    for module in [*runner.model.modules(), *core_of(runner).teacher.model.modules()]:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any('forward' in vars(module) for module in runner.model.modules())


@BOTH
def test_every_term_is_logged_and_summed(tmp_path, data, teacher, way, monkeypatch):
    totals = []
    update = OptimWrapper.update_params

    def recorded(self, loss):
        totals.append(loss.item())
        update(self, loss)

    monkeypatch.setattr(OptimWrapper, 'update_params', recorded)
    runner = train(classification_config(data, tmp_path / 'run', **way(teacher, [KD, NST, AT])))
    names = ('loss', 'loss_kd', 'loss_nst', 'loss_at')
    logged = [runner.message_hub.get_scalar(f'train/{name}').data[0] for name in names]
    assert all((values > 0).all() for values in logged)
    assert totals == pytest.approx(sum(logged))


@BOTH
def test_adapters_learn_are_saved_and_resumed(tmp_path, data, teacher, way):
    terms = [HINT | dict(student=STAGES, teacher=STAGES), GAN, VID, MGD, REVIEW, BSS | dict(weight=1.0)]
    biased(teacher)  # for BSS, which draws random targets, as MGD draws masks
    config = classification_config(data, tmp_path / 'whole', epochs=8, **way(teacher, terms))
    config.train_dataloader.batch_size = 24  # six images per class: enough for two that both networks classify right
    whole = train(copy.deepcopy(config))
    config.work_dir = str(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'whole/epoch_4.pth'), True
    resumed = train(config)
    adapters = [core_of(runner).state_dict() for runner in (whole, resumed)]
    if way is by_hook:
        early = saved(tmp_path / 'whole/epoch_1.pth')['distillation']
        learnt = dict(core_of(whole).named_parameters())
        still = {name for name, p in learnt.items() if p.requires_grad and torch.equal(p.cpu(), early[name])}
        assert not still, still
    assert len(adapters[0]) == 6 + 4 + 8 + 8 + 4 * 3 + 3 * 2 + 4 * 3
    assert whole.message_hub.get_scalar('train/loss_bss').data[0][4:].max() > 0
    assert equal(*adapters)
    assert equal(weights(whole.model), weights(resumed.model))


def test_adapters_follow_the_schedule(tmp_path, data, teacher):
    runner = train(classification_config(data, tmp_path / 'run', **by_hook(teacher, [HINT])))
    groups = runner.optim_wrapper.param_groups
    assert groups[-1]['lr'] == pytest.approx(groups[0]['lr'])
    assert groups[-1]['lr'] == pytest.approx(0.005)
    start = saved(tmp_path / 'run/epoch_1.pth')['distillation']
    assert not equal(start, core_of(runner).state_dict())


def test_auto_scale_lr_scales_the_adapters_rate_too(tmp_path, data, teacher):
    config = classification_config(data, tmp_path / 'run', epochs=1, **by_hook(teacher, [HINT]))
    config.auto_scale_lr = dict(enable=True, base_batch_size=32)
    groups = train(config).optim_wrapper.param_groups
    assert groups[-1]['initial_lr'] == pytest.approx(groups[0]['initial_lr']) == pytest.approx(0.05 * 8 / 32)


def test_adapters_are_part_of_every_schedule(tmp_path, data, teacher):
    """The added group, with the optimiser's base rate, is scheduled as if it had been there from the start."""
    rates = []

    class Rates(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            rates.append([group['lr'] for group in runner.optim_wrapper.optimizer.param_groups])

    schedules = dict(
        onecycle=[dict(type='OneCycleLR', eta_max=0.2, total_steps=4, by_epoch=False)],
        plateau=[
            dict(type='LinearLR', start_factor=0.1, end=2, by_epoch=False),
            dict(
                type='ReduceOnPlateauLR',
                monitor='accuracy/top1',
                threshold=100,
                threshold_rule='abs',
                patience=0,
                min_value=1e-3,
            ),
        ],
    )
    for name, schedule in schedules.items():
        for groups in ('one', 'several'):
            config = classification_config(
                data, tmp_path / name, epochs=4, param_scheduler=schedule, **by_hook(teacher, [HINT])
            )
            config.train_dataloader.batch_size = 24
            config.auto_scale_lr = dict(enable=True, base_batch_size=48)
            config.val_dataloader, config.val_cfg = dict(config.train_dataloader), {}
            config.val_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=False)
            config.val_evaluator = dict(type='Accuracy')
            if groups == 'several':
                config.optim_wrapper.paramwise_cfg = dict(custom_keys={'head': dict(lr_mult=0.1)})
            runner = Runner.from_cfg(config)
            runner.register_hook(Rates())
            runner.train()
            expected = [step[0] for step in rates]  # of the backbone's first weight
            assert len(set(expected)) > 2
            assert [step[-1] for step in rates] == pytest.approx(expected)
            rates.clear()


def test_resuming_under_one_cycle(tmp_path, data, teacher):
    config = classification_config(
        data,
        tmp_path / 'whole',
        epochs=3,
        **by_hook(teacher, [HINT]),
        param_scheduler=[dict(type='OneCycleLR', eta_max=0.2, total_steps=9, by_epoch=False)],
    )
    whole = train(copy.deepcopy(config))
    config.work_dir = str(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'whole/epoch_2.pth'), True
    assert equal(weights(whole.model), weights(train(config).model))


def test_two_hooks(tmp_path, data, teacher):
    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [KD]))
    config.custom_hooks = config.custom_hooks * 2
    with pytest.raises(UserError, match=r'put all terms into one, with teacher=\[dict'):
        train(config)


@BOTH
def test_a_tap_inside_a_checkpointed_block_is_refused(tmp_path, data, teacher, way):
    config = classification_config(
        data,
        tmp_path / 'run',
        **way(teacher, [HINT | dict(student='backbone.stage2.0.conv1', teacher='backbone.stage2.0.conv1')], task=False),
    )
    prefix = 'student.' if way is by_model else ''
    config.activation_checkpointing = [f'{prefix}backbone.stage2']
    with pytest.raises(UserError, match=r"term 'hint': no gradient .*with_cp=True"):
        train(config)


@BOTH
def test_schedule_by_epoch_needs_epochs(tmp_path, data, teacher, way):
    config = classification_config(
        data, tmp_path / 'run', **way(teacher, [KD | dict(weight=dict(at=[0, 1], value=[0, 1]))])
    )
    config.train_cfg = dict(by_epoch=False, max_iters=4)
    with pytest.raises(UserError, match="give by='iter' or by='progress'"):
        train(config)


def test_resuming_without_the_adapters_is_refused(tmp_path, data, teacher):
    train(classification_config(data, tmp_path / 'run', epochs=1))
    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [HINT]))
    config.load_from, config.resume = str(tmp_path / 'run/epoch_1.pth'), True
    with pytest.raises(UserError, match='holds no adapters'):
        train(config)


def test_resuming_with_another_adapter_is_refused(tmp_path, data, teacher):
    train(classification_config(data, tmp_path / 'run', epochs=1, **by_hook(teacher, [HINT])))
    other = HINT | dict(student=STAGES[2], teacher=STAGES[2])
    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [other]))
    config.load_from, config.resume = str(tmp_path / 'run/epoch_1.pth'), True
    with pytest.raises(UserError, match='are not those of this config') as error:
        train(config)
    assert '\n' not in str(error.value)


@BOTH
def test_weight_schedule_runs_with_training(tmp_path, data, teacher, way):
    terms = [KD | dict(weight=dict(at=[0, 1, 1], value=[0.0, 0.0, 2.0]))]
    runner = train(classification_config(data, tmp_path / 'run', **way(teacher, terms)))
    values = runner.message_hub.get_scalar('train/loss_kd').data[0]
    assert (values[:3] == 0).all()
    assert (values[3:] > 0).all()


@BOTH
def test_a_schedule_is_that_of_its_own_run_where_several_are_built(tmp_path, data, teacher, way):
    terms = [KD | dict(weight=dict(at=[0, 1], value=[1.0, 0.0], by='progress'))]
    configs = [classification_config(data, tmp_path / name, **way(teacher, terms)) for name in ('a', 'b', 'c')]
    alone = train(configs[0])
    first, _ = (Runner.from_cfg(config) for config in configs[1:])  # a hub is current from when it is built
    first.train()
    values = [runner.message_hub.get_scalar('train/loss_kd').data[0] for runner in (alone, first)]
    assert (values[0] == values[1]).all()


def test_epochs_of_a_run_by_iterations_are_refused_without_a_config(tmp_path, data, teacher):
    """A runner of arguments has no text of its own, which says how its loop counts."""
    terms = [KD | dict(weight=dict(at=[0, 1, 1], value=[1.0, 1.0, 0.0]))]
    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, terms))
    names = ('model', 'work_dir', 'train_dataloader', 'optim_wrapper', 'custom_hooks', 'default_scope')
    for loop, message in ((dict(by_epoch=False, max_iters=2), 'scheduled by epoch'), (dict(max_epochs=1), None)):
        options = dict(train_cfg=loop | ({} if message else dict(by_epoch=True)), experiment_name='arguments')
        runner = Runner(**{name: copy.deepcopy(config[name]) for name in names}, **options)
        with pytest.raises(UserError, match=message) if message else nullcontext():
            runner.train()


@BOTH
@pytest.mark.parametrize(
    'change',
    [
        dict(optim_wrapper=dict(type='kd_plugins.BF16OptimWrapper', optimizer=dict(type='SGD', lr=0.05))),
        dict(optim_wrapper=dict(accumulative_counts=3, optimizer=dict(type='SGD', lr=0.05))),
        dict(default_hooks=dict(layout=dict(type='kd_plugins.ChannelsLastHook'))),
    ],
    ids=['bf16', 'accumulation', 'channels_last'],
)
def test_works_with(tmp_path, data, teacher, way, change):
    config = classification_config(data, tmp_path / 'run', **way(biased(teacher), [KD, NST, AT, HINT, BSS, GAN]))
    start = weights(MODELS.build(classifier()))
    config.merge_from_dict(change)
    runner = train(config)
    assert runner.message_hub.get_scalar('train/loss_bss').data[0].max() > 0
    end = saved(tmp_path / 'run/epoch_2.pth')['state_dict']
    assert end.keys() == start.keys()
    assert all(x.isfinite().all() for x in end.values())


@pytest.mark.parametrize(
    ('way', 'terms', 'task'),
    [(by_hook, [KD, AT, HINT, BSS], 'train'), (by_model, [KD, AT, HINT, BSS], 'train'), (by_hook, [AT], 'off')],
)
def test_compiled_run_trains_the_same(tmp_path, data, teacher, way, terms, task):
    biased(teacher)
    for name, compile_ in (('eager', False), ('compiled', dict(backend='eager'))):
        train(
            classification_config(data, tmp_path / name, epochs=1, **way(teacher, terms, task=task), compile=compile_)
        )
    eager, compiled = (saved(tmp_path / name / 'epoch_1.pth')['state_dict'] for name in ('eager', 'compiled'))
    for key in eager:
        torch.testing.assert_close(eager[key], compiled[key], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not shutil.which('g++'), reason='inductor needs a C++ compiler')
def test_inductor_trains_the_same(tmp_path, data, teacher):
    """``compile=True`` itself, of one loss, since it takes most of a minute."""
    for name, compile_ in (('eager', False), ('compiled', True)):
        config = without_labels(data, tmp_path / name, by_hook, teacher, [NST], backbone_alone(), compile=compile_)
        config.train_cfg.max_epochs = 1
        train(config)
    eager, compiled = (saved(tmp_path / name / 'epoch_1.pth')['state_dict'] for name in ('eager', 'compiled'))
    for key in eager:
        torch.testing.assert_close(eager[key], compiled[key], rtol=1e-4, atol=1e-5)


def test_accumulation_equals_the_large_batch(tmp_path, data, teacher):
    """With KD, a mean over samples, three small batches accumulate the gradient of a large one (no BatchNorm)."""
    results = []
    for name, batch, count in (('small', 8, 3), ('large', 24, 1)):
        config = classification_config(data, tmp_path / name, epochs=1, **by_hook(teacher, [KD]))
        config.train_dataloader.batch_size = batch
        config.train_dataloader.sampler.shuffle = False
        config.train_dataloader.dataset.pipeline.pop(1)
        config.optim_wrapper.accumulative_counts = count
        config.optim_wrapper.optimizer.momentum = 0
        runner = Runner.from_cfg(config)
        runner.register_hook(Moves())
        for module in runner.model.modules():  # BatchNorm's statistics depend on the batch
            if isinstance(module, torch.nn.BatchNorm2d):
                module.forward = lambda x: x
        runner.train()
        results.append(runner.model.head.fc.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_several_optimisers_are_refused(tmp_path, data, teacher):
    config = classification_config(data, tmp_path / 'run', **by_hook(teacher, [KD]))
    runner = Runner.from_cfg(config)
    parts = {
        name: OptimWrapper(torch.optim.SGD(getattr(runner.model, name).parameters(), lr=0.1))
        for name in ('backbone', 'head')
    }
    runner.optim_wrapper = OptimWrapperDict(**parts)
    runner.param_schedulers = None
    with pytest.raises(UserError, match='needs one optimiser'):
        runner.train()


def test_only_testing_builds_no_teacher(tmp_path, data):
    config = classification_config(data, tmp_path / 'run', **by_hook(dict(config='none.py', checkpoint='none'), [KD]))
    loader = dict(config.train_dataloader)
    loader['sampler'] = dict(type='DefaultSampler', shuffle=False)
    config.test_dataloader, config.test_cfg, config.test_evaluator = loader, {}, dict(type='Accuracy')
    assert 'accuracy/top1' in Runner.from_cfg(config).test()


def test_stock_mmpretrain_config_gains_distillation(tmp_path, data):
    def config(name):
        config = get_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py')
        own = classification_config(data, tmp_path / name)
        for key in ('train_dataloader', 'train_cfg', 'work_dir', 'experiment_name', 'randomness', 'log_level'):
            config[key] = own[key]
        config.model.head.num_classes = config.data_preprocessor.num_classes = 4
        config.val_dataloader = config.val_cfg = config.val_evaluator = None
        config.test_dataloader = config.test_cfg = config.test_evaluator = None
        return config

    stock = train(config('teacher'))
    distilled = config('run')
    distilled.custom_hooks = [
        dict(
            type='kd_plugins.DistillationHook',
            teacher=dict(
                config=Config(dict(model=stock.cfg.model)).model.to_dict()
                | dict(_scope_='mmpretrain', data_preprocessor=stock.cfg.data_preprocessor.to_dict()),
                checkpoint=str(tmp_path / 'teacher/epoch_2.pth'),
            ),
            terms=[
                dict(
                    name='nst',
                    loss=dict(type='kd_plugins.NSTLoss'),
                    student='backbone.layer4',
                    teacher='backbone.layer4',
                    weight=50.0,
                )
            ],
        )
    ]
    runner = train(distilled)
    assert runner.message_hub.get_scalar('train/loss_nst').data[0].max() > 0
    assert list(saved(tmp_path / 'run/epoch_2.pth')['state_dict']) == list(stock.model.state_dict())


def test_stock_mmdet_config_gains_distillation_on_backbone_and_fpn(tmp_path):
    data = coco_folder(tmp_path / 'coco')
    teacher = train(stock_detector(data, tmp_path / 'teacher'))
    config = stock_detector(data, tmp_path / 'run')
    config.custom_hooks = [
        dict(
            type='kd_plugins.DistillationHook',
            teacher=dict(
                config=config.model.to_dict() | dict(_scope_='mmdet'), checkpoint=str(tmp_path / 'teacher/epoch_1.pth')
            ),
            terms=[
                dict(
                    name='nst',
                    loss=dict(type='kd_plugins.NSTLoss'),
                    student='backbone.layer3',
                    teacher='backbone.layer3',
                    weight=10.0,
                ),
                dict(name='fpn', loss=dict(type='kd_plugins.ATLoss'), student='neck', teacher='neck', weight=1.0),
                dict(
                    name='head',
                    loss=dict(type='kd_plugins.FitNetLoss'),
                    student='bbox_head.retina_cls',
                    teacher='bbox_head.retina_cls',
                    weight=0.1,
                ),
            ],
        )
    ]
    runner = train(config)
    for name in ('nst', 'fpn', 'head'):
        assert runner.message_hub.get_scalar(f'train/loss_{name}').data[0].max() > 0
    assert list(saved(tmp_path / 'run/epoch_1.pth')['state_dict']) == list(teacher.model.state_dict())


@BOTH
def test_two_teachers(tmp_path, data, teacher, way):
    (tmp_path / 'other').mkdir()
    teachers = [teacher, saved_teacher(tmp_path / 'other', depth=8, width=6)]
    terms = [KD, HINT, NST | dict(teachers=[0])]
    runner = train(classification_config(data, tmp_path / 'run', **way(teachers, terms)))
    networks = [x.model for x in core_of(runner).teachers]
    for network, config in zip(networks, teachers, strict=True):
        assert equal(network.state_dict(), saved(config['checkpoint'])['state_dict'])
    assert [x.out_channels for x in core_of(runner).terms[1].adapters] == [8, 12]
    checkpoint = saved(tmp_path / 'run/epoch_2.pth')['state_dict']
    assert list(checkpoint) == list(MODELS.build(classifier()).state_dict())
    train(classification_config(data, tmp_path / 'first', **way(teachers[:1], [KD, HINT, NST])))
    assert not equal(checkpoint, saved(tmp_path / 'first/epoch_2.pth')['state_dict'])


@BOTH
def test_hints_alone_and_then_the_task(tmp_path, data, teacher, way):
    class Start(Hook):
        def before_train(self, runner):
            states.append(weights(getattr(runner.model, 'student', runner.model)))

    states = []
    config = classification_config(
        data,
        tmp_path / 'stage1',
        epochs=6,
        default_hooks=dict(export=dict(type='kd_plugins.ExportHook')),
        **way(teacher, [HINT], task=False),
    )
    config.optim_wrapper.optimizer.weight_decay = 0.1
    runner = Runner.from_cfg(config)
    runner.register_hook(Start())
    runner.train()
    (start,), end = states, saved(tmp_path / 'stage1/student.pth')['state_dict']
    above = [
        name
        for name, _ in MODELS.build(classifier()).named_parameters()
        if name.startswith(('backbone.stage3', 'head'))
    ]
    assert len(above) > 5
    assert all(torch.equal(start[name], end[name]) for name in above)
    assert not torch.equal(start['backbone.stem.0.weight'], end['backbone.stem.0.weight'])
    hints = runner.message_hub.get_scalar('train/loss_hint').data[0]
    assert hints[-3:].mean() < 0.9 * hints[:3].mean()
    assert (runner.message_hub.get_scalar('train/loss').data[0] > hints).all()  # the task's loss is still computed

    second = classification_config(
        data, tmp_path / 'stage2', epochs=1, load_from=str(tmp_path / 'stage1/student.pth'), **way(teacher, [KD])
    )
    runner = Runner.from_cfg(second)
    runner.register_hook(Start())
    runner.train()
    assert equal(states[1], end)
    trained = saved(tmp_path / 'stage2/epoch_1.pth')['state_dict']
    assert not any(torch.equal(trained[name], end[name]) for name in above if name.endswith('weight'))


@pytest.mark.parametrize(
    'change',
    [
        {},
        dict(optim_wrapper=dict(type='kd_plugins.BF16OptimWrapper', optimizer=dict(type='SGD', lr=0.05))),
        dict(optim_wrapper=dict(accumulative_counts=3, optimizer=dict(type='SGD', lr=0.05))),
        dict(default_hooks=dict(ema=dict(type='EMAHook'))),
        dict(cached=True),
    ],
    ids=['plain', 'bf16', 'accumulation', 'ema', 'cache'],
)
def test_a_backbone_learns_without_labels(tmp_path, data, teacher, change, monkeypatch):
    """Both ways train the same, and the student runs once a step, in mode tensor."""
    passes = []
    forward = ImageClassifier.forward

    def counted(self, inputs, data_samples=None, mode='tensor'):
        if torch.is_grad_enabled():
            passes.append(mode)
            assert all('gt_label' not in sample for sample in data_samples)
        return forward(self, inputs, data_samples, mode)

    monkeypatch.setattr(ImageClassifier, 'forward', counted)
    change = dict(change)
    if change.pop('cached', False):
        teacher = teacher | dict(cache=str(tmp_path / 'cache'))
    states = []
    for name, way in dict(hook=by_hook, model=by_model).items():
        config = without_labels(data, tmp_path / name, way, teacher, [AT, NST, HINT, GAN], backbone_alone())
        config.merge_from_dict(change)
        runner = train(config)
        assert {x for x in runner.message_hub.log_scalars if 'loss' in x} == {
            f'train/{x}' for x in ('loss', 'loss_at', 'loss_nst', 'loss_hint', 'loss_gan')
        }
        states.append(saved(tmp_path / name / 'student.pth')['state_dict'])
    assert passes == ['tensor'] * 12
    assert equal(*states)
    start = MODELS.build(backbone_alone()).state_dict()
    assert states[0].keys() == start.keys()
    assert all(key.startswith('backbone.') for key in start)


@BOTH
def test_what_labels_would_not_change(tmp_path, data, teacher, way):
    """Where terms reach all of the backbone, training without the task equals training with its losses logged."""
    for task in ('log', 'off'):
        train(classification_config(data, tmp_path / task, **way(teacher, [AT, HINT], task=task)))
    assert equal(*(saved(tmp_path / task / 'epoch_2.pth')['state_dict'] for task in ('log', 'off')))


@BOTH
def test_layers_after_the_last_tap_stay_as_they_were(tmp_path, data, teacher, way):
    """Their BatchNorm statistics too, which change where the task's losses are logged."""
    changed = {}
    for task in ('log', 'off'):
        train(classification_config(data, tmp_path / task, **way(teacher, [HINT], task=task)))
        first, last = (saved(tmp_path / task / f'epoch_{epoch}.pth')['state_dict'] for epoch in (1, 2))
        changed[task] = {key for key in first if not torch.equal(first[key], last[key])}
    after = {key for key in changed['log'] if key.startswith('backbone.stage3')}
    assert len(after) == 6
    assert all('running' in key or 'num_batches' in key for key in after)
    assert changed['off'] == changed['log'] - after


@BOTH
def test_resuming_without_labels(tmp_path, data, teacher, way):
    config = without_labels(data, tmp_path / 'whole', way, teacher, [AT, HINT], backbone_alone(), epochs=4)
    whole = train(copy.deepcopy(config))
    config.work_dir = str(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'whole/epoch_2.pth'), True
    resumed = train(config)
    assert equal(*(core_of(runner).state_dict() for runner in (whole, resumed)))
    assert equal(*(saved(tmp_path / name / 'student.pth')['state_dict'] for name in ('whole', 'resumed')))


@BOTH
def test_a_loss_of_labels_without_the_task(tmp_path, data, teacher, way):
    config = classification_config(data, tmp_path / 'run', epochs=1, **way(biased(teacher), [KD, BSS], task='off'))
    runner = train(copy.deepcopy(config))
    assert runner.message_hub.get_scalar('train/loss_bss').data[0].max() > 0
    config.train_dataloader.dataset.with_label = False
    with pytest.raises(UserError, match=r"term 'bss': BSSLoss needs images of one class each, .* got None"):
        train(config)


@BOTH
def test_no_labels_but_a_head(tmp_path, data, teacher, way):
    """A head that no term taps neither learns nor limits the classes of the data."""
    student = classifier()
    student['head']['num_classes'] = 2
    config = without_labels(data, tmp_path / 'run', way, teacher, [NST], student)
    config.train_dataloader.dataset.pop('with_label')
    config.train_dataloader.dataset.metainfo = dict(classes=tuple('abcd'))
    train(config)
    first, last = (saved(tmp_path / f'run/epoch_{epoch}.pth')['state_dict'] for epoch in (1, 2))
    assert torch.equal(first['head.fc.weight'], last['head.fc.weight'])
    assert not torch.equal(first['backbone.stem.0.weight'], last['backbone.stem.0.weight'])


@BOTH
def test_a_student_without_a_head_is_not_validated(tmp_path, data, teacher, way):
    config = without_labels(data, tmp_path / 'run', way, teacher, [NST], backbone_alone())
    config.val_dataloader = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    config.val_cfg, config.val_evaluator = {}, dict(type='Accuracy')
    with pytest.raises(UserError, match='the student has no head, so that it cannot predict in a validation'):
        train(config)


@BOTH
@pytest.mark.parametrize('kind', ['MutualLearning', 'NativeEnsemble'])
def test_networks_that_learn_from_each_other_need_the_task(tmp_path, data, teacher, way, kind):
    student = dict(type=f'kd_plugins.{kind}', student=classifier())
    term = NST | dict(student=f'student.{STAGES[2]}')
    config = without_labels(data, tmp_path / 'run', way, teacher, [term], student)
    with pytest.raises(UserError, match=f"{kind}: its networks learn from each other by the losses that task='off'"):
        train(config)


def test_a_backbone_is_no_model(tmp_path, data, teacher):
    student = dict(type='mmpretrain.ResNet', depth=18)
    with pytest.raises(
        UserError,
        match=r"give student=dict\(type='mmpretrain.ImageClassifier', backbone=dict\(type='mmpretrain.ResNet'",
    ):
        train(classification_config(data, tmp_path / 'run', **by_model(teacher, [NST], student, task='off')))


NARROW = dict(depth=18, base_channels=8, stem_channels=8)
STOCK = {kind: dict(type=f'{kind}.ResNet', **NARROW) for kind in ('mmpretrain', 'mmdet')}
STUDENTS = {
    'mmpretrain': dict(STOCK['mmpretrain'], out_indices=(0, 1, 2, 3)),
    'mmdet': dict(STOCK['mmdet'], norm_eval=False),
    'timm': dict(
        type='mmpretrain.TIMMBackbone', model_name='test_resnet', features_only=True, out_indices=(1, 2, 3, 4)
    ),
}


@BOTH
@pytest.mark.parametrize('kind', STUDENTS)
def test_a_backbone_loads_into_stock_models(tmp_path, teacher, way, kind):
    """Tensor for tensor: mmengine only logs those that do not fit."""
    if kind == 'timm':
        pytest.importorskip('timm')
    tap = 'backbone.timm_model.layer3' if kind == 'timm' else 'backbone.layer3'
    data = image_folder(tmp_path / 'data', size=64)
    terms = [dict(name='nst', loss=dict(type='kd_plugins.NSTLoss'), student=tap, teacher=STAGES[2], weight=50.0)]
    runner = train(
        without_labels(data, tmp_path / 'run', way, teacher, terms, backbone_alone(STUDENTS[kind]), epochs=1)
    )
    student = saved(path := tmp_path / 'run/student.pth')['state_dict']
    assert equal(student, {f'backbone.{x}': y for x, y in weights(runner.model.backbone).items()})

    def backbone(package, **more):
        given = STUDENTS[kind] if kind == 'timm' else STOCK[package]
        return given | dict(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'), **more)

    detector = stock_detector(tmp_path, tmp_path / 'detector').model
    detector.backbone, detector.neck.in_channels = backbone('mmdet'), [8, 16, 32, 64]
    stock = get_config('mmpretrain::resnet/resnet18_8xb32_in1k.py').model
    stock.backbone, stock.head.in_channels = backbone('mmpretrain'), 64
    for package, config in dict(mmdet=detector, mmpretrain=stock).items():
        with MODELS.switch_scope_and_registry(package) as registry:
            model = registry.build(config)
            before = weights(model.backbone)
            model.init_weights()
        assert not equal(before, weights(model.backbone))
        assert equal(student, {f'backbone.{x}': y for x, y in weights(model.backbone).items()})
    assert len(student) > 50


@pytest.mark.parametrize('taps', [['backbone.layer3', 'neck'], ['backbone', 'rpn_head.rpn_cls']])
def test_a_detector_learns_without_annotations(tmp_path, taps):
    """It runs to its last tap: the rest of a two-stage detector gets no gradient, and may need annotations."""
    data = image_folder(tmp_path / 'data', images=4, size=64)
    config = stock_detector(data, tmp_path)
    config.model = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    config.model.backbone.update(NARROW, norm_eval=False, init_cfg=None)
    config.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    config.model.rpn_head.update(in_channels=16, feat_channels=16)
    config.model.roi_head.bbox_roi_extractor.out_channels = 16
    config.model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=16)
    config.train_dataloader.batch_sampler = None  # which needs the images' sizes
    config.train_dataloader.dataset = dict(
        type='mmpretrain.CustomDataset',
        data_root=str(data),
        with_label=False,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackDetInputs')],
    )
    config.default_hooks = dict(reseed=dict(type='kd_plugins.ReseedHook'), export=dict(type='kd_plugins.ExportHook'))
    network = config.model.to_dict()
    distillation = dict(
        teacher=dict(config=copy.deepcopy(network), checkpoint=None),
        terms=[
            dict(name=tap, loss=dict(type='kd_plugins.NSTLoss'), student=tap, teacher=tap, weight=10.0) for tap in taps
        ],
        task='off',
    )
    ways = dict(
        hook=dict(custom_hooks=[dict(type='kd_plugins.DistillationHook', **distillation)]),
        model=dict(
            model=dict(type='kd_plugins.Distiller', student=network, input_shape=(3, 64, 64), **distillation),
        ),
    )
    states = []
    for name, way in ways.items():
        own = Config(copy.deepcopy(config.to_dict() | way))
        own.work_dir, own.experiment_name = str(tmp_path / name), f'{tmp_path}{name}'.replace('/', '_')
        runner = Runner.from_cfg(own)
        head = getattr(runner.model, 'student', runner.model).roi_head.bbox_head
        head.register_forward_pre_hook(lambda *_: pytest.fail('ran') if torch.is_grad_enabled() else None)
        runner.train()
        for tap in taps:
            assert (runner.message_hub.get_scalar(f'train/loss_{tap}').data[0] > 0).all()
        states.append(saved(tmp_path / name / 'student.pth')['state_dict'])
    assert equal(*states)
    MODELS.build(Config(dict(model=dict(network, _scope_='mmdet'))).model).load_state_dict(states[0])
