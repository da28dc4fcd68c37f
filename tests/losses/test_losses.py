import pytest
import torch

from kd_plugins import functional as F
from kd_plugins.registry import MODELS

MAPS = (
    torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)),
    torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2)),
)
VECTORS = tuple(x.mean((2, 3)) for x in MAPS)
PAIRS = tuple((x, x.square()) for x in MAPS)

CASES = [
    ('KDLoss', {}, F.kd_loss, VECTORS),
    ('KDLoss', {'tau': 2.0}, F.kd_loss, VECTORS),
    ('FitNetLoss', {}, F.fitnet_loss, MAPS),
    ('FitNetLoss', {'reduction': 'sum'}, F.fitnet_loss, MAPS),
    ('ATLoss', {}, F.at_loss, MAPS),
    ('ATLoss', {'convention': 'code', 'p': 1}, F.at_loss, MAPS),
    ('FSPLoss', {}, F.fsp_loss, PAIRS),
    ('SPLoss', {}, F.sp_loss, MAPS),
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


def test_what_the_terms_read():
    flags = {
        name: (getattr(MODELS.get(name), 'takes_pairs', False), getattr(MODELS.get(name), 'batch_relational', False))
        for name in sorted({case[0] for case in CASES})
    }
    assert flags == {
        'ATLoss': (False, False),
        'FSPLoss': (True, False),
        'FitNetLoss': (False, False),
        'KDLoss': (False, False),
        'NSTLoss': (False, False),
        'RKDLoss': (False, True),
        'SPLoss': (False, True),
    }


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('KDLoss', {'tau': 0}, 'tau: expected a number above 0, got 0'),
        ('KDLoss', {'tau': float('inf')}, 'tau: expected a number above 0, got inf'),
        ('KDLoss', {'tau': '4'}, "tau: expected a number above 0, got '4'"),
        ('FitNetLoss', {'reduction': 'none'}, "reduction: expected one of 'mean', 'sum', got 'none'"),
        ('ATLoss', {'convention': 'official'}, "convention: expected one of 'paper', 'code', got 'official'"),
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


def test_misspelt_option():
    with pytest.raises(TypeError, match='temperature'):
        MODELS.get('kd_plugins.KDLoss')(temperature=4.0)
