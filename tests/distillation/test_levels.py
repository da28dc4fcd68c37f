"""Terms on the levels of two detectors' necks: other heads, channels, strides and numbers of levels."""

import copy
from functools import partial

import pytest
import torch

from kd_plugins.distillation import term
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

pytest.importorskip('mmdet.models')
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.hub import get_config

CONFIGS = dict(
    retinanet='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    faster_rcnn='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
)
LOSSES = dict(
    pkd=dict(type='kd_plugins.PKDLoss'),
    cwd=dict(type='kd_plugins.CWDLoss'),
    mgd=dict(type='kd_plugins.MGDLoss'),
    fitnet=dict(type='kd_plugins.FitNetLoss'),
    nst=dict(type='kd_plugins.NSTLoss'),
    at=dict(type='kd_plugins.ATLoss'),
    sp=dict(type='kd_plugins.SPLoss'),
    reviewkd=dict(type='kd_plugins.ReviewKDLoss'),
)
ADAPTERS = dict(pkd='auto', cwd='auto', fitnet='auto', reviewkd='abf')


def detector(kind, channels, **neck):
    """Return a stock detector's config dict with a narrow ResNet-18 and a neck of ``channels``."""
    config = get_config(CONFIGS[kind]).model
    config.backbone.update(depth=18, stem_channels=4, base_channels=4, init_cfg=None)
    config.neck.update(in_channels=[4, 8, 16, 32], out_channels=channels, **neck)
    for head in ('bbox_head', 'rpn_head'):
        if head in config:
            config[head].update(in_channels=channels, feat_channels=channels)
    if 'roi_head' in config:
        config.roi_head.bbox_roi_extractor.out_channels = channels
        config.roi_head.bbox_head.update(in_channels=channels, fc_out_channels=8)
    return config


NETWORKS = dict(
    retinanet=detector('retinanet', 8),
    faster_rcnn=detector('faster_rcnn', 12),
    pafpn=detector('faster_rcnn', 6, type='PAFPN', num_outs=4),
)


def built(name, seed):
    torch.manual_seed(seed)
    with MODELS.switch_scope_and_registry('mmdet'):
        return MODELS.build(copy.deepcopy(NETWORKS[name]))


@pytest.fixture(scope='module', autouse=True)
def _mmdet():
    register_all_modules(init_default_scope=False)


def distilled(student, teacher, terms):
    """Return a student, its distillation, and a batch of annotated images as its preprocessor returns it."""
    network, other = built(student, 0), built(teacher, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('kd_plugins.distillation.distillation.build_teacher', lambda config: other)
        core = Distillation(network, dict(config=None), terms)
    batch = demo_mm_inputs(2, [[3, 64, 96], [3, 64, 96]], num_items=[2, 1], num_classes=80)
    return network, core, network.data_preprocessor(batch, True)


@pytest.mark.parametrize(
    ('student', 'teacher', 'levels', 'shapes'),
    [
        # RetinaNet's levels have strides 8 to 128, those of Faster R-CNN 4 to 64.
        ('retinanet', 'faster_rcnn', ([0, 1, 2], [1, 2, 3]), ('(2, 8, 8, 12)', '(2, 12, 8, 12)')),
        ('faster_rcnn', 'retinanet', ([1, 2, 3], [0, 1, 2]), ('(2, 12, 8, 12)', '(2, 8, 8, 12)')),
        # Another neck, with four levels, and twice the stride of the other.
        ('retinanet', 'pafpn', ([0, 1, 2], [0, 1, 2]), ('(2, 8, 8, 12)', '(2, 6, 16, 24)')),
    ],
)
def test_every_loss_of_maps_trains_the_student_alone(student, teacher, levels, shapes):
    options = dict(student='neck', teacher='neck', student_levels=levels[0], teacher_levels=levels[1])
    terms = [dict(name=name, loss=loss, adapter=ADAPTERS.get(name), **options) for name, loss in LOSSES.items()]
    network, core, batch = distilled(student, teacher, terms)
    lines = core.dry_run(network, batch['inputs'], batch['data_samples'])
    for line, name in zip(lines, LOSSES, strict=True):
        assert line.startswith(f'{name}: ')
        assert f'student neck {levels[0]} {shapes[0]}' in line
        assert f'teacher neck {levels[1]} {shapes[1]}' in line
    losses = core.losses(partial(network, **batch), batch['inputs'], batch['data_samples'])
    assert {'loss_cls', 'loss_bbox'} <= set(losses)
    for name in LOSSES:
        loss = losses[f'loss_{name}']
        assert loss.isfinite()
        assert loss > 0
        gradient = torch.autograd.grad(loss, network.backbone.layer2[0].conv1.weight, retain_graph=True)[0]
        assert gradient.isfinite().all()
        assert gradient.any(), name
    trained = sum(losses[f'loss_{name}'] for name in LOSSES)
    parameters = [*core.parameters()]
    assert all(x is not None and x.any() for x in torch.autograd.grad(trained, parameters, retain_graph=True))
    trained.backward()
    assert all(p.grad is None for p in core.teacher.model.parameters())
    assert not core.teacher.model.training


@pytest.mark.parametrize(
    ('student', 'teacher', 'remedy'),
    [
        ('retinanet', 'faster_rcnn', 'student_levels=[0, 1, 2, 3] and teacher_levels=[1, 2, 3, 4] pair equal ones'),
        ('faster_rcnn', 'retinanet', 'student_levels=[1, 2, 3, 4] and teacher_levels=[0, 1, 2, 3] pair equal ones'),
        ('retinanet', 'retinanet', None),
    ],
)
def test_levels_of_other_strides_are_noted(student, teacher, remedy, monkeypatch):
    notes = []
    monkeypatch.setattr(term, 'print_log', lambda message, *_: notes.append(message))
    at = dict(name='at', loss=LOSSES['at'], student='neck', teacher='neck')
    network, core, batch = distilled(student, teacher, [at])
    core.dry_run(network, batch['inputs'], batch['data_samples'])
    assert [remedy in note for note in notes if 'strides' in note] == [True] * (remedy is not None)
    notes.clear()
    picked = dict(at, student_levels=[0, 1, 2], teacher_levels=[0, 1, 2])  # as it is meant
    network, core, batch = distilled(student, teacher, [picked])
    core.dry_run(network, batch['inputs'], batch['data_samples'])
    assert not any('strides' in note for note in notes)


def test_levels_that_are_not_there():
    term = dict(name='pkd', loss=LOSSES['pkd'], student='neck', teacher='neck', student_levels=[3, 4, 5])
    network, core, batch = distilled('retinanet', 'faster_rcnn', [term])
    with pytest.raises(UserError) as error:
        core.dry_run(network, batch['inputs'], batch['data_samples'])
    assert str(error.value) == (
        "student_levels of term 'pkd' are [3, 4, 5], but neck of the student gives 5 level(s): list indices from 0 to 4"
    )
