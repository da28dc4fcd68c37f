"""Stock mmdet detectors train and predict on the operators of kd_plugins."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope

from kd_plugins.errors import UserError
from kd_plugins.hooks import CheckHook
from kd_plugins.pretrained import check_pretrained

MODELS = pytest.importorskip('mmdet.registry').MODELS
DetDataSample = pytest.importorskip('mmdet.structures').DetDataSample
demo_mm_inputs = pytest.importorskip('mmdet.testing').demo_mm_inputs

RESNET18 = {'model.backbone.depth': 18, 'model.neck.in_channels': [64, 128, 256, 512]}

# The smallest images that leave something on every level; no score threshold, so that NMS has work to do.
CASES = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': (64, {**RESNET18, 'model.test_cfg.rcnn.score_thr': 0.0}),
    'retinanet/retinanet_r50_fpn_1x_coco.py': (64, {**RESNET18, 'model.test_cfg.score_thr': 0.0}),
    'ssd/ssd300_coco.py': (300, {'model.test_cfg.score_thr': 0.0}),
    # An operator that only predictions need, and offset maps larger than what is convolved.
    'guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py': (64, {**RESNET18, 'model.test_cfg.score_thr': 0.0}),
    'dyhead/atss_r50_fpn_dyhead_1x_coco.py': (
        64,
        {
            **RESNET18,
            'model.neck': [
                dict(
                    type='FPN',
                    in_channels=[64, 128, 256, 512],
                    out_channels=32,
                    start_level=1,
                    num_outs=5,
                    add_extra_convs='on_output',
                ),
                dict(type='DyHead', in_channels=32, out_channels=32, num_blocks=1, zero_init_offset=False),
            ],
            'model.bbox_head.in_channels': 32,
            'model.bbox_head.feat_channels': 32,
            'model.test_cfg.score_thr': 0.0,
        },
    ),
}


@pytest.mark.parametrize('name', CASES)
def test_trains_and_predicts(name):
    size, changes = CASES[name]
    config = get_config(f'mmdet::{name}')
    config.merge_from_dict({'model.backbone.init_cfg': None, **changes})
    data = demo_mm_inputs(1, (3, size, size), num_items=[3], num_classes=80)

    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
        model.init_weights()
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3)
        gradients = {}
        optimizer.register_step_pre_hook(lambda *_: gradients.update({n: p.grad for n, p in model.named_parameters()}))
        before = {n: p.clone() for n, p in model.named_parameters()}

        model.train()
        losses = model.train_step(data, OptimWrapper(optimizer))
        assert {'loss', 'loss_cls', 'loss_bbox'} <= losses.keys()
        assert all(torch.isfinite(value) and value > 0 for key, value in losses.items() if 'loss' in key)

        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trainable == {n for n, g in gradients.items() if g is not None and torch.isfinite(g).all()}
        for part in (n for n, _ in model.named_children() if n != 'data_preprocessor'):
            assert any(gradients[n].any() for n in trainable if n.startswith(part)), part
            assert any((model.get_parameter(n) != before[n]).any() for n in trainable if n.startswith(part)), part

        model.eval()
        runner = SimpleNamespace(model=model, hooks=(), optim_wrapper=None)
        CheckHook().before_run(runner)  # as tools/train.py and tools/test.py have it
        with torch.no_grad():
            (sample,) = model.test_step(data)

    assert isinstance(sample, DetDataSample)
    predicted = sample.pred_instances
    limit = config.model.test_cfg.get('rcnn', config.model.test_cfg).max_per_img
    assert 1 <= len(predicted.bboxes) <= limit
    assert predicted.bboxes.shape[1] == 4
    assert torch.isfinite(predicted.bboxes).all()
    assert (predicted.scores.diff() <= 0).all()


def test_a_backbone_that_converts_its_file_by_itself_is_handed_over(tmp_path):
    """mmdet's Swin reads the authors' files, which lack the norms of its outputs."""
    backbone = dict(
        type='mmdet.SwinTransformer',
        embed_dims=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        convert_weights=True,
        init_cfg=ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')),
    )
    model = MODELS.build(backbone)
    theirs = [
        ('stages', 'layers'),
        ('attn.w_msa.', 'attn.'),
        ('ffn.layers.0.0.', 'mlp.fc1.'),
        ('ffn.layers.1.', 'mlp.fc2.'),
        ('projection', 'proj'),
    ]
    weights = {}
    for name, value in model.state_dict().items():
        if not name.startswith('norm'):
            for own, other in theirs:
                name = name.replace(own, other)
            weights[name] = torch.rand_like(value) if value.is_floating_point() else value
    torch.save({'model': weights}, tmp_path / 'x.pth')
    model.init_weights()
    ((name, found, _),) = check_pretrained(model)
    assert name == ''
    assert set(model.state_dict()) - set(found) == {f'norm{i}.{x}' for i in range(4) for x in ('weight', 'bias')} | {
        x for x, _ in model.named_buffers()
    }
    with torch.no_grad():
        model.patch_embed.norm.bias += 1
    with pytest.raises(UserError, match=r'not have its pretrained weights: .*patch_embed\.norm\.bias differs'):
        list(check_pretrained(model))
    torch.save({'model': {'other.weight': torch.ones(1)}}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'not have its pretrained weights: .*no tensor fits'):
        list(check_pretrained(model))
