"""Mutual learning against plain loops, separate networks and stock runs; data-parallel for both online models."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
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
from torch import nn

from kd_plugins.checkpoint import load_weights, read_checkpoint
from kd_plugins.errors import UserError
from kd_plugins.functional import kd_loss
from kd_plugins.models import MutualLearning, NativeEnsemble
from kd_plugins.registry import MODELS

HOOKS = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))


@MODELS.register_module()
class DropoutPooling(nn.Module):
    """A neck that draws random numbers in training."""

    def forward(self, feats):
        return (nn.functional.dropout(feats[-1].mean((2, 3)), 0.3, self.training),)


def cohort(**options):
    torch.manual_seed(1)
    model = MutualLearning(student=classifier(), **options)
    model.init_weights()
    for module in model.modules():  # so that the predictions of the networks differ
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    return model


@pytest.mark.parametrize('model', [MutualLearning, NativeEnsemble])
def test_independent_classes_are_compared_each_by_itself(monkeypatch, model):
    """An image may have several; a softmax over them is noted, once."""
    said = []
    monkeypatch.setattr('kd_plugins.distillation.samples.print_log', lambda text, *_: said.append(text))
    student = classifier()
    student['head'] = dict(
        type='MultiLabelLinearClsHead', num_classes=CLASSES, in_channels=student['head']['in_channels']
    )
    options = {} if model is MutualLearning else dict(ramp=0, branches=2)
    images, samples = torch.randn(4, 3, 16, 16), [DataSample().set_gt_label([0, 2]) for _ in range(4)]
    for use_sigmoid in (False, True):
        torch.manual_seed(1)
        network = model(student=student, use_sigmoid=use_sigmoid, **options).train()
        for head in (x for x in network.modules() if isinstance(x, nn.Linear)):
            nn.init.normal_(head.weight)
        for _ in range(2):
            losses = network(images, samples, mode='loss')
        own = network.student(images)
        if model is MutualLearning:
            other = network.peers[0](images)
        else:
            network.predict_with = 'ensemble'
            other = network(images)
        expected = kd_loss(own, other, 1.0 if model is MutualLearning else 3.0, use_sigmoid=use_sigmoid)
        torch.testing.assert_close(losses['loss_kl_0'], expected)
    (note,) = said
    assert note.startswith(f'{model.__name__} compares a softmax, whose classes exclude each other, but images have')


def batches(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return [
        dict(
            inputs=100 + 50 * torch.randn(4, 3, 16, 16, generator=generator).to(dtype),
            data_samples=[DataSample().set_gt_label((i + j) % CLASSES) for i in range(4)],
        )
        for j in range(count)
    ]


def networks_of(model):
    return [model.student, *model.peers]


def looped_loss(own, others, labels, weight, tau):
    """Return cross entropy plus the mean divergence from the others, sample by sample and class by class."""

    def probabilities(row, tau):
        powers = [torch.exp(x / tau) for x in row]
        return [x / sum(powers) for x in powers]

    total = 0
    for row in range(len(labels)):
        total = total - torch.log(probabilities(own[row], 1)[labels[row]])
        for other in others:
            p, q = probabilities(other[row].detach(), tau), probabilities(own[row], tau)
            total = total + weight / len(others) * tau**2 * sum(
                a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True)
            )
    return total / len(labels)


def test_losses_and_gradients_are_those_of_plain_loops():
    model = cohort(peers=2, tau=2.0, weight=0.7).double()
    (data,) = batches(1, torch.float64)
    labels = [int(sample.gt_label) for sample in data['data_samples']]
    plain = copy.deepcopy(networks_of(model))
    losses = model(**data, mode='loss')
    assert set(losses) == {f'{name}_{i}' for i in range(3) for name in ('loss', 'loss_kl')}
    model.parse_losses(losses)[0].backward()
    logits = [network(data['inputs']) for network in plain]
    for i, network in enumerate(plain):
        expected = looped_loss(logits[i], [x for j, x in enumerate(logits) if j != i], labels, 0.7, 2.0)
        assert losses[f'loss_kl_{i}'] > 0.1
        torch.testing.assert_close(losses[f'loss_{i}'] + losses[f'loss_kl_{i}'], expected, rtol=1e-10, atol=0)
        expected.backward(retain_graph=True)
        for own, other in zip(networks_of(model)[i].parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-8, atol=1e-12)


class Dropped(nn.Module):
    """A neck with dropout that keeps its masks."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def forward(self, levels):
        x = levels[-1].mean((2, 3))
        self.masks.append(nn.functional.dropout(torch.ones_like(x)))
        return (x * self.masks[-1],)


def test_the_dropout_of_a_peer_changes_from_step_to_step(tmp_path, data):
    """Also where the student draws nothing; and it is the same again in a resumed run."""

    def run(name, resume=None):
        model = dict(type='kd_plugins.MutualLearning', student=classifier())
        config = classification_config(data, tmp_path / name, model=model, epochs=2)
        config.load_from, config.resume = resume and str(resume), resume is not None
        runner = Runner.from_cfg(config)
        runner.model.peers[0].neck = dropped = Dropped()
        runner.train()
        return dropped.masks

    whole = run('whole')
    assert len(whole) == 6
    assert not any(torch.equal(x, y) for i, x in enumerate(whole) for y in whole[:i])
    assert all(map(torch.equal, run('resumed', tmp_path / 'whole/epoch_1.pth'), whole[3:]))


@pytest.mark.parametrize(
    ('optimizer', 'counts'),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3), 1),
        (torch.optim.Adam, 1),
        (torch.optim.Adam, 2),
    ],
)
def test_joint_step_is_that_of_separate_optimisers_at_the_same_time(optimizer, counts):
    model = cohort(peers=2)
    plain = copy.deepcopy(networks_of(model))
    together = OptimWrapper(optimizer(model.parameters()), accumulative_counts=counts)
    apart = [optimizer(network.parameters()) for network in plain]
    for step, data in enumerate(batches(4), 1):
        model.train_step(data, together)
        inputs, samples = model.data_preprocessor(data, True).values()
        logits = [network(inputs) for network in plain]
        for i in range(3):
            task = plain[i].head._get_loss(logits[i], samples)['loss']  # first: gradients add up in that order
            others = [kd_loss(logits[i], logits[j], 1.0) for j in range(3) if j != i]
            ((task + 0.5 * sum(others)) / counts).backward()
        if step % counts == 0:
            for one in apart:
                one.step()
                one.zero_grad()
    assert all(equal(weights(a), weights(b)) for a, b in zip(networks_of(model), plain, strict=True))
    assert not equal(weights(plain[0]), weights(plain[1]))


def test_alternating_is_the_papers_algorithm():
    model = cohort(peers=2, update='alternating').double()
    joint = cohort(peers=2).double()
    plain = copy.deepcopy(networks_of(model))
    wrappers = [OptimWrapper(torch.optim.SGD(x.parameters(), 0.1, momentum=0.9)) for x in (model, joint)]
    apart = [torch.optim.SGD(network.parameters(), 0.1, momentum=0.9) for network in plain]
    for data in batches(3, torch.float64):
        log = model.train_step(data, wrappers[0])
        joint.train_step(data, wrappers[1])
        inputs, samples = model.data_preprocessor(data, True).values()
        labels = torch.cat([sample.gt_label for sample in samples])
        for i, (network, optimizer) in enumerate(zip(plain, apart, strict=True)):
            # Each peer's current predictions in training mode, by a copy, which leaves its statistics unchanged.
            targets = [copy.deepcopy(peer)(inputs).softmax(1).detach() for peer in plain if peer is not network]
            logits = network(inputs)
            task = nn.functional.cross_entropy(logits, labels)
            divergence = sum((p * (p.log() - logits.log_softmax(1))).sum(1).mean() for p in targets) / 2
            assert log[f'loss_{i}'].item() == pytest.approx(task.item(), rel=1e-9)
            assert log[f'loss_kl_{i}'].item() == pytest.approx(divergence.item(), rel=1e-9)
            optimizer.zero_grad()
            (task + divergence).backward()
            optimizer.step()
    assert log['loss'].item() == pytest.approx(sum(value.item() for key, value in log.items() if key != 'loss'))
    for own, other, rival in zip(networks_of(model), plain, networks_of(joint), strict=True):
        own, other = weights(own), weights(other)
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)
        assert own['backbone.stem.1.num_batches_tracked'] == 3
        assert (own['head.fc.weight'] - weights(rival)['head.fc.weight']).abs().max() > 1e-4


def test_alternating_refuses_what_it_cannot_do(tmp_path):
    model = cohort(update='alternating')
    (data,) = batches(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UserError, match='without gradient accumulation'):
        model.train_step(data, OptimWrapper(optimizer, accumulative_counts=2))
    config = classification_config(
        image_folder(tmp_path / 'data'),
        tmp_path / 'run',
        dict(type='kd_plugins.MutualLearning', student=classifier(), update='alternating'),
        1,
        custom_hooks=[
            dict(
                type='kd_plugins.DistillationHook',
                teacher=saved_teacher(tmp_path),
                terms=[
                    dict(name='kd', loss=dict(type='kd_plugins.KDLoss'), student='student.head.fc', teacher='head.fc')
                ],
            )
        ],
    )
    with pytest.raises(UserError, match=r"DistillationHook adds its terms.*update='joint'"):
        train(config)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp('data'))


def test_at_weight_0_the_student_trains_as_alone(tmp_path, data):
    """Same initial weights, batches and dropout, though no ReseedHook sets the random states."""
    student = classifier() | dict(neck=dict(type='kd_plugins.DropoutPooling'))
    alone = train(classification_config(data, tmp_path / 'alone', student, default_hooks={}))
    runs = {
        weight: train(
            classification_config(
                data,
                tmp_path / f'cohort{weight}',
                dict(type='kd_plugins.MutualLearning', student=student, peers=2, weight=weight),
                default_hooks={},
            )
        ).model
        for weight in (0, 1)
    }
    assert equal(weights(runs[0].student), weights(alone.model))
    assert not equal(weights(runs[1].student), weights(alone.model))
    first, *others = (network.backbone.stage3[0].conv1.weight for network in networks_of(runs[0]))
    assert all((first - other).abs().max() > 0.1 for other in others)


@pytest.mark.parametrize('update', ['joint', 'alternating'])
def test_resumed_run_equals_the_uninterrupted_one_under_ema(tmp_path, data, update):
    def config(name):
        return classification_config(
            data,
            tmp_path / name,
            dict(type='kd_plugins.MutualLearning', student=classifier(), update=update),
            4,
            default_hooks=HOOKS,
            custom_hooks=[dict(type='EMAHook', momentum=0.2)],
        )

    whole = train(config('whole'))
    resumed = config('resumed')
    resumed.load_from, resumed.resume = str(tmp_path / 'whole/epoch_2.pth'), True
    assert equal(weights(train(resumed).model), weights(whole.model))
    for name in ('student', 'peer1'):
        ends = [read_checkpoint(tmp_path / run / f'{name}.pth')['state_dict'] for run in ('whole', 'resumed')]
        assert equal(*ends)
    assert not equal(ends[0], weights(whole.model.peers[0]))  # the average


@pytest.mark.parametrize('kind', ['MutualLearning', 'NativeEnsemble'])
def test_compiled_run_trains_the_same(tmp_path, data, kind):
    model = dict(type=f'kd_plugins.{kind}', student=classifier())
    eager, compiled = (
        weights(train(classification_config(data, tmp_path / name, model, 1, compile=compile_)).model)
        for name, compile_ in (('eager', False), ('compiled', dict(backend='eager')))
    )
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_reidentification(tmp_path):
    folder = market_folder(tmp_path / 'market')
    plain = reid_config(folder, tmp_path / 'run', epochs=1).model
    config = reid_config(
        folder,
        tmp_path / 'run',
        epochs=1,
        default_hooks=HOOKS,
        model=dict(type='kd_plugins.MutualLearning', student=plain),
    )
    runner = train(config)
    logged = runner.message_hub.log_scalars
    assert {f'train/{name}_{i}' for name in ('loss_id', 'loss_triplet', 'loss_kl') for i in (0, 1)} <= set(logged)
    student = MODELS.build(plain)
    load_weights(student, tmp_path / 'run/student.pth')
    images = torch.randn(2, 3, 32, 16)
    predictions = [model.eval()(images, mode='predict') for model in (student, runner.model)]
    assert all(torch.equal(a.feature, b.feature) for a, b in zip(*predictions, strict=True))


def test_peers_of_another_architecture():
    model = MutualLearning(student=classifier(), peers=[classifier(14), classifier(8, 8)])
    (data,) = batches(1)
    losses = model(**data, mode='loss')
    assert len(losses) == 6
    split = model.deployable(model.state_dict())
    assert list(split) == ['student', 'peer1', 'peer2']
    assert [
        split[name].keys() == MODELS.build(config).state_dict().keys()
        for name, config in zip(split, (classifier(), classifier(14), classifier(8, 8)), strict=True)
    ] == [True] * 3


def test_student_alone_predicts():
    model = cohort().eval()
    model.peers[0].forward = None
    (data,) = batches(1)
    expected = model.student(data['inputs'])
    assert torch.equal(model(data['inputs']), expected)
    predictions = model(**data, mode='predict')
    assert torch.equal(torch.stack([x.pred_score for x in predictions]), expected.softmax(1))


def other_classes():
    config = classifier()
    return config | dict(head=config['head'] | dict(num_classes=CLASSES + 1))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(peers=[]), 'at least one peer'),
        (dict(peers=0), 'peers: expected a whole number of at least 1, got 0'),
        (dict(tap='head.fx'), r"no module 'head.fx' to tap; nearest names: head.fc"),
        (
            dict(peers=[classifier() | dict(data_preprocessor=dict(mean=[0.0] * 3, std=[1.0] * 3))]),
            'remove data_preproc',
        ),
        (dict(update='both'), "update: expected one of 'joint', 'alternating'"),
        (dict(tau=0), 'tau: expected'),
        (dict(weight=-1), 'weight: expected'),
    ],
)
def test_errors_of_options(options, message):
    with pytest.raises(ValueError, match=message):
        MutualLearning(student=classifier(), **options)


@pytest.mark.parametrize('options', [dict(peers=[other_classes()]), dict(tap='backbone')])
def test_logits_of_different_shapes_are_an_error(options):
    model = MutualLearning(student=classifier(), **options)
    if 'tap' in options:
        model.peers[0].backbone.stage3.add_module('pool', nn.MaxPool2d(2))
    (data,) = batches(1)
    with pytest.raises(UserError, match=r'logits of the same shape in all networks, got \[\(4, '):
        model(**data, mode='loss')


@pytest.fixture(scope='module')
def ranks(tmp_path_factory, two_processes):
    folder = tmp_path_factory.mktemp('online_parallel')
    image_folder(folder / 'images')
    two_processes('online_parallel.py', folder)
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('name', ['mutual', 'ensemble'])
class TestDataParallel:
    def test_every_gradient_is_that_of_the_global_batch(self, ranks, name):
        expected = ranks[0]['alone'][name]
        assert all(gradient.abs().max() > 0 for gradient in expected.values())
        for rank in ranks:
            torch.testing.assert_close(rank['together'][name], expected, rtol=1e-9, atol=1e-14)
        halves = [rank['own'][name]['loss_kl_0'] for rank in ranks]
        assert halves[0] != pytest.approx(halves[1], rel=1e-3)

    def test_ranks_of_a_real_run_end_with_the_same_weights(self, ranks, name):
        runs = [rank['real'][name] for rank in ranks]
        assert [run['iterations'] for run in runs] == [3, 3]
        assert equal(*(run['parameters'] for run in runs))


def test_alternating_under_data_parallel_is_refused(ranks):
    assert all(
        rank['alternating'].startswith("MutualLearning: update='alternating' works in train_step") for rank in ranks
    )


def test_in_a_loop_of_ones_own_the_peers_draws_change_after_a_run_too():
    MessageHub.get_instance('ended').update_info('iter', 7)  # a run leaves its last iteration
    student = classifier()
    student['head'] = dict(student['head'], type='StackedLinearClsHead', mid_channels=[64], dropout_rate=0.5)
    model = MutualLearning(student=student, tap='head.layers.1.fc').train()
    images, samples = torch.randn(4, 3, 16, 16), [DataSample().set_gt_label(1) for _ in range(4)]
    assert len({model(images, samples, mode='loss')['loss_1'].item() for _ in range(4)}) == 4
