"""The native ensemble against plain loops, its sharing, a real run; data-parallel is in ``test_mutual_learning.py``."""

import copy
import itertools
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from tiny import CLASSES, classification_config, classifier, equal, image_folder, reid_config, train, weights
from torch import nn

from kd_plugins.checkpoint import load_weights, read_checkpoint
from kd_plugins.errors import UserError
from kd_plugins.hooks import PretrainedCheckHook
from kd_plugins.models import NativeEnsemble
from kd_plugins.registry import MODELS

HOOKS = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
RESNET_PARTS = ('backbone.conv1', 'backbone.bn1', 'backbone.layer1', 'backbone.layer2', 'backbone.layer3')


def resnet(style='ResNet', **backbone):
    """Return one of mmpretrain's residual networks, with a pooling between its stem and its stages."""
    return classifier() | dict(
        backbone=dict(type=style, depth=18, stem_channels=8, base_channels=8, **backbone),
        head=classifier()['head'] | dict(in_channels=64),
    )


def build(**options):
    torch.manual_seed(1)
    model = NativeEnsemble(**dict(student=classifier(), ramp=0) | options)
    model.init_weights()
    for module in model.modules():  # so that the predictions of the branches and the gates differ
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, 0.5)
    return model


def batch(dtype=torch.float32, size=16, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(5, 3, size, size, generator=generator).to(dtype),
        [DataSample().set_gt_label(i % CLASSES) for i in range(5)],
    )


def softmax(row, tau=1.0):
    powers = [torch.exp(x / tau) for x in row]
    return [x / sum(powers) for x in powers]


def looped(model, images, labels, weight, tau):
    """Return the ensemble's logits and the losses, sample by sample, with the gate's BatchNorm as plain loops."""
    backbone, n, k = model.student.backbone, len(images), len(model.branches) + 1
    trunk = backbone.stage2(backbone.stage1(backbone.stem(images)))
    logits = [net.head.fc(net.backbone.stage3(trunk).mean((2, 3))) for net in (model.student, *model.branches)]
    linear, norm = model.gate[2], model.gate[3]
    scores = [
        [
            sum(linear.weight[b, c] * trunk[i, c].mean() for c in range(trunk.shape[1])) + linear.bias[b]
            for b in range(k)
        ]
        for i in range(n)
    ]
    for b in range(k):
        mean = sum(scores[i][b] for i in range(n)) / n
        variance = sum((scores[i][b] - mean) ** 2 for i in range(n)) / n
        for i in range(n):
            x = (scores[i][b] - mean) / torch.sqrt(variance + norm.eps) * norm.weight[b] + norm.bias[b]
            scores[i][b] = x if x > 0 else 0 * x
    names = ['loss_ensemble', *(f'{name}_{b}' for name in ('loss', 'loss_kl', 'gate') for b in range(k))]
    ensemble, losses = [], dict.fromkeys(names, 0)
    for i in range(n):
        gates = softmax(scores[i])
        for b in range(k):
            losses[f'gate_{b}'] += gates[b] / n
        ensemble.append([sum(gates[b] * logits[b][i, c] for b in range(k)) for c in range(CLASSES)])
        losses['loss_ensemble'] -= torch.log(softmax(ensemble[i])[labels[i]]) / n
        target = softmax([x.detach() for x in ensemble[i]], tau)
        for b in range(k):
            losses[f'loss_{b}'] -= torch.log(softmax(logits[b][i])[labels[i]]) / n
            losses[f'loss_kl_{b}'] += (
                weight
                * tau**2
                / n
                * sum(
                    p * (torch.log(p) - torch.log(q)) for p, q in zip(target, softmax(logits[b][i], tau), strict=True)
                )
            )
    return torch.stack([torch.stack(row) for row in ensemble]), losses


def test_losses_and_gradients_are_those_of_plain_loops():
    model = build(weight=0.7, tau=2.0).double()
    images, samples = batch(torch.float64)
    losses = model(images, samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    _, expected = looped(model, images, [int(s.gt_label) for s in samples], 0.7, 2.0)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss > 1e-2
        torch.testing.assert_close(loss, expected[name], rtol=1e-10, atol=0)
    sum(loss for name, loss in expected.items() if 'loss' in name).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-12)
        # A bias before a BatchNorm has a gradient of rounding errors only.
        assert (gradients[name].abs().max() > 1e-6) == (name != 'gate.2.bias'), name


@pytest.mark.parametrize(
    ('student', 'shared'),
    [
        (classifier(), ('backbone.stem', 'backbone.stage1', 'backbone.stage2')),
        (
            classifier()
            | dict(
                backbone=dict(type='kd_plugins.WideResNet', depth=10, widen_factor=1),
                head=classifier()['head'] | dict(in_channels=64),
            ),
            ('backbone.stem', 'backbone.stage1'),
        ),
        (resnet(), RESNET_PARTS),
        (resnet('ResNet_CIFAR', norm_eval=True), RESNET_PARTS[:3]),
    ],
    ids=['CifarResNet', 'WideResNet', 'ResNet', 'ResNet_CIFAR'],
)
def test_a_branch_with_the_students_weights_is_the_student(student, shared):
    model = build(student=student, shared=shared).eval()
    own = model.student.state_dict()
    for branch in model.branches:
        assert not any(key.startswith(shared) for key in branch.state_dict())
        branch.load_state_dict({key: own[key] for key in branch.state_dict()})
    images, samples = batch(size=64)
    before = images.clone()
    losses = model(images, samples, mode='loss')
    assert losses['loss_0'] == losses['loss_1'] == losses['loss_2']
    assert losses['loss_kl_0'].abs() < 1e-5  # the ensemble of equal branches equals each of them
    assert torch.equal(images, before)
    plain = MODELS.build(student)
    plain.load_state_dict(own)
    assert losses['loss_0'] == plain.eval()(images, samples, mode='loss')['loss']


def test_the_shared_part_exists_and_runs_once():
    model = build()
    plain = MODELS.build(classifier())
    plain.load_state_dict(model.student.state_dict())

    def size(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    own = size(plain.backbone.stage3, plain.head)
    assert size(model) == size(plain) + 2 * own + size(model.gate)
    images, samples = batch()
    calls = []
    model.student.backbone.stage1.register_forward_hook(lambda *_: calls.append(1))
    model(images, samples, mode='loss')
    plain(images, samples, mode='loss')
    assert len(calls) == 1
    assert equal(weights(model.student), weights(plain))  # with the running statistics
    assert plain.backbone.stem[1].num_batches_tracked == 1
    assert model.gate[3].num_batches_tracked == 1


def test_a_tied_norm_is_one_for_all_branches():
    wide = classifier() | dict(
        backbone=dict(type='kd_plugins.WideResNet', depth=10, widen_factor=1),
        head=classifier()['head'] | dict(in_channels=64),
    )
    model = build(student=wide, tied=('backbone.norm',)).double()
    assert [key for key in model.state_dict() if 'backbone.norm.weight' in key] == ['student.backbone.norm.weight']
    images, samples = batch(torch.float64)
    twin = copy.deepcopy(model)
    losses = model(images, samples, mode='loss')
    assert model.student.backbone.norm.num_batches_tracked == 3
    assert twin.student.backbone.norm.num_batches_tracked == 0  # the branches of a copy run the copy's norm
    sum(losses[f'loss_{n}'] for n in range(3)).backward()

    backbone, labels = twin.student.backbone, torch.tensor([int(s.gt_label) for s in samples])
    trunk = backbone.stage2(backbone.stage1(backbone.stem(images)))
    for n, net in enumerate((twin.student, *twin.branches)):
        feature = backbone.relu(backbone.norm(net.backbone.stage3(trunk)))
        loss = nn.functional.cross_entropy(net.head.fc(feature.mean((2, 3))), labels)
        torch.testing.assert_close(losses[f'loss_{n}'], loss)
        loss.backward(retain_graph=True)
    assert equal(weights(model.student), weights(twin.student))
    torch.testing.assert_close(model.student.backbone.norm.weight.grad, backbone.norm.weight.grad)

    model.student.backbone.norm = nn.Identity()  # as mmengine replaces it by a SyncBatchNorm
    assert torch.equal(model.branches[0].backbone.norm(images), images)


def test_predictions_of_branch_and_ensemble():
    images, samples = batch(torch.float64)
    model = build(predict='ensemble').double()
    expected, _ = looped(model, images, [0] * 5, 1.0, 3.0)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)
    predictions = model.eval()(images, samples, mode='predict')
    assert torch.equal(torch.stack([x.pred_score for x in predictions]), model(images).softmax(1))
    assert all(x.pred_label == x.pred_score.argmax() for x in predictions)
    student = build().double().eval()
    student.load_state_dict(model.state_dict())
    student.branches[0].forward = None
    assert torch.equal(student(images), student.student(images))
    predictions = student(images, mode='predict')
    assert torch.equal(torch.stack([x.pred_score for x in predictions]), student.student(images).softmax(1))
    assert not torch.allclose(student(images), model(images))


@pytest.mark.parametrize(
    ('options', 'weight'),
    [
        (dict(ramp=80 / 300), lambda epoch: math.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)),
        (dict(ramp=80 / 300, weight=0.5), lambda epoch: 0.5 * math.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)),
        (dict(ramp=0, weight=2), lambda epoch: 2.0),
        (dict(ramp=0, weight=dict(at=[0, 100], value=[4, 1])), lambda epoch: 4 - 0.03 * min(epoch, 100)),
    ],
)
def test_weight_follows_the_authors_ramp(options, weight, monkeypatch):
    model = NativeEnsemble(student=classifier(), **options)
    info = dict(max_iters=3000, max_epochs=300, loop_stage='train')
    hub = SimpleNamespace(get_info=lambda key, default: info.get(key, default))
    monkeypatch.setitem(MessageHub._instance_dict, 'ramp', hub)
    for epoch in (0, 1, 40, 80, 200, 300):
        info['iter'] = 10 * epoch
        assert model.current_weight() == pytest.approx(weight(epoch))


def test_trains_by_iterations_on_images_of_one_channel(tmp_path):
    data = image_folder(tmp_path / 'data')
    student = resnet(in_channels=1) | dict(data_preprocessor=dict(mean=[120.0], std=[60.0], num_classes=CLASSES))
    model = dict(type='kd_plugins.NativeEnsemble', student=student, shared=RESNET_PARTS, input_shape=(1, 32, 32))
    config = classification_config(data, tmp_path / 'run', model, param_scheduler=[])
    config.train_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    config.train_cfg = dict(by_epoch=False, max_iters=4)
    runner = train(config)
    assert runner.iter == 4
    assert runner.message_hub.get_scalar('train/loss_kl_0').current() > 0


class InitialWeights(Hook):
    def before_train(self, runner):
        self.weights = weights(runner.model)


def test_run_starts_as_the_students_and_resumes_bit_for_bit(tmp_path):
    data = image_folder(tmp_path / 'data')

    def config(name, model, epochs=4):
        return classification_config(data, tmp_path / name, model, epochs, default_hooks=HOOKS)

    ensemble = dict(type='kd_plugins.NativeEnsemble', student=classifier(), ramp=0.5)
    starts = []
    for name, model in (('plain', classifier()), ('whole', ensemble)):
        runner = Runner.from_cfg(config(name, model))
        runner.register_hook(hook := InitialWeights())
        runner.train()
        starts.append(hook.weights)
    final, (plain, whole) = runner.model, starts
    assert equal(plain, {key.removeprefix('student.'): x for key, x in whole.items() if key.startswith('student.')})
    parts = [whole[f'{net}.backbone.stage3.0.conv1.weight'] for net in ('student', 'branches.0', 'branches.1')]
    assert not any(torch.equal(parts[a], parts[b]) for a, b in ((0, 1), (0, 2), (1, 2)))

    resumed = config('resumed', ensemble)
    resumed.load_from, resumed.resume = str(tmp_path / 'whole/epoch_2.pth'), True
    assert equal(weights(train(resumed).model), weights(final))
    ends = [read_checkpoint(tmp_path / run / 'ensemble.pth')['state_dict'] for run in ('whole', 'resumed')]
    assert equal(*ends)
    assert equal(ends[0], weights(final))
    student = MODELS.build(classifier())
    load_weights(student, tmp_path / 'whole/student.pth')
    images, _ = batch()
    assert torch.equal(student.eval()(images), final.eval()(images))


def test_resumed_run_equals_the_uninterrupted_one_under_ema(tmp_path):
    data = image_folder(tmp_path / 'data')

    def config(name):
        model = dict(type='kd_plugins.NativeEnsemble', student=classifier(), ramp=0.5)
        averages = [dict(type='EMAHook', momentum=0.2)]
        return classification_config(data, tmp_path / name, model, 4, default_hooks=HOOKS, custom_hooks=averages)

    whole = train(config('whole')).model
    resumed = config('resumed')
    resumed.load_from, resumed.resume = str(tmp_path / 'whole/epoch_2.pth'), True
    assert equal(weights(train(resumed).model), weights(whole))
    for name, last in (('student', whole.student), ('ensemble', whole)):
        ends = [read_checkpoint(tmp_path / run / f'{name}.pth')['state_dict'] for run in ('whole', 'resumed')]
        assert equal(*ends)
        assert ends[0].keys() == weights(last).keys()
        assert not equal(ends[0], weights(last))  # the average


def test_accumulated_gradients_are_the_mean_of_the_batches():
    """The statistics of each BatchNorm are its batch's own; the gradients are those of the weights before the step."""
    model = build()
    plain = copy.deepcopy(model)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), accumulative_counts=2)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for step, seed in enumerate(range(4), 1):
        images, samples = batch(seed=seed)
        model.train_step(dict(inputs=100 * images, data_samples=samples), wrapper)
        inputs = plain.data_preprocessor(dict(inputs=100 * images, data_samples=samples), True)
        (sum(plain(**inputs, mode='loss').values()) / 2).backward()
        if step % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-4, atol=1e-6)
    assert not equal(weights(model), weights(build()))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(shared=('backbone.stage2',)), "a branch has weights of its own before 'backbone.stage2'"),
        (
            dict(shared=('backbone.stem', 'backbone.stage2', 'backbone.stage1')),
            "a branch has weights of its own before 'backbone.stage2'",
        ),
        (dict(shared=('backbone.stem', 'backbone.stage2')), "a branch cannot continue from 'backbone.stage2'"),
        (dict(shared=('backbone.layer1',)), "no module 'backbone.layer1' to tap; nearest names: "),
        (dict(shared=()), 'shared is empty: name the modules'),
        (dict(tied=('backbone.norm',)), "no module 'backbone.norm'"),
        (dict(tied=('backbone.stage2.0',)), "'backbone.stage2.0' is tied, but shared contains it or a part of it"),
        (dict(shared=('backbone', 'neck')), r"but 'neck' outputs \(1, 16\)"),
        (dict(student=reid_config('', '').model), "one of mmpretrain's heads, got a ReIDHead in a ReIDModel"),
        (dict(branches=1), 'branches: expected a whole number of at least 2'),
        (dict(tau=0), 'tau: expected'),
        (dict(predict='all'), "predict: expected one of 'branch', 'ensemble'"),
        (dict(weight='1'), 'weight: expected'),
        (dict(ramp=-1), 'ramp: expected'),
        (dict(ramp=80), r'ramp: expected a part of the training, from 0 to 1, as 80 / 300, got 80'),
        (dict(tap='head.fx'), "no module 'head.fx'"),
        (dict(input_shape=(1, 16, 16)), r'the student takes no images of input_shape=\(1, 16, 16\) .*the data'),
        (dict(input_shape=(3, 16)), r'input_shape is \(3, 16\), expected the \(C, H, W\) of the images'),
    ],
)
def test_errors_of_options(options, message):
    with pytest.raises(ValueError, match=message):
        NativeEnsemble(**dict(student=classifier()) | options)
    if 'shared' in options:
        with pytest.raises(UserError):
            NativeEnsemble(**dict(student=classifier()) | options)


def test_branches_start_from_random_weights_where_the_student_is_pretrained(tmp_path):
    source = MODELS.build(dict(resnet()['backbone'], _scope_='mmpretrain'))
    torch.save({'state_dict': {f'backbone.{name}': x for name, x in source.state_dict().items()}}, tmp_path / 'net.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'net.pth'), prefix='backbone.')
    model = NativeEnsemble(resnet(init_cfg=init), shared=RESNET_PARTS)
    model.init_weights()
    last = 'layer4.1.conv2.weight'
    weights = [net.backbone.state_dict()[last] for net in (model.student, *model.branches)]
    assert torch.equal(weights[0], source.state_dict()[last])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))
    logger = logging.getLogger('test')
    PretrainedCheckHook().before_train(SimpleNamespace(iter=0, _load_from=None, model=model, logger=logger))


def test_a_batch_of_one_image_is_refused():
    model = NativeEnsemble(classifier())
    with pytest.raises(UserError, match='drop_last=True'):
        model(torch.zeros(1, 3, 16, 16), [DataSample().set_gt_label(0)], mode='loss')


@pytest.mark.parametrize('shared', [('backbone.conv1', 'backbone.bn1'), RESNET_PARTS])
def test_the_layer_behind_the_shared_part_may_write_in_place(shared):
    torch.manual_seed(0)
    model = NativeEnsemble(student=resnet(), shared=shared, ramp=0)
    images, samples = torch.randn(4, 3, 64, 64), [DataSample().set_gt_label(i) for i in range(4)]
    for branch in model.branches:
        own = dict(model.student.named_parameters())
        for name, parameter in branch.named_parameters():
            parameter.data.copy_(own[name].data)
    seen = []
    model.gate.register_forward_hook(lambda gate, args, output: seen.append(args[0].min() < 0))
    losses = model.train()(images, samples, mode='loss')
    assert seen == [shared is not RESNET_PARTS]  # what the module is named for, and not the ReLU behind it
    torch.testing.assert_close(losses['loss_1'], losses['loss_0'])
    torch.testing.assert_close(losses['loss_2'], losses['loss_0'])
    model.parse_losses(losses)[0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_weight_that_rises_follows_a_run():
    model = build(ramp=0.5)
    with pytest.raises(UserError, match='a weight that changes over time follows a runner, and none trains'):
        model(torch.randn(2, 3, 16, 16), [DataSample().set_gt_label(1)] * 2, mode='loss')
