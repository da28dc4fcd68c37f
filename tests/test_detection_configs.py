"""The configs of configs/detection: each builds as it is, meets its teacher by every method, and trains a step."""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from tiny import config_by_method as load

from kd_plugins.config import load_config
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.registry import MODELS

pytest.importorskip('mmdet.models')
demo_mm_inputs = pytest.importorskip('mmdet.testing').demo_mm_inputs

ROOT = Path(__file__).parents[1]
PAIRS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/detection/*.py'))
PROOFS = [f'configs/detection/{data}/student_from_teacher.py' for data in ('voc_mini', 'voc_sample')]
PROOFS += ['configs/detection/voc_mini/retinanet_from_gfl.py']


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv('METHOD', raising=False)


def hook_of(config):
    (hook,) = [x for x in config.custom_hooks if x.type == 'kd_plugins.DistillationHook']
    return hook


def teacher_of(config):
    name = config.teacher.config
    return (get_config(name) if '::' in name else load(name)).model


def build(model):
    with DefaultScope.overwrite_default_scope('mmdet'), MODELS.switch_scope_and_registry('mmdet'):
        return MODELS.build(copy.deepcopy(model))


def classes_of(network):
    return getattr(network, 'roi_head', network).bbox_head.num_classes


def small(model, widen=0.25):
    """Return a model's config dict with the smallest backbone of its kind and no weights to download."""
    model = copy.deepcopy(ConfigDict(model))
    model.backbone.init_cfg = None
    if model.backbone.type == 'ResNet':
        model.backbone.update(depth=18, stem_channels=8, base_channels=8)
        model.neck.in_channels = [8, 16, 32, 64][-len(model.neck.in_channels) :]
    elif model.backbone.type == 'CSPNeXt':
        model.backbone.update(deepen_factor=0.167, widen_factor=widen)
        model.neck.update(in_channels=[int(x * widen) for x in (256, 512, 1024)], num_csp_blocks=1)
    return model


@pytest.mark.parametrize('path', [x for x in PAIRS if not x.endswith('_ld.py')])
def test_builds_as_it_is(path):
    config = load(path)
    with torch.device('meta'):
        student, teacher = build(config.model), build(teacher_of(config))
    assert [config.default_hooks[x].type for x in ('export', 'reseed')] == [
        'kd_plugins.ExportHook',
        'kd_plugins.ReseedHook',
    ]
    assert hook_of(config).teacher == config.teacher
    assert classes_of(student) == classes_of(teacher) == (20 if path.endswith('_voc.py') else 80)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (student, teacher)]
    assert sizes[0] < 0.9 * sizes[1]
    if depths := [int(x) for x in re.findall(r'_r(\d+)', Path(path).stem)]:
        assert depths == [student.backbone.depth, teacher.backbone.depth]
    url, name = config.teacher.checkpoint, Path(config.teacher.config).stem.replace('-', '_')
    assert url.startswith('https://mmassets.onedl.ai/mmdetection/')
    assert url.rpartition('/')[2].startswith(
        name[: name.index('_fpn' if '_fpn' in name else '_8xb')].replace('caffe', '')
    )


@pytest.mark.parametrize('path', [*PAIRS, *PROOFS])
def test_every_method_meets_the_teacher_and_trains_a_step(path):
    torch.manual_seed(0)
    methods = load(path).methods
    assert {'pkd', 'cwd', 'mgd', 'nst_poly', 'at', 'sp', 'fitnet'} <= methods.keys()
    if path in PROOFS[2:]:  # whose heads are of two kinds
        methods = {name: terms for name, terms in methods.items() if terms[0]['student'] == 'neck'}
    config = load(path, '+'.join(methods))
    assert config.work_dir == f'work_dirs/{path[8:-3]}/{"+".join(methods)}'
    model = small(config.model)
    if path.endswith('_ld.py'):
        model.update(teacher_ckpt=None, teacher_config=ConfigDict(model=small(teacher_of(config))))
    student, terms = build(model), hook_of(config).terms
    teacher = dict(config=ConfigDict(small(teacher_of(config), 0.5), _scope_='mmdet'), checkpoint=None)
    distillation = Distillation(student, teacher, terms)
    data = demo_mm_inputs(2, (3, 64, 64), num_items=[2, 1], num_classes=classes_of(student))
    data = student.data_preprocessor(data, True)
    inputs, samples = data['inputs'], data['data_samples']
    distillation.dry_run(student, inputs, samples)
    student.train()  # that of LD's detector returns None
    losses = distillation.losses(partial(student, inputs, samples), inputs, samples)
    assert {f'loss_{term.name}' for term in terms} | {'loss_cls', 'loss_bbox'} <= losses.keys()
    assert ('loss_ld' in losses) == path.endswith('_ld.py')
    if 'loss_ld' in losses:  # LD's student is a plain GFL
        plain = build(small(get_config('mmdet::gfl/gfl_r50_fpn_1x_coco.py').model))
        assert student.state_dict().keys() == plain.state_dict().keys()
    student.parse_losses(losses)[0].backward()
    gradients = [p.grad for p in (*student.parameters(), *distillation.parameters()) if p.grad is not None]
    assert all(x.isfinite().all() for x in gradients)
    assert all(losses[f'loss_{term.name}'] > 0 for term in terms)


@pytest.mark.parametrize(
    ('name', 'picked'),
    [('rtmdet/rtmdet_l_8xb32-300e_coco.py', [0, 1, 2]), ('faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py', [1, 2, 3])],
)
def test_a_teacher_with_another_neck_teaches_through_its_pyramid(name, picked):
    """RTMDet's path-aggregating neck and a two-stage detector's, for a GFL with an FPN of 64 channels."""
    config = load('configs/detection/voc_mini/student_from_teacher.py', 'pkd+cwd+mgd+nst_poly+at+sp+fitnet')
    student = build(config.model)
    terms = [dict(term, adapter='auto', teacher_levels=picked) for term in hook_of(config).terms]
    teacher = dict(config=ConfigDict(small(get_config(f'mmdet::{name}').model), _scope_='mmdet'), checkpoint=None)
    distillation = Distillation(student, teacher, terms)
    data = demo_mm_inputs(1, (3, 64, 64), num_items=[1], num_classes=8)
    data = student.data_preprocessor(data, False)
    lines = distillation.dry_run(student, data['inputs'], data['data_samples'])
    levels = [f'(1, {{}}, {side}, {side})' for side in (8, 4, 2)]
    own, other = (' '.join(levels).format(*3 * [channels]) for channels in (64, 256))
    assert all(f' student neck {own} -> teacher neck {picked} {other}' in line for line in lines)


def test_a_two_stage_student_learns_from_a_one_stage_teacher():
    config = load('configs/detection/faster-rcnn_r50_from_r101.py', 'pkd+nst_poly')
    student = build(small(config.model))
    levels = dict(student_levels=[1, 2, 3, 4], teacher_levels=[0, 1, 2, 3])
    one_stage = small(get_config('mmdet::retinanet/retinanet_r101_fpn_2x_coco.py').model)
    teacher = dict(config=ConfigDict(one_stage, _scope_='mmdet'), checkpoint=None)
    distillation = Distillation(student, teacher, [dict(term, **levels) for term in hook_of(config).terms])
    data = student.data_preprocessor(demo_mm_inputs(1, (3, 64, 64), num_items=[1], num_classes=80), True)
    inputs, samples = data['inputs'], data['data_samples']
    distillation.dry_run(student, inputs, samples)
    losses = distillation.losses(partial(student.train(), inputs, samples), inputs, samples)
    assert losses['loss_pkd'] > 0
    assert {'loss_rpn_cls', 'loss_cls'} <= losses.keys()


@pytest.mark.parametrize('path', sorted(Path(ROOT, 'configs/_base_').glob('methods_*.py')), ids=lambda path: path.stem)
def test_a_heads_scores_tell_how_sure_the_teacher_is(path):
    """Of one class too; a softmax over the classes would not change where all logits of a location do."""
    methods = load_config(str(path)).methods
    if 'kd_head' not in methods:
        return
    loss = MODELS.build(methods.kd_head[0].loss)
    teacher = torch.randn(2, loss.anchors, 4, 4)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert loss(teacher + 3, teacher) > 0.1
