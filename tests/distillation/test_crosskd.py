"""CrossKD between small stock detectors."""

import copy
from functools import partial

import pytest
import torch
from tiny import coco_folder, stock_detector, train
from torch.nn.functional import relu

from kd_plugins.distillation.crosskd import CrossKDTerm
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.errors import UserError
from kd_plugins.functional import box_distribution_loss, giou_loss, soft_focal_loss
from kd_plugins.losses import CrossKDLoss
from kd_plugins.registry import MODELS

pytest.importorskip('mmdet.models')
demo_mm_inputs = pytest.importorskip('mmdet.testing').demo_mm_inputs

ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[8, 16, 32])
GFL_LOSSES = dict(
    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
    loss_dfl=dict(type='DistributionFocalLoss'),
    loss_bbox=dict(type='GIoULoss'),
)
ATSS = dict(assigner=dict(type='ATSSAssigner', topk=3), allowed_border=-1, pos_weight=-1)
HEADS = {
    'RetinaNet': dict(type='RetinaHead', anchor_generator=dict(ANCHORS, ratios=[0.5, 2.0])),
    'GFL': dict(type='GFLHead', anchor_generator=ANCHORS, reg_max=4, **GFL_LOSSES),
    'FCOS': dict(type='FCOSHead', strides=[8, 16, 32], regress_ranges=((-1, 32), (32, 64), (64, 1e8))),
    'FCOS*': dict(
        type='FCOSHead',
        strides=[8, 16, 32],
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
    ),
    'ATSS': dict(type='ATSSHead', anchor_generator=ANCHORS, loss_bbox=dict(type='GIoULoss')),
}
MAX_IOU = dict(
    assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
    sampler=dict(type='PseudoSampler'),
    allowed_border=-1,
    pos_weight=-1,
)


def detector(kind, channels=32, convs=3, width=8):
    """Return the config dict of a stock detector with three levels and four classes."""
    name = kind.strip('*')
    head = dict(num_classes=4, in_channels=channels, feat_channels=channels, stacked_convs=convs)
    return dict(
        type=name,
        _scope_='mmdet',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3, pad_size_divisor=32),
        backbone=dict(type='ResNet', depth=18, stem_channels=width, base_channels=width, out_indices=(1, 2, 3)),
        neck=dict(type='FPN', in_channels=[width * x for x in (2, 4, 8)], out_channels=channels, num_outs=3),
        bbox_head=head | HEADS[kind],
        train_cfg=dict(RetinaNet=MAX_IOU, FCOS=None).get(name, ATSS),
    )


def built(config, seed):
    """Build a network with weights of the size of trained ones."""
    torch.manual_seed(seed)
    with MODELS.switch_scope_and_registry('mmdet'):
        network = MODELS.build(copy.deepcopy(config))
    for name, parameter in network.bbox_head.named_parameters():
        if name.endswith('conv.weight') or '_cls' in name or '_reg' in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def distillation(kind, other=None, own=None, bf16=False, **term):
    """Return a student, built from ``own``, and its distillation from a teacher, built from ``other``."""
    student, teacher = built(own or detector(kind), 0), built(other or detector(kind), 1)
    term = dict(name='crosskd', loss=dict(layer=2), student='bbox_head', teacher='bbox_head') | term
    term['loss'] = dict(type='kd_plugins.CrossKDLoss') | term['loss']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('kd_plugins.distillation.distillation.build_teacher', lambda config: teacher)
        return student, Distillation(student, dict(config=None, bf16=bf16), [term])


def batch(network):
    torch.manual_seed(2)
    data = demo_mm_inputs(2, [(3, 64, 96), (3, 60, 70)], num_items=[3, 2], num_classes=4)
    data = network.data_preprocessor(data, False)
    return data['inputs'], data['data_samples']


def step(student, distilled, inputs, samples):
    return distilled.losses(partial(student.train(), inputs, samples), inputs, samples)


def by_hand(student, teacher, inputs, samples, loss):
    """Return the loss as the authors write it: head by head, level by level."""
    head, own = teacher.bbox_head, student.bbox_head
    rows = {'scores': ([], []), 'boxes': ([], []), 'edges': ([], []), 'centers': ([], [])}
    kind = type(head).__name__
    sizes = []
    for level, (x, y) in enumerate(zip(student.extract_feat(inputs), teacher.extract_feat(inputs), strict=True)):
        sizes.append(x.shape[-2:])
        priors = head.prior_generator.single_level_grid_priors(x.shape[-2:], level, device='cpu')
        priors = priors.repeat(len(x), 1)
        for side in range(2):
            features = {}
            for branch in ('cls_convs', 'reg_convs'):
                s, t = x, y
                for i in range(2):
                    last = i == 1
                    s, t = (getattr(h, branch)[i](z, activate=not last) for h, z in ((own, s), (head, t)))
                flat_s, flat_t = (z.transpose(0, 1).flatten(1) for z in (s, t))
                flat = (flat_s - flat_s.mean(1, keepdim=True)) / (flat_s.std(1, correction=0, keepdim=True) + 1e-6)
                flat = flat * flat_t.std(1, correction=0, keepdim=True) + flat_t.mean(1, keepdim=True)
                z = t if side else flat.reshape(s.shape[1], s.shape[0], *s.shape[2:]).transpose(0, 1)
                features[branch] = getattr(head, branch)[2](relu(z))
            prefix = dict(RetinaHead='retina', GFLHead='gfl', ATSSHead='atss').get(kind)
            names = (f'{prefix}_cls', f'{prefix}_reg') if prefix else ('conv_cls', 'conv_reg')
            scores, boxes = (getattr(head, n)(f) for n, f in zip(names, features.values(), strict=True))
            if kind == 'ATSSHead':
                centers = head.atss_centerness(features['reg_convs'])
                rows['centers'][side].append(centers.permute(0, 2, 3, 1).flatten())
            if kind != 'RetinaHead':
                boxes = head.scales[level](boxes)
            if kind == 'FCOSHead':
                boxes = boxes.clamp(min=0) * head.strides[level] if head.norm_on_bbox else boxes.exp()
            scores, boxes = (z.permute(0, 2, 3, 1) for z in (scores, boxes))
            rows['scores'][side].append(scores.reshape(-1, 4))
            if kind == 'GFLHead':
                bins = boxes.reshape(-1, 4, 5)
                rows['edges'][side].append(bins)
                stride = head.prior_generator.strides[level][0]
                distances = bins.softmax(-1) @ torch.arange(5.0) * stride
                centre = (priors[:, :2] + priors[:, 2:]) / 2
                decoded = torch.cat([centre - distances[:, :2], centre + distances[:, 2:]], 1)
            else:
                decoded = head.bbox_coder.decode(priors, boxes.reshape(-1, 4))
            rows['boxes'][side].append(decoded)
    rows = {name: [torch.cat(z) for z in sides] for name, sides in rows.items() if sides[0]}
    importance = rows['scores'][1].sigmoid().amax(1)
    instances, metas = [x.gt_instances for x in samples], [x.metainfo for x in samples]
    if kind == 'FCOSHead':
        labels, targets = own.get_targets(own.prior_generator.grid_priors(sizes, device=inputs.device), instances)
        weight = torch.ones(len(importance))
        positives = own.centerness_target(torch.cat(targets)[torch.cat(labels) < 4]).sum()
    else:
        targets = own.get_targets(*own.get_anchors(sizes, metas, device='cpu'), instances, metas)
        weight, positives = torch.cat([x.flatten() for x in targets[-4]]), targets[-1]
    positives = max(positives, 1)
    importance = importance * (weight > 0)
    count = importance.sum() if kind == 'GFLHead' else positives
    value = loss.classification * soft_focal_loss(*rows['scores'], weight) / positives
    value = value + loss.boxes * giou_loss(*rows['boxes'], importance) / count
    if kind == 'ATSSHead':
        positive = torch.cat([x.flatten() for x in targets[-5]]) < 4
        assert 0 < positive.sum() < len(positive)
        crossed, expected = (x[positive] for x in rows['centers'])
        p = expected.sigmoid()
        entropies = -p * crossed.sigmoid().log() - (1 - p) * (1 - crossed.sigmoid()).log()
        value = value + loss.centerness * entropies.sum() / positives
    if kind == 'GFLHead':
        value = value + loss.distributions * box_distribution_loss(*rows['edges'], importance) / count
    return value


@pytest.mark.parametrize('kind', HEADS)
def test_value(kind):
    weights = dict(classification=0.7, boxes=1.5, distributions=2.5, centerness=0.6)
    student, distilled = distillation(kind, loss=dict(layer=2, **weights))
    inputs, samples = batch(student)
    distilled.dry_run(student, inputs, samples)
    value = step(student, distilled, inputs, samples)['loss_crosskd']
    expected = by_hand(student, distilled.teacher.model, inputs, samples, distilled.terms[0].loss)
    torch.testing.assert_close(value, expected)
    assert value > 0.01


@pytest.mark.parametrize('kind', HEADS)
def test_trains_the_first_layers_of_the_students_head_alone(kind):
    student, distilled = distillation(kind)
    teacher = distilled.teacher.model
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    inputs, samples = batch(student)
    distilled.dry_run(student, inputs, samples)
    step(student, distilled, inputs, samples)['loss_crosskd'].backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    convs = {name for name in trained if 'bbox_head' in name}
    assert {name.split('.')[2] for name in convs} == {'0', '1'}
    assert {name.split('.')[1] for name in convs} == {'cls_convs', 'reg_convs'}
    assert any('backbone' in name for name in trained)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert not distilled.state_dict()


def test_networks_of_equal_weights_agree():
    student, distilled = distillation('GFL')
    distilled.teacher.model.load_state_dict(student.state_dict())
    inputs, samples = batch(student)
    distilled.dry_run(student, inputs, samples)
    student.bbox_head.train()
    with torch.no_grad(), distilled.recorder.recording() as features:
        student.eval()(inputs, samples, mode='tensor')
    targets = distilled.teacher_features(inputs, samples)
    with torch.no_grad():
        assert distilled(features, targets, inputs, samples)['loss_crosskd'] < 1e-4


def test_another_number_of_channels_takes_an_adapter():
    narrow = detector('RetinaNet', channels=16)
    student, distilled = distillation('RetinaNet', own=narrow)
    inputs, samples = batch(student)
    with pytest.raises(UserError, match=r'features \(2, 16, 8, 12\) do not fit.*feat_channels, or add adapter'):
        distilled.dry_run(student, inputs, samples)
    student, distilled = distillation('RetinaNet', own=narrow, adapter='auto')
    distilled.dry_run(student, inputs, samples)
    step(student, distilled, inputs, samples)['loss_crosskd'].backward()
    assert all(p.grad is not None for p in distilled.parameters())


def test_bfloat16_is_near():
    student, distilled = distillation('GFL')
    inputs, samples = batch(student)
    distilled.dry_run(student, inputs, samples)
    expected = step(student, distilled, inputs, samples)['loss_crosskd']
    with torch.autocast('cpu', torch.bfloat16):
        value = step(student, distilled, inputs, samples)['loss_crosskd']
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize('student_bf16', [False, True])
def test_a_teacher_in_bfloat16_is_near(student_bf16):
    (student, plain), (same, rounded) = distillation('GFL'), distillation('GFL', bf16=True)
    inputs, samples = batch(student)
    for network, distilled in ((student, plain), (same, rounded)):
        distilled.dry_run(network, inputs, samples)
    expected = step(student, plain, inputs, samples)['loss_crosskd']
    with torch.autocast('cpu', torch.bfloat16, enabled=student_bf16):
        value = step(same, rounded, inputs, samples)['loss_crosskd']
    value.backward()
    assert value != expected
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)


def test_heads_of_other_kinds_and_classes_agree_on_positions():
    other = detector('ATSS')
    other['bbox_head']['num_classes'] = 7
    student, distilled = distillation('GFL', other=other)
    inputs, samples = batch(student)
    distilled.dry_run(student, inputs, samples)
    step(student, distilled, inputs, samples)['loss_crosskd'].backward()
    assert student.bbox_head.cls_convs[0].conv.weight.grad.any()


def test_images_without_objects():
    student, distilled = distillation('GFL')
    inputs, samples = batch(student)
    distilled.dry_run(student, inputs, samples)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    assert step(student, distilled, inputs, samples)['loss_crosskd'].isfinite()


@pytest.mark.parametrize(
    ('term', 'message'),
    [
        (dict(student='bbox_hed'), "has no head 'bbox_hed'; nearest.*bbox_head"),
        (dict(student=['bbox_head', 'neck']), 'student must be the name of one head'),
        (dict(student_levels=[0], teacher_levels=[0]), 'remove resize, student_levels and teacher_levels'),
        (dict(teacher='neck'), "teacher's FPN has no cls_convs and reg_convs that all levels share"),
        (dict(loss=dict(layer=4)), "layer=4, but the student's cls_convs are 3: give a smaller layer"),
    ],
)
def test_a_mistake_ends_in_one_line(term, message):
    with pytest.raises(UserError, match=message) as error:
        distillation('RetinaNet', **term)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('kind', 'head'),
    [
        ('PAA', dict(type='PAAHead', anchor_generator=ANCHORS, loss_bbox=dict(type='GIoULoss'))),
        ('FSAF', dict(type='FSAFHead', anchor_generator=ANCHORS)),
        ('DDOD', dict(type='DDODHead', anchor_generator=ANCHORS)),
        ('GARetina', dict(type='GARetinaHead')),
        ('AutoAssign', dict(type='AutoAssignHead', strides=[8, 16, 32], force_topk=False)),
        ('CondInstBbox', dict(type='CondInstBboxHead', strides=[8, 16, 32])),
    ],
)
def test_heads_whose_assignment_returns_other_things_are_refused(kind, head):
    common = dict(num_classes=4, in_channels=32, feat_channels=32, stacked_convs=3)
    with MODELS.switch_scope_and_registry('mmdet'):
        network = torch.nn.Module()
        network.bbox_head = MODELS.build(common | head | dict(train_cfg=None))
    term = dict(name='crosskd', loss=CrossKDLoss(layer=2), student='bbox_head', teacher='bbox_head')
    with pytest.raises(UserError, match=f'{kind}Head assigns its targets in a way of its own'):
        CrossKDTerm(**term).taps_in('student', network)


@pytest.mark.parametrize(
    ('kind', 'head'),
    [
        ('Fovea', dict(type='FoveaHead', strides=[8, 16, 32], base_edge_list=(16, 32, 64), scale_ranges=((1, 2),) * 3)),
        ('RepPoints', dict(type='RepPointsHead', point_feat_channels=32)),
        ('SABLRetina', dict(type='SABLRetinaHead')),
    ],
)
def test_teachers_whose_boxes_are_decoded_otherwise_are_refused(kind, head):
    with MODELS.switch_scope_and_registry('mmdet'):
        network = torch.nn.Module()
        network.bbox_head = MODELS.build(dict(num_classes=4, in_channels=32, feat_channels=32, stacked_convs=3) | head)
    term = dict(name='crosskd', loss=CrossKDLoss(layer=2), student='bbox_head', teacher='bbox_head')
    with pytest.raises(UserError, match=f"the teacher's {kind}Head decodes its boxes in a way of its own"):
        CrossKDTerm(**term).taps_in('teacher', network)


def test_heads_that_share_no_layers_or_assign_otherwise_are_refused():
    rtmdet = dict(
        type='RTMDetSepBNHead',
        num_classes=4,
        in_channels=8,
        feat_channels=8,
        anchor_generator=dict(type='MlvlPointGenerator', strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='GIoULoss'),
    )
    with pytest.raises(UserError, match='RTMDetSepBNHead has no cls_convs and reg_convs that all levels share'):
        distillation('RetinaNet', own=detector('RetinaNet') | dict(bbox_head=rtmdet))
    bare = detector('RetinaNet')
    bare['bbox_head']['stacked_convs'] = 0  # as mmdet's ATSS behind a DyHead
    with pytest.raises(UserError, match='RetinaHead has no cls_convs and reg_convs that all levels share'):
        distillation('RetinaNet', own=bare)
    student, distilled = distillation('RetinaNet', other=detector('FCOS'))
    with pytest.raises(UserError, match=r'assigns targets to 504 positions, the teacher.s predicts at 252: give both'):
        distilled.dry_run(student, *batch(student))


def test_a_run_keeps_the_stock_detectors_keys(tmp_path):
    """Beside another term, under DistillationHook."""
    config = stock_detector(coco_folder(tmp_path / 'data'), tmp_path / 'run')
    config.model.bbox_head.update(num_classes=1, feat_channels=32)
    teacher = dict(config=dict(config.model, _scope_='mmdet'), checkpoint=None)
    terms = [
        dict(name='crosskd', loss=dict(type='kd_plugins.CrossKDLoss'), student='bbox_head', teacher='bbox_head'),
        dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), student='neck', teacher='neck'),
    ]
    config.custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=copy.deepcopy(teacher), terms=terms)]
    runner = train(config)
    saved = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    with MODELS.switch_scope_and_registry('mmdet'):
        assert saved['state_dict'].keys() == MODELS.build(config.model).state_dict().keys()
    assert 'distillation' not in saved
    for name in ('crosskd', 'pkd', 'cls', 'bbox'):
        assert runner.message_hub.get_scalar(f'train/loss_{name}').data[0].max() > 0
