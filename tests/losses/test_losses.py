from contextlib import nullcontext
from math import log

import pytest
import torch

from kd_plugins import functional as F
from kd_plugins import losses
from kd_plugins.registry import MODELS

MAPS = (
    torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)),
    torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2)),
)
VECTORS = tuple(x.mean((2, 3)) for x in MAPS)
LABELLED = (*VECTORS, torch.tensor([2, 0, 1, 2]))
PAIRS = tuple((x, x.square()) for x in MAPS)

CASES = [
    ('KDLoss', {}, F.kd_loss, VECTORS),
    ('KDLoss', {'tau': 2.0}, F.kd_loss, VECTORS),
    ('KDLoss', {'tau': 2.0, 'standardize': True}, F.kd_loss, VECTORS),
    ('KDLoss', {'tau': 2.0, 'use_sigmoid': True}, F.kd_loss, VECTORS),
    ('NKDLoss', {}, F.nkd_loss, LABELLED),
    ('NKDLoss', {'gamma': 3.5, 'tau': 3.0}, F.nkd_loss, LABELLED),
    ('DISTLoss', {}, F.dist_loss, VECTORS),
    ('DISTLoss', {'beta': 2.0, 'gamma': 0.5, 'tau': 4.0, 'eps': 0.1}, F.dist_loss, VECTORS),
    ('DKDLoss', {}, F.dkd_loss, LABELLED),
    ('DKDLoss', {'alpha': 0.5, 'beta': 2.0, 'tau': 1.0}, F.dkd_loss, LABELLED),
    ('FitNetLoss', {}, F.fitnet_loss, MAPS),
    ('FitNetLoss', {'reduction': 'sum'}, F.fitnet_loss, MAPS),
    ('ATLoss', {}, F.at_loss, MAPS),
    ('ATLoss', {'convention': 'code', 'p': 1}, F.at_loss, MAPS),
    ('BSSLoss', {}, F.bss_loss, VECTORS),
    ('BSSLoss', {'tau': 1.5}, lambda s, t, tau: F.bss_loss(s, t, tau), VECTORS),
    ('CosineLoss', {}, F.cosine_loss, MAPS),
    ('CosineLoss', {'smooth_l1': 0.0}, F.cosine_loss, VECTORS),
    ('FSPLoss', {}, F.fsp_loss, PAIRS),
    ('PKDLoss', {}, F.pkd_loss, MAPS),
    ('ReviewKDLoss', {}, F.reviewkd_loss, MAPS),
    ('CWDLoss', {}, F.cwd_loss, MAPS),
    ('CWDLoss', {'tau': 4.0}, F.cwd_loss, MAPS),
    ('SPLoss', {}, F.sp_loss, MAPS),
    ('PKTLoss', {}, F.pkt_loss, MAPS),
    ('RKDLoss', {}, F.rkd_loss, VECTORS),
    (
        'RKDLoss',
        {'distance_weight': 1.0, 'angle_weight': 3.0, 'convention': 'code', 'normalize': True},
        F.rkd_loss,
        VECTORS,
    ),
    ('NSTLoss', {}, F.nst_loss, MAPS),
    ('NSTLoss', {'kernel': 'poly', 'degree': 3, 'c': 0.5}, F.nst_loss, MAPS),
    ('NSTLoss', {'kernel': 'linear'}, F.nst_loss, MAPS),
    ('NSTLoss', {'kernel': 'gaussian', 'bandwidth': 'all'}, F.nst_loss, MAPS),
    ('NSTLoss', {'kernel': 'gaussian', 'bandwidth': 0.3}, F.nst_loss, MAPS),
]


@pytest.mark.parametrize(('name', 'options', 'function', 'inputs'), CASES)
def test_module_is_function(name, options, function, inputs):
    module = MODELS.build({'type': f'kd_plugins.{name}', **options})
    assert torch.equal(module(*inputs), function(*inputs, **options))
    assert not module.state_dict()


def test_what_the_losses_declare():
    declared = {
        name: (class_.features, class_.takes_pairs, class_.batch_relational, class_.needs_labels)
        for name, class_ in vars(losses).items()
        if isinstance(class_, type) and issubclass(class_, losses.DistillationLoss)
    }
    assert declared == {
        'ATLoss': ('maps', False, False, False),
        'AdversarialLoss': ('logits', False, False, False),
        'BSSLoss': ('logits', False, False, False),
        'CWDLoss': ('maps', False, False, False),
        'CRDLoss': ('embeddings', False, True, True),
        'CosineLoss': ('positions', False, False, False),
        'CrossKDLoss': ('heads', False, False, False),
        'DISTLoss': ('logits', False, True, False),
        'DKDLoss': ('logits', False, False, True),
        'DistillationLoss': ('any', False, False, False),
        'FSPLoss': ('maps', True, False, False),
        'FitNetLoss': ('positions', False, False, False),
        'KDLoss': ('logits', False, False, False),
        'MGDLoss': ('maps', False, False, False),
        'NKDLoss': ('logits', False, False, True),
        'NSTGANLoss': ('maps', False, False, False),
        'NSTLoss': ('maps', False, False, False),
        'PKTLoss': ('embeddings', False, True, False),
        'PKDLoss': ('maps', False, False, False),
        'RKDLoss': ('embeddings', False, True, False),
        'ReviewKDLoss': ('maps', False, False, False),
        'SPLoss': ('embeddings', False, True, False),
        'VIDLoss': ('positions', False, False, False),
    }


@pytest.mark.parametrize(
    'name', [name for name in losses.__all__ if name not in ('AdversarialLoss', 'CrossKDLoss', 'DistillationLoss')]
)
def test_losses_take_the_features_that_they_declare(name):
    torch.manual_seed(0)
    for kind, size in dict(maps=(6, 3, 4, 4), logits=(6, 5)).items():
        loss = MODELS.build(dict(type=f'kd_plugins.{name}'))
        features = [[torch.randn(size) for _ in range(1 + loss.takes_pairs)] for _ in range(2)]
        labels = [torch.arange(6) % 3] if loss.needs_labels else []
        indices = dict(indices=torch.arange(6)) if loss.needs_indices else {}
        loss.set_num_samples(6)
        expected = loss.features in (kind, 'positions', 'embeddings', 'any')
        with nullcontext() if expected else pytest.raises(ValueError, match='expected'):
            value = loss(*features) if loss.takes_pairs else loss(features[0][0], features[1][0], *labels, **indices)
            assert value.ndim == 0


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('KDLoss', {'tau': 0}, 'tau: expected a number above 0, got 0'),
        ('KDLoss', {'tau': float('inf')}, 'tau: expected a number above 0, got inf'),
        ('KDLoss', {'tau': '4'}, "tau: expected a number above 0, got '4'"),
        ('NKDLoss', {'gamma': -1}, 'gamma: expected a number of at least 0, got -1'),
        ('NKDLoss', {'tau': 0}, 'tau: expected a number above 0, got 0'),
        ('DISTLoss', {'beta': 0, 'gamma': 0}, 'beta + gamma: expected a number above 0, got 0'),
        ('DISTLoss', {'tau': 0}, 'tau: expected a number above 0, got 0'),
        ('DISTLoss', {'eps': 0}, 'eps: expected a number above 0, got 0'),
        ('DKDLoss', {'alpha': -1}, 'alpha: expected a number of at least 0, got -1'),
        ('DKDLoss', {'alpha': 0, 'beta': 0}, 'alpha + beta: expected a number above 0, got 0'),
        ('DKDLoss', {'tau': None}, 'tau: expected a number above 0, got None'),
        ('MGDLoss', {'share': 1}, 'share: expected a share of at least 0 and below 1, got 1'),
        ('MGDLoss', {'share': -0.1}, 'share: expected a number of at least 0, got -0.1'),
        ('MGDLoss', {'mask': 'pixels'}, "mask: expected one of 'positions', 'channels', got 'pixels'"),
        ('CWDLoss', {'tau': 0}, 'tau: expected a number above 0, got 0'),
        ('BSSLoss', {'tau': 0}, 'tau: expected a number above 0, got 0'),
        ('BSSLoss', {'attack_size': 0}, 'attack_size: expected a whole number of at least 1, got 0'),
        ('BSSLoss', {'steps': 2.5}, 'steps: expected a whole number of at least 1, got 2.5'),
        ('BSSLoss', {'step_size': 0}, 'step_size: expected a number above 0, got 0'),
        (
            'KDLoss',
            {'standardize': True, 'use_sigmoid': True},
            'standardize=True compares the classes of a softmax: leave it out, or use_sigmoid',
        ),
        ('KDLoss', {'anchors': 0}, 'anchors: expected a whole number of at least 1, got 0'),
        ('CrossKDLoss', {'layer': 0}, 'layer: expected a whole number of at least 1, got 0'),
        ('CrossKDLoss', {'beta': 0.5}, 'beta: expected a number of at least 1, got 0.5'),
        ('CrossKDLoss', {'boxes': -1}, 'boxes: expected a number of at least 0, got -1'),
        ('BSSLoss', {'clamp': None}, 'clamp: expected a number above 0, got None'),
        ('BSSLoss', {'scale': [1.0, 0]}, 'scale: expected a number above 0, got 0'),
        ('NSTGANLoss', {'hidden': 0}, 'hidden: expected a whole number of at least 1, got 0'),
        ('VIDLoss', {'variance': 1e-5}, 'variance: expected a number above 1e-05, got 1e-05'),
        ('FitNetLoss', {'reduction': 'none'}, "reduction: expected one of 'mean', 'sum', got 'none'"),
        ('ATLoss', {'convention': 'official'}, "convention: expected one of 'paper', 'code', got 'official'"),
        ('CRDLoss', {'num_samples': 0}, 'num_samples: expected a whole number of at least 1, got 0'),
        ('CRDLoss', {'dim': 0}, 'dim: expected a whole number of at least 1, got 0'),
        ('CRDLoss', {'negatives': 0}, 'negatives: expected a whole number of at least 1, got 0'),
        ('CRDLoss', {'tau': 0}, 'tau: expected a number above 0, got 0'),
        ('CRDLoss', {'momentum': 1}, 'momentum: expected a number below 1, got 1'),
        ('CRDLoss', {'exclude': None}, "exclude: expected one of 'class', 'sample', got None"),
        ('CosineLoss', {'smooth_l1': -0.1}, 'smooth_l1: expected a number of at least 0, got -0.1'),
        ('CosineLoss', {'smooth_l1': 1.5}, 'smooth_l1: expected a share between 0 and 1, got 1.5'),
        ('ATLoss', {'p': 0.5}, 'p: expected a number of at least 1, got 0.5'),
        ('RKDLoss', {'distance_weight': -1}, 'distance_weight: expected a number of at least 0, got -1'),
        ('RKDLoss', {'angle_weight': None}, 'angle_weight: expected a number of at least 0, got None'),
        (
            'RKDLoss',
            {'distance_weight': 0, 'angle_weight': 0},
            'distance_weight + angle_weight: expected a number above 0, got 0',
        ),
        ('RKDLoss', {'convention': 1}, "convention: expected one of 'paper', 'code', got 1"),
        ('NSTLoss', {'kernel': 'rbf'}, "kernel: expected one of 'poly', 'linear', 'gaussian', got 'rbf'"),
        ('NSTLoss', {'degree': 1.5}, 'degree: expected a whole number of at least 1, got 1.5'),
        ('NSTLoss', {'degree': True}, 'degree: expected a whole number of at least 1, got True'),
        ('NSTLoss', {'c': -0.1}, 'c: expected a number of at least 0, got -0.1'),
        ('NSTLoss', {'bandwidth': 'median'}, "bandwidth: expected one of 'cross', 'all', got 'median'"),
        ('NSTLoss', {'bandwidth': 0.0}, 'bandwidth: expected a number above 0, got 0.0'),
    ],
)
def test_out_of_range(name, options, message):
    with pytest.raises(ValueError) as error:
        MODELS.get(f'kd_plugins.{name}')(**options)
    assert str(error.value) == message


def test_bss_passes_its_options_on():
    loss = MODELS.build(dict(type='kd_plugins.BSSLoss', attack_size=2, steps=3, step_size=0.5, clamp=1.0, scale=0.9))
    logits = torch.eye(4).repeat(2, 1) * torch.arange(1, 9)[:, None]
    labels = torch.arange(4).repeat(2)
    student = logits.flip(1).where(torch.arange(8)[:, None] < 3, logits)
    chosen = loss.choose(student, logits, labels)
    assert torch.equal(chosen, F.base_samples(student, logits, labels, 2))
    assert len(chosen) == 2
    inputs = torch.randn(2, 4)
    results = []
    for attack in (
        lambda: loss.adversaries(inputs, labels[chosen], logits[chosen], lambda x, indices: 2 * x),
        lambda: F.boundary_attack(
            inputs,
            labels[chosen],
            F.draw_targets(logits[chosen], labels[chosen]),
            lambda x, indices: 2 * x,
            3,
            0.5,
            1.0,
            0.9,
        ),
    ):
        torch.manual_seed(3)
        results.append(attack())
    assert torch.equal(*results)


def test_nst_gan_is_the_function_with_its_critic():
    loss = MODELS.build(dict(type='kd_plugins.NSTGANLoss', hidden=7))
    assert not list(loss.parameters())
    value = loss(*MAPS)
    assert [tuple(p.shape) for p in loss.parameters()] == [(7, 25), (7,), (1, 7), (1,)]
    assert torch.equal(value, F.nst_gan_loss(*MAPS, loss.critic))
    with pytest.raises(ValueError, match='its critic was built for maps of 25 positions, got 16; give each stage a'):
        loss(MAPS[0][..., :4, :4], MAPS[1])


def test_mgd_is_the_function_of_what_it_generates():
    loss = MODELS.build(dict(type='kd_plugins.MGDLoss', share=0.5))
    student, teacher = torch.randn(2, 3, 8, 4, requires_grad=True), torch.randn(2, 5, 4, 4)
    loss(student, teacher)
    torch.manual_seed(1)
    value = loss(student, teacher)
    torch.manual_seed(1)
    pooled = torch.nn.functional.avg_pool2d(student, (2, 1))
    masked = loss.align(pooled) * F.draw_mask(teacher, 0.5)
    torch.testing.assert_close(value, F.mgd_loss(loss.generation(masked), teacher))
    value.backward()
    assert all(p.grad.any() for p in loss.parameters())
    assert student.grad.any()
    assert loss(student, teacher) != value
    with pytest.raises(RuntimeError, match='channels'):
        loss(student[:, :2], teacher)
    same = MODELS.build(dict(type='kd_plugins.MGDLoss'))
    same(teacher, teacher)
    assert [tuple(x.shape) for x in same.parameters()] == [(5, 5, 3, 3), (5,)] * 2


def test_vid_is_the_function_with_its_means_and_variances():
    loss = MODELS.build(dict(type='kd_plugins.VIDLoss', variance=900.0))
    assert not list(loss.parameters())
    student, teacher = torch.randn(4, 3, 6, 6), torch.randn(4, 7, 3, 3)
    value = loss(student, teacher)
    assert [tuple(p.shape) for p in loss.parameters()] == [(7,), (7, 3, 1, 1), (7, 7, 1, 1), (7, 7, 1, 1)]
    first, second, third = (x[:, :, 0, 0].detach() for x in loss.mean.parameters())
    pooled = torch.nn.functional.avg_pool2d(student, 2)  # before the networks, as in the authors' code
    means = torch.einsum('oc,bchw->bohw', first, pooled).relu()
    means = torch.einsum('oc,bchw->bohw', third, torch.einsum('oc,bchw->bohw', second, means).relu())
    torch.testing.assert_close(value, F.vid_loss(means, teacher, torch.full((7,), 900.0)))
    loss = MODELS.build(dict(type='kd_plugins.VIDLoss'))
    value = loss(torch.zeros(2, 9, 3), torch.ones(2, 9, 7))  # tokens
    assert value.item() == pytest.approx((1 / 5 + log(5)) / 2)
    assert [tuple(p.shape) for p in loss.parameters()] == [(7,), (7, 3), (7, 7), (7, 7)]


def test_misspelt_option():
    with pytest.raises(TypeError, match='temperature'):
        MODELS.get('kd_plugins.KDLoss')(temperature=4.0)


def test_kd_over_the_locations_of_a_dense_head():
    student, teacher = torch.randn(2, 6, 2, 3), torch.randn(2, 6, 2, 3)
    loss = MODELS.build(dict(type='kd_plugins.KDLoss', tau=2.0, anchors=2))
    assert loss.features == 'maps'
    rows = [
        torch.stack(
            [x[n, 3 * a : 3 * a + 3, i, j] for n in range(2) for a in range(2) for i in range(2) for j in range(3)]
        )
        for x in (student, teacher)
    ]
    torch.testing.assert_close(loss(student, teacher), F.kd_loss(*rows, 2.0))
    with pytest.raises(
        ValueError, match=r'KDLoss: expected maps \(B, 4 \* K, H, W\) with anchors=4, got \(2, 6, 2, 3\)'
    ):
        MODELS.build(dict(type='kd_plugins.KDLoss', anchors=4))(student, teacher)
