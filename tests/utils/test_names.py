import pytest
from torch import nn

from kd_plugins.utils.names import brief, did_you_mean, first, nearest, one_slip


def test_first():
    assert first(['a', 'b', 'c']) == 'a, b, c'
    assert first(['a', 'b', 'c', 'd', 'e'], '; ') == 'a; b; c (and 2 more)'


def test_nearest():
    known = ['', 'backbone.stage1', 'backbone.stage2', 'head.fc', 'neck', 'x', 'y']
    assert nearest('head.cf', known) == 'nearest names: head.fc'
    assert nearest('backbone.stage', known, most=1) in {f'nearest names: backbone.stage{i}' for i in (1, 2)}
    assert nearest('?', known) == 'nearest names: backbone.stage1, backbone.stage2, head.fc, neck'
    assert nearest('x', []) == 'nearest names: none'


def test_did_you_mean():
    assert did_you_mean('kernle', ['kernel', 'degree']) == "did you mean 'kernel'?"
    assert did_you_mean('?', ['kernel', 'degree']) == 'options are kernel, degree'
    assert did_you_mean('?', []) == 'options are none'


def test_brief():
    assert brief('a\nb') == "'a\\nb'"
    text = brief(nn.Sequential(*(nn.Linear(3, 4) for _ in range(9))))
    assert text.startswith('Sequential( (0): Linear(in_features=3, out_features=4, bias=True)')
    assert len(text) == 100
    assert text.endswith('...')


@pytest.mark.parametrize(
    ('word', 'other', 'slip'),
    [
        ('hook', 'hooks', True),
        ('hooks', 'hook', True),
        ('hoks', 'hooks', True),
        ('hosok', 'hooks', False),
        ('hokos', 'hooks', True),
        ('hooks', 'hooks', False),
        ('stage1', 'stage2', False),
        ('stage', 'stage2', False),
        ('looks', 'hooks', True),
        ('loops', 'hooks', False),
        ('s_hooks', 'hooks', False),
    ],
)
def test_slips_of_the_finger(word, other, slip):
    assert one_slip(word, other) == slip
