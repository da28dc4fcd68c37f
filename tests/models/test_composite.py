"""Networks inside a model keep their own keys; a Distiller's other attributes are the student's."""

import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from tiny import classification_config, classifier, equal, image_folder, saved_teacher, train, weights

from kd_plugins.checkpoint import load_weights
from kd_plugins.errors import UserError
from kd_plugins.hooks import IntegrityHook
from kd_plugins.registry import MODELS

HINT = dict(
    name='hint',
    loss=dict(type='kd_plugins.FitNetLoss'),
    student='backbone.stage2',
    teacher='backbone.stage2',
    adapter='auto',
)


class Renaming(ImageClassifier):
    """Removes ``backbone.`` from its keys, as mmpretrain's wrapper of timm removes a prefix; works without one only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._register_state_dict_hook(
            lambda module, state_dict, prefix, metadata: OrderedDict(
                (key.removeprefix('backbone.'), value) for key, value in state_dict.items()
            )
        )
        self._register_load_state_dict_pre_hook(self._to_own)

    @staticmethod
    def _to_own(state_dict, *_):
        for key in [key for key in state_dict if not key.startswith('head.')]:
            state_dict[f'backbone.{key}'] = state_dict.pop(key)


def student():
    return classifier() | dict(type=Renaming)


def model_of(kind, folder):
    if kind == 'Distiller':
        return dict(
            type='kd_plugins.Distiller',
            student=student(),
            input_shape=(3, 16, 16),
            teacher=saved_teacher(folder),
            terms=[HINT],
        )
    return dict(type=f'kd_plugins.{kind}', student=student())


@pytest.mark.parametrize('kind', ['Distiller', 'MutualLearning', 'NativeEnsemble'])
def test_a_network_that_renames_its_keys(tmp_path, kind):
    data, hooks = (
        image_folder(tmp_path / 'data'),
        {name: dict(type=f'kd_plugins.{name}Hook') for name in ('Integrity', 'Export', 'Reseed')},
    )
    config = classification_config(data, tmp_path / 'whole', model=model_of(kind, tmp_path), default_hooks=hooks)
    config.custom_hooks = [dict(type='EMAHook')]
    whole = train(copy.deepcopy(config))
    config.work_dir = str(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'whole/epoch_1.pth'), True
    resumed = train(copy.deepcopy(config))
    assert equal(weights(whole.model), weights(resumed.model))
    averaged = [next(x for x in runner.hooks if hasattr(x, 'ema_model')).ema_model for runner in (whole, resumed)]
    assert equal(*(weights(model) for model in averaged))
    assert not equal(weights(averaged[0].module), weights(whole.model))

    alone = MODELS.build(student())
    assert next(iter(alone.state_dict())) == 'stem.0.weight'
    load_weights(alone, tmp_path / 'whole/student.pth')
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(alone.eval()(images), averaged[0].module.student.eval()(images))

    checkpoint = torch.load(tmp_path / 'whole/epoch_1.pth', weights_only=False)
    key = next(key for key in checkpoint['state_dict'] if key.endswith('stem.0.weight'))
    checkpoint['state_dict'][f'{key}_of_another'] = checkpoint['state_dict'].pop(key)
    torch.save(checkpoint, tmp_path / 'other.pth')
    config.load_from, config.custom_hooks = str(tmp_path / 'other.pth'), []
    with pytest.raises(UserError, match=r'a run cannot resume from .*stem\.0\.weight is missing; .* is left over'):
        train(config)


def test_attributes_are_the_students(tmp_path):
    """As ``YOLOXModeSwitchHook``, ``SetEpochInfoHook`` and DenseCL's hook use them."""

    class Switch(Hook):
        def before_train_epoch(self, runner):
            assert not hasattr(runner.model, 'detector')
            runner.model.head.use_l1 = True
            runner.model.loss_lambda += 1.0
            runner.model.own = 1

    config = classification_config(
        image_folder(tmp_path / 'data'), tmp_path / 'run', model=model_of('Distiller', tmp_path)
    )
    runner = Runner.from_cfg(config)
    runner.model.student.loss_lambda = 0.0
    runner.register_hook(Switch())
    runner.train()
    network = runner.model.student
    assert network.head.use_l1
    assert network.loss_lambda == 2
    assert not hasattr(network, 'own')
    other = copy.deepcopy(runner.model)
    other.loss_lambda = 5
    assert (network.loss_lambda, other.student.loss_lambda) == (2, 5)
    with pytest.raises(AttributeError, match="'Renaming' object has no attribute 'nothing'"):
        runner.model.nothing  # noqa: B018


def test_an_infinite_weight_is_found_under_any_name(tmp_path):
    model = MODELS.build(model_of('Distiller', tmp_path))
    with torch.no_grad():
        model.student.head.fc.weight[0] = torch.inf
    with pytest.raises(UserError, match=r'head\.fc\.weight is not finite after iteration 3'):
        IntegrityHook().before_save_checkpoint(
            SimpleNamespace(model=model, iter=3), dict(state_dict=model.state_dict())
        )


class Annotated(ImageClassifier):
    """Needs annotations before its head, in any mode."""

    def extract_feat(self, inputs, stage='neck', data_samples=None):
        feature = super().extract_feat(inputs, stage)
        return feature if data_samples is None else data_samples[0].gt_instances

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.extract_feat(inputs, data_samples=data_samples))


def test_random_images_have_no_annotations(tmp_path):
    model = model_of('Distiller', tmp_path)
    model['student']['type'] = Annotated
    MODELS.build(model)
    model['terms'] = [HINT | dict(student='head.fc', teacher='head.fc')]
    with pytest.raises(UserError, match=r"input_shape=\(3, 16, 16\) failed \(AttributeError: .*'gt_instances'\)"):
        MODELS.build(model)


def test_an_error_inside_a_loss_is_not_blamed_on_the_images(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, student, teacher):
            return student.maen()

    with pytest.raises(AttributeError, match='maen'):
        MODELS.build(model_of('Distiller', tmp_path) | dict(terms=[HINT | dict(loss=dict(type=Broken))]))


@pytest.mark.parametrize(
    'options', [dict(type='Distiller', teacher={}, terms=[]), dict(type='MutualLearning'), dict(type='NativeEnsemble')]
)
def test_a_student_that_is_a_network_is_refused(options):
    options = dict(shared=['0'], **options) if options['type'] == 'NativeEnsemble' else options
    with pytest.raises(
        UserError, match=r'student must be the config dict of .*, got Sequential\( \(0\): ReLU\(\) \): '
    ):
        MODELS.get(options.pop('type'))(student=torch.nn.Sequential(torch.nn.ReLU()), **options)


def test_a_student_with_its_own_train_step_is_refused(tmp_path):
    class Stepping(ImageClassifier):
        def train_step(self, data, optim_wrapper):
            raise AssertionError

    model = model_of('Distiller', tmp_path)
    model['student']['type'] = Stepping
    with pytest.raises(UserError, match=r'Stepping has a train_step of its own, .*: use DistillationHook'):
        MODELS.build(model)


def test_layers_have_the_students_depth():
    backbone = dict(type='VisionTransformer', arch='deit-tiny', img_size=32, patch_size=16)
    alone = classifier() | dict(
        backbone=backbone, neck=None, head=dict(type='VisionTransformerClsHead', num_classes=4, in_channels=192)
    )
    term = HINT | dict(student='head', teacher='head')
    model = MODELS.build(
        dict(
            type='kd_plugins.Distiller',
            student=alone,
            teacher=dict(config=alone, checkpoint=None),
            terms=[term],
            input_shape=(3, 32, 32),
        )
    )
    depths = {name: model.get_layer_depth(name)[0] for name, _ in model.named_parameters()}
    assert depths['student.backbone.patch_embed.projection.weight'] == 0
    assert depths['student.backbone.layers.3.ln1.weight'] == 4
    assert depths['distillation.terms.0.adapters.0.weight'] == depths['student.head.layers.head.weight'] == 13


def test_a_distiller_whose_teacher_is_cached_is_saved_whole(tmp_path):
    teacher = dict(saved_teacher(tmp_path), cache=str(tmp_path / 'cache'))
    options = dict(student=classifier(), teacher=teacher, terms=[HINT], input_shape=(3, 16, 16))
    distiller = MODELS.build(dict(type='kd_plugins.Distiller', **options)).eval()
    images, samples = torch.randn(2, 3, 16, 16), [DataSample().set_gt_label(1)] * 2

    def loss(network):
        data = network.data_preprocessor(dict(inputs=images * 60 + 120, data_samples=samples))
        return network(**data, mode='loss')['loss_hint'].item()

    before = loss(distiller)
    torch.save(distiller, tmp_path / 'whole.pth')
    assert loss(torch.load(tmp_path / 'whole.pth', weights_only=False)) == before
    assert loss(distiller) == before
