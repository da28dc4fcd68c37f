"""Whole runs on the device under test, and a step on a GPU that is simulated."""

import copy
from functools import partial

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmpretrain.structures import DataSample
from tiny import (
    CLASSES,
    classification_config,
    classifier,
    equal,
    image_folder,
    market_folder,
    reid_config,
    saved_teacher,
    train,
    weights,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kd_plugins.datasets import BatchedImages
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.hooks import DistillationHook
from kd_plugins.registry import DATASETS, MODELS
from kd_plugins.utils.random import preserved_rng

STAGES = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3']


def term(name, taps, loss, **more):
    return dict(name=name, student=taps, teacher=taps, loss=dict(type=f'kd_plugins.{loss.pop("type")}', **loss), **more)


def all_terms():
    return [
        term('kd', 'head.fc', dict(type='KDLoss')),
        term('lskd', 'head.fc', dict(type='KDLoss', standardize=True), weight=0.1),
        term('dkd', 'head.fc', dict(type='DKDLoss'), weight=0.1),
        term('nkd', 'head.fc', dict(type='NKDLoss'), weight=0.1),
        term('dist', 'head.fc', dict(type='DISTLoss'), weight=0.1),
        term('hint', STAGES, dict(type='FitNetLoss'), adapter='auto'),
        term('at', STAGES, dict(type='ATLoss')),
        term('fsp', STAGES[:2], dict(type='FSPLoss'), weight=0.01),
        term('sp', STAGES[1], dict(type='SPLoss')),
        term('rkd', 'neck', dict(type='RKDLoss'), weight=0.1),
        term('pkt', 'neck', dict(type='PKTLoss'), weight=100.0),
        term('vid', STAGES[1], dict(type='VIDLoss'), weight=0.1),
        term('crd', 'neck', dict(type='CRDLoss', dim=8, negatives=16), weight=0.1),
        term('nst', STAGES[2], dict(type='NSTLoss')),
        term('pkd', STAGES, dict(type='PKDLoss'), weight=0.1),
        term('cwd', STAGES, dict(type='CWDLoss'), weight=0.1),
        term('mgd', STAGES[2], dict(type='MGDLoss'), weight=1e-4),
        term('reviewkd', [*STAGES, 'neck.gap'], dict(type='ReviewKDLoss'), adapter='abf', weight=0.1),
        term('gan', STAGES[2], dict(type='NSTGANLoss', hidden=8)),
        term('gaussian', STAGES[2], dict(type='NSTLoss', kernel='gaussian')),
        term('bss', 'head.fc', dict(type='BSSLoss', attack_size=4, steps=2)),
    ]


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / 'data')


@pytest.fixture
def teacher(tmp_path):
    """A teacher with another normalisation, which predicts class 1 for most images, so that a student may agree."""
    config = saved_teacher(tmp_path) | dict(data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3))
    checkpoint = torch.load(config['checkpoint'])
    checkpoint['state_dict']['head.fc.bias'][1] += 3
    torch.save(checkpoint, config['checkpoint'])
    return config


@pytest.fixture
def half(device, monkeypatch):
    """The data type of scaled gradients: float16; on a CPU, where mmengine scales none, bfloat16."""
    if device.type != 'cpu':
        return 'float16'
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    return 'bfloat16'


def distilled(data, folder, teacher, terms=None, **more):
    hook = dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms or all_terms())
    return classification_config(data, folder, custom_hooks=[hook], **more)


def trained(runner):
    """Return a run's weights, and those of its adapters and critics."""
    hook = next(hook for hook in runner.hooks if isinstance(hook, DistillationHook))
    return weights(runner.model) | {f'distillation.{k}': v for k, v in weights(hook.distillation).items()}


def test_scaled_gradients_train_as_plain_ones_do(data, teacher, tmp_path, device, half):
    results = []
    for scale in (1.0, 2.0**10):
        config = distilled(data, tmp_path / str(scale), teacher, epochs=1)
        config.optim_wrapper.update(type='AmpOptimWrapper', dtype=half, loss_scale=scale, clip_grad=dict(max_norm=1.0))
        results.append(trained(train(config)))
    plain, scaled = results
    assert len([name for name in plain if name.startswith('distillation')]) == 6 + 4 + 4 + 7 + 4 + 30
    for name in plain:  # a power of 2 does not round in bfloat16; in float16 it keeps small gradients
        torch.testing.assert_close(scaled[name], plain[name], rtol=0.02, atol=1e-6 if half == 'bfloat16' else 2e-3)


def test_a_resumed_run_with_a_gradient_scaler_ends_as_the_straight_one(data, teacher, tmp_path, device, half):
    config = distilled(data, tmp_path / 'straight', teacher)
    config.optim_wrapper.update(
        type='AmpOptimWrapper', dtype=half, loss_scale=dict(init_scale=1024.0, growth_interval=2), accumulative_counts=2
    )  # the third batch of an epoch is accumulated with the first of the next
    config.default_hooks.accumulation = dict(type='kd_plugins.AccumulationHook')
    straight = train(copy.deepcopy(config))
    state = straight.optim_wrapper.optimizer.state
    groups = straight.optim_wrapper.param_groups
    assert {p.device.type for group in groups for p in group['params']} == {device.type}
    assert {x['momentum_buffer'].device.type for x in state.values()} == {device.type}
    assert len(groups[-1]['params']) == 6 + 4 + 4 + 4 + 4 + 30
    config.work_dir = str(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'straight/epoch_1.pth'), True
    resumed = train(config)
    assert equal(trained(resumed), trained(straight))
    assert resumed.optim_wrapper.loss_scaler.get_scale() == straight.optim_wrapper.loss_scaler.get_scale() == 2048
    assert all(value.isfinite().all() for value in trained(straight).values())


def test_two_runs_channels_last_in_bfloat16_are_equal(data, teacher, tmp_path, device):
    results = []
    for name in ('first', 'second'):
        config = distilled(data, tmp_path / name, teacher | dict(bf16=True), epochs=1)
        config.optim_wrapper.type = 'kd_plugins.BF16OptimWrapper'
        config.default_hooks.layout = dict(type='kd_plugins.ChannelsLastHook')
        config.custom_hooks.append(dict(type='EMAHook'))
        runner = train(config)
        assert {p.device.type for p in runner.model.parameters()} == {device.type}
        maps = [p for p in runner.model.parameters() if p.dim() == 4]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in maps)
        results.append(trained(runner))
    assert equal(*results)
    assert runner.message_hub.get_scalar('train/loss_bss').data[0].max() > 0


@DATASETS.register_module()
class Squares:
    """Images whose brightness depends on their class."""

    metainfo = dict(classes=tuple(map(str, range(CLASSES))))

    def __len__(self):
        return 24

    def get_data_info(self, i):
        image = torch.randint(120, (16, 16, 3), generator=torch.Generator().manual_seed(i)) + 40 * (i % CLASSES)
        return dict(img=image.to(torch.uint8).numpy(), gt_label=i % CLASSES)


def test_images_and_labels_are_on_the_device_where_they_are_stored():
    images = BatchedImages(dict(type='kd_plugins.Squares'), padding=2, flip_prob=0.5, device='meta')
    images.set_epoch(0, 0)
    batch = images.__getitems__([3, 1])
    assert batch['inputs'].is_meta
    assert all(sample.gt_label.is_meta for sample in batch['data_samples'])


def test_images_stored_on_the_device_train_with_cached_features(data, teacher, tmp_path, device):
    def run(name, storage, **cache):
        config = distilled(data, tmp_path / name, teacher | cache, all_terms()[:-1], epochs=2)
        config.train_dataloader.collate_fn = dict(type='kd_plugins.whole_batch')
        config.train_dataloader.dataset = dict(
            type='kd_plugins.BatchedImages',
            dataset=dict(type='kd_plugins.Squares'),
            padding=2,
            flip_prob=0.5,
            device=storage,
            replay=1,
        )
        return trained(train(config))

    plain, stored = run('plain', 'cpu'), run('stored', str(device))
    cached = run('cached', str(device), cache=str(tmp_path))
    assert equal(plain, stored)
    for name in plain:  # features may come from another batch
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-3, atol=1e-4)


def test_cached_features_are_on_the_device(teacher, tmp_path, device):
    taps, images = ['head.fc', 'backbone.stage2'], torch.randn(5, 3, 16, 16).to(device)
    network = Teacher(build_teacher(**teacher), taps, None, str(tmp_path / 'cache'))
    network.apply(lambda x: x.to(device))
    for half in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            first, again = network(images, None), network(images.flip(0), None)
        for tap in taps:
            assert first[tap][0].device == again[tap][0].device == images.device
            assert again[tap][0].dtype == (torch.bfloat16 if half else torch.float32)
            assert torch.equal(first[tap][0].flip(0), again[tap][0])


def test_preserved_rng_restores_the_state_of_the_device(device):
    torch.rand(1, device=device)
    torch.manual_seed(3)
    expected = torch.rand(4, device=device)
    torch.manual_seed(3)
    with preserved_rng():
        torch.rand(9, device=device)
    assert torch.equal(torch.rand(4, device=device), expected)


@pytest.mark.parametrize(
    'model',
    [
        dict(type='kd_plugins.MutualLearning', peers=1),
        dict(type='kd_plugins.NativeEnsemble', branches=2),
        dict(type='kd_plugins.MutualLearning', update='alternating'),
    ],
    ids=lambda x: x.get('update', x['type']),
)
def test_networks_that_learn_together(data, tmp_path, device, half, model):
    config = classification_config(data, tmp_path / 'run', dict(model, student=classifier()), epochs=1)
    config.optim_wrapper.update(type='AmpOptimWrapper', dtype=half)
    runner = train(config)
    assert {p.device.type for p in runner.model.parameters()} == {device.type}
    assert all(value.isfinite().all() for value in weights(runner.model).values())


def test_re_identification_trains_and_is_evaluated(tmp_path, device):
    runner = train(reid_config(market_folder(tmp_path / 'data'), tmp_path / 'run', epochs=2))
    assert {p.device.type for p in runner.model.parameters()} == {device.type}
    assert 0 < runner.message_hub.get_scalar('val/reid/mAP').current() <= 1


class Synchronisations(TorchDispatchMode):
    """Counts how often the CPU reads a number from the GPU, and returns False each time."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device.type == 'cuda':
            self.count += 1
            return False
        return function(*args, **(kwargs or {}))


REID = dict(
    type='kd_plugins.ReIDModel',
    backbone=dict(type='kd_plugins.CifarResNet', depth=8, width=4),
    last_stride=2,
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3),
    head=dict(type='kd_plugins.ReIDHead', num_classes=CLASSES, in_channels=16),
)


@pytest.mark.parametrize(
    'model',
    [
        dict(type='kd_plugins.Distiller', input_shape=(3, 16, 16)),
        dict(type='kd_plugins.MutualLearning', peers=1),
        dict(type='kd_plugins.NativeEnsemble'),
        REID,
    ],
    ids=lambda x: x['type'],
)
def test_a_step_mixes_no_devices_and_synchronises_once_at_most(teacher, model, hub):
    """With all terms but BSS, whose number of images depends on the predictions.

    The one synchronisation is the check for a NaN; in ReIDHead the check of the labels, which would crash a GPU.
    """
    if model['type'].endswith('Distiller'):
        model = model | dict(teacher=teacher, terms=all_terms()[:-1])
    network = MODELS.build(model if model is REID else dict(model, student=classifier()))
    if hasattr(network, 'distillation'):
        network.distillation.set_num_samples(24)
    fake = FakeTensorMode()  # tensors with a device and without values

    def moved(tensor):
        tensor = fake.from_tensor(tensor)
        with fake:
            return torch.empty_like(tensor, device='cuda')

    network._apply(moved)
    network._set_device(torch.device('cuda'))
    with fake, Synchronisations() as synchronisations:
        batch = dict(
            inputs=torch.zeros(4, 3, 16, 16, dtype=torch.uint8),
            data_samples=[
                DataSample(metainfo=dict(sample_idx=i)).set_gt_label(torch.tensor([i])) for i in range(CLASSES)
            ],
        )
        inputs = network.data_preprocessor(batch, True)
        network.parse_losses(network(**inputs, mode='loss'))  # of the first step alone the values are logged
        synchronisations.count = 0
        losses = network(**inputs, mode='loss')
        total, _ = network.parse_losses(losses)
    assert total.device.type == 'cuda'
    assert all(loss.device.type == 'cuda' for loss in losses.values())
    assert synchronisations.count <= 1
