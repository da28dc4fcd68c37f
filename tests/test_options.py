"""What command lines check of their options."""

import argparse

import pytest

from kd_plugins.errors import UserError
from kd_plugins.options import KeyValues, check_device, check_least


def test_numbers_have_a_least_value():
    args = argparse.Namespace(jobs=1, threads=None, batch_size=0, gpus=float('nan'))
    check_least(args, jobs=1, threads=1, absent=1)
    with pytest.raises(UserError, match='--batch-size: expected at least 1, got 0'):
        check_least(args, batch_size=1)
    with pytest.raises(UserError, match='--gpus: expected at least 0, got nan'):
        check_least(args, gpus=0)


def test_a_device_is_a_cpu_or_a_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    for device in (None, 'cpu', 'cuda', 'cuda:0'):
        check_device(device)
    for device in ('gpu', 'cpu:x', 'meta', ''):
        with pytest.raises(UserError, match=f"expected 'cpu' or 'cuda', got '{device}'"):
            check_device(device)
    with pytest.raises(UserError, match='--device cuda:1: torch finds no such GPU here'):
        check_device('cuda:1')


def test_key_and_value(capsys):
    parser = argparse.ArgumentParser(prog='train.py')
    parser.add_argument('--cfg-options', nargs='+', action=KeyValues)
    given = parser.parse_args(['--cfg-options', 'model.depth=8', 'classes=[a,b]']).cfg_options
    assert given == {'model.depth': 8, 'classes': ['a', 'b']}
    for text, value in (
        ('x=/data/my photos', '/data/my photos'),
        ('x="a, b"', 'a, b'),
        ("x='5'", '5'),
        ("x=['a b', 'c,d']", ['a b', 'c,d']),
        ('x=(1, [2, c])', (1, [2, 'c'])),
        ('x=1, 2', [1, 2]),
        ('x=None', None),
        ('x=', ''),
        ('x=1e-3', 1e-3),
        ("x=dict(at=[0, 60], value=[4., 1.], by='epoch')", dict(at=[0, 60], value=[4.0, 1.0], by='epoch')),
        ("x={'at': [0, 60], 'by': {'a': -1}}", dict(at=[0, 60], by=dict(a=-1))),
        ("x=[dict(type='A', n=1), 2]", [dict(type='A', n=1), 2]),
        ('x=[a=b,c]', ['a=b', 'c']),
        ('x={}.pth', '{}.pth'),
        ('x={:05}.jpg', '{:05}.jpg'),
        ('x={}', {}),
    ):
        found = parser.parse_args(['--cfg-options', text]).cfg_options['x']
        assert (found, type(found)) == (value, type(value))
    for wrong in (
        'novalue',
        '=5',
        'x={1, 2',
        'x=dict(at=[0, 60)',
        'x=dict(open(1))',
        'x={open: 1}',
        "x=dict(**{'a': 1})",
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(['--cfg-options', 'a=1', wrong])
        assert f"train.py: error: --cfg-options: expected KEY=VALUE, got '{wrong}'" in capsys.readouterr().err
