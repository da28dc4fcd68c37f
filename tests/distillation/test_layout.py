"""Tokens and maps: transformers as teachers and as students."""

from importlib.metadata import version

import pytest
import torch
from tiny import CLASSES, PREPROCESSOR, classifier, saved_teacher

from kd_plugins.distillation import term as term_module
from kd_plugins.distillation.adapters import MLPAdapter
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.layout import Layout, Tokens, layout_of
from kd_plugins.errors import UserError
from kd_plugins.functional import cosine_loss, fitnet_loss, nst_loss, sp_loss
from kd_plugins.functional.gram import resized
from kd_plugins.registry import MODELS

NST, AT, FIT, SP, COSINE = (
    dict(name=name, loss=dict(type=f'kd_plugins.{name}'))
    for name in ('NSTLoss', 'ATLoss', 'FitNetLoss', 'SPLoss', 'CosineLoss')
)
WIDTH = 16
PLAIN = dict(PREPROCESSOR, type='mmpretrain.ClsDataPreprocessor')  # whatever scope an earlier test has left
VISION = '' if version('transformers') >= '5' else 'vision_model.'  # where CLIP and SigLIP have their modules
SHAPE = dict(embed_dim=WIDTH, depth=2, num_heads=2, num_classes=CLASSES)
HUGGING = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2)
EMPTY = Tokens()


def layout(stated=None, patch=(1, 1), **tokens):
    return Layout('teacher', 'tap', Tokens(**tokens), stated, patch)


# ---- tokens of a known map -------------------------------------------------------------------------------------------


def tokens_of(maps, prefix=0):
    return torch.cat([torch.full((len(maps), prefix, maps.shape[1]), -1.0), maps.flatten(2).mT], 1)


@pytest.mark.parametrize('size', [(4, 4), (2, 5), (6, 3), (1, 1), (1, 7)])
@pytest.mark.parametrize('prefix', [0, 1, 2, 5])
def test_tokens_of_a_map_come_back_as_that_map(size, prefix):
    maps, pixels = torch.randn(2, 3, *size), (size[0] * 8, size[1] * 8)
    tokens = tokens_of(maps, prefix)
    for known in (layout(prefix, (8, 8)), layout(size=size), layout(size=list(size), prefix=prefix)):
        assert torch.equal(known.as_map(tokens, pixels), maps)


def test_tokens_that_are_left_out_fill_no_smaller_map():
    """As by an autoencoder that masks three of four patches in training, but not in a dry run."""
    known = layout(1, (8, 8))
    known.as_map(torch.randn(2, 65, 3), (64, 64))
    known.as_map(torch.randn(2, 17, 3), (32, 32))  # images of another size
    with pytest.raises(
        ValueError, match=r"'tap' yields 17 tokens for images of 64x64, and has yielded 65: some are left"
    ):
        known.as_map(torch.randn(2, 17, 3), (64, 64))


@pytest.mark.parametrize('prefix', [0, 1])
@pytest.mark.parametrize('size', [(4, 4), (14, 7), (3, 5)])
def test_a_network_that_states_nothing_may_have_a_class_token(size, prefix):
    maps = torch.randn(2, 3, *size)
    assert torch.equal(layout().as_map(tokens_of(maps, prefix), (size[0] * 16, size[1] * 16)), maps)


def test_a_tap_before_the_class_token_is_added():
    maps = torch.randn(2, 3, 4, 4)
    assert torch.equal(layout(5, (8, 8)).as_map(tokens_of(maps), (32, 32)), maps)
    maps = torch.randn(2, 3, 4, 4)  # 20 tokens are also a grid of 5 x 4, the last row padded
    assert torch.equal(layout(4, (8, 8)).as_map(tokens_of(maps, 4), (36, 32)), maps)
    maps = torch.randn(2, 3, 3, 3)  # 9 tokens are also 5 and a grid of 2 x 2, but not of the network's patches
    assert torch.equal(layout(5, (14, 14)).as_map(tokens_of(maps), (42, 42)), maps)


@pytest.mark.parametrize(('pixels', 'size'), [((60, 100), (15, 25)), ((61, 101), (16, 26)), ((61, 101), (15, 25))])
@pytest.mark.parametrize('stage', [1, 2, 4])
def test_later_stages_round_up_or_down(pixels, size, stage):
    up = size == (16, 26)
    size = tuple(-(-x // stage) if up else x // stage for x in size)
    maps = torch.randn(2, 3, *size)
    assert torch.equal(layout(0, (4, 4)).as_map(tokens_of(maps), pixels), maps)


@pytest.mark.parametrize(
    ('shape', 'is_last'),
    [
        ((2, 4, 4, 9), True),
        ((2, 9, 4, 4), False),
        ((2, 4, 4, 4), False),
        ((2, 8, 4, 4), False),
        ((2, 2, 2, 768), True),
        ((2, 768, 1, 1), False),
        ((2, 7, 35, 35), False),  # of a network without padding: neither fits
    ],
)
def test_channels_last_maps(shape, is_last):
    x = torch.randn(shape)
    assert torch.equal(layout().as_map(x, (32, 32)), x.movedim(-1, 1) if is_last else x)


def test_vectors_stay():
    x = torch.randn(2, 9)
    assert layout(1).as_map(x, (32, 32)) is x
    assert layout().taken(x, (32, 32)) is x


def test_the_class_token_alone():
    x = torch.randn(2, 17, 3)
    assert torch.equal(layout(1, take='cls').taken(x, (32, 32)), x[:, 0])
    assert torch.equal(layout(take='cls').taken(x, (32, 32)), x[:, 0])
    assert torch.equal(layout(0, take='cls', prefix=1).taken(x[:, :9], (32, 32)), x[:, 0])  # no grid is needed
    for without in (layout(take='cls'), layout(0, take='cls'), layout(1, (8, 8), take='cls')):
        message = r"yields 16 tokens, as many as the grid has, .* teacher_tokens=dict\(prefix=1, take='cls'\)"
        with pytest.raises(ValueError, match=message):
            without.taken(x[:, 1:], (32, 32))


@pytest.mark.parametrize(
    ('known', 'count', 'message'),
    [
        (
            layout(),
            21,
            r'21 tokens .* fit no grid for an input of 32x32, with 1 or 0 .*_tokens=dict\(prefix=5, size=\(4, 4\)\)',
        ),
        (layout(1, (8, 8)), 20, r'fit no grid .* with 1 or 0 before those .*dict\(prefix=4, size=\(4, 4\)\)'),
        (layout(1, (8, 8)), 12, r'fit no grid .*dict\(prefix=3, size=\(3, 3\)\)'),
        (layout(prefix=3), 17, r'fit no grid .* with 3 before'),
        (layout(0, (8, 8)), 17, r'fit no grid .* with 0 before .*dict\(prefix=1, size=\(4, 4\)\)'),
        (layout(size=(4, 5)), 17, r'dict\(size=\(4, 5\)\) are not the 17 tokens'),
        (layout(size=(4, 4), prefix=2), 17, r'dict\(prefix=2, size=\(4, 4\)\) are not the 17 tokens'),
    ],
)
def test_tokens_that_fit_no_grid(known, count, message):
    with pytest.raises(ValueError, match=message) as error:
        known.as_map(torch.randn(2, count, 3), (32, 32))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('stated', [None, 1])
def test_tokens_that_fit_several_grids(stated):
    """With or without a class token; patches settle it."""
    message = r"tokens of 'tap' are 1 \+ 1x3 or 0 \+ 2x2 for an input of 64x112; .*dict\(prefix=1, size=\(1, 3\)\)"
    with pytest.raises(ValueError, match=message):
        layout(stated).as_map(torch.randn(2, 4, 3), (64, 112))
    assert layout(stated, (32, 32)).as_map(torch.randn(2, 7, 3), (64, 112)).shape == (2, 3, 2, 3)


# ---- resize and adapter ----------------------------------------------------------------------------------------------


def test_resized():
    x = torch.arange(4.0).view(1, 1, 1, 4)
    assert resized(x, (1, 2)).flatten().tolist() == [0.5, 2.5]
    assert resized(x, (2, 2)).flatten().tolist() == [0.5, 2.5] * 2
    assert resized(x[..., :2], (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]  # corners are not aligned
    assert resized(x, (1, 4)) is x


@pytest.mark.parametrize('shape', [(2, 4, 3, 5), (2, 7, 4), (2, 4)])
def test_mlp_adapter_is_the_same_map_at_every_position(shape):
    adapter, x = MLPAdapter(4, 6), torch.randn(shape)
    first, norm, second = adapter[0], adapter[1], adapter[3]
    norm.weight.data.normal_()
    vectors = x.movedim(1, -1) if len(shape) == 4 else x
    hidden = vectors @ first.weight.T + first.bias
    hidden = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    hidden = hidden * norm.weight + norm.bias
    expected = (hidden * (1 + torch.erf(hidden / 2**0.5)) / 2) @ second.weight.T + second.bias
    expected = expected.movedim(-1, 1) if len(shape) == 4 else expected
    torch.testing.assert_close(adapter(x), expected)


# ---- networks --------------------------------------------------------------------------------------------------------


def vit(**options):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**dict(img_size=32, patch_size=8, **SHAPE) | options)


def deit():
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(img_size=32, patch_size=8, **SHAPE)


def eva():
    from timm.models.eva import Eva

    return Eva(img_size=32, patch_size=8, num_reg_tokens=2, **SHAPE)


def cait():
    from timm.models.cait import Cait

    return Cait(img_size=32, patch_size=8, **SHAPE)


def swin():
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(img_size=32, patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4)


def convnext():
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 8, 8))


def torchvision_vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, WIDTH, 32, num_classes=CLASSES)


def huggingface(name, **options):
    import transformers

    model, config = (getattr(transformers, f'{name}{kind}') for kind in ('Model', 'Config'))
    return model(config(**HUGGING | dict(image_size=32, patch_size=8) | options))


def huggingface_swin():
    import transformers

    return transformers.SwinModel(
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
        )
    )


def backbone(name, **options):
    """Return the config dict of a network of mmpretrain."""
    arch = dict(embed_dims=WIDTH, num_layers=2, num_heads=2, feedforward_channels=32)
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type=f'mmpretrain.{name}', **dict(arch=arch, img_size=32, patch_size=8) | options),
        data_preprocessor=dict(PLAIN),
    )


def built(function, **options):
    return dict(build=dict(function=f'{__name__}:{function}', **options), data_preprocessor={})


def configured(name, **options):
    return dict(config=backbone(name, **options), checkpoint=None)


SWIN = dict(arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]), window_size=4, patch_size=4, out_indices=(1,))
TEACHERS = {  # with its tap, the number of tokens or the shape of the feature, and that of the map
    'timm ViT': (built('vit'), 'blocks.1', (17, WIDTH), (WIDTH, 4, 4)),
    'timm ViT, registers': (built('vit', reg_tokens=4), 'blocks.1', (21, WIDTH), (WIDTH, 4, 4)),
    'timm ViT, no class token': (
        built('vit', class_token=False, global_pool='avg'),
        'norm',
        (16, WIDTH),
        (WIDTH, 4, 4),
    ),
    'timm ViT, its patches': (built('vit'), 'patch_embed', (16, WIDTH), (WIDTH, 4, 4)),
    'timm DeiT': (built('deit'), 'blocks.0', (18, WIDTH), (WIDTH, 4, 4)),
    'timm EVA': (built('eva'), 'blocks.1', (19, WIDTH), (WIDTH, 4, 4)),
    'timm CaiT': (built('cait'), 'blocks.1', (16, WIDTH), (WIDTH, 4, 4)),
    'timm Swin': (built('swin'), 'layers.1', (4, 4, 16), (16, 4, 4)),
    'timm ConvNeXt': (built('convnext'), 'stages.1', (8, 4, 4), (8, 4, 4)),
    'torchvision ViT': (built('torchvision_vit'), 'encoder.layers.encoder_layer_1', (17, WIDTH), (WIDTH, 4, 4)),
    'transformers DINOv2': (built('huggingface', name='Dinov2'), 'layernorm', (17, WIDTH), (WIDTH, 4, 4)),
    'transformers DINOv2, registers': (
        built('huggingface', name='Dinov2WithRegisters', num_register_tokens=4),
        'encoder.layer.1',
        (21, WIDTH),
        (WIDTH, 4, 4),
    ),
    'transformers DINOv3': (
        built('huggingface', name='DINOv3ViT', num_register_tokens=4),
        'norm',
        (21, WIDTH),
        (WIDTH, 4, 4),
    ),
    'transformers SigLIP': (
        built('huggingface', name='SiglipVision'),
        f'{VISION}post_layernorm',
        (16, WIDTH),
        (WIDTH, 4, 4),
    ),
    'transformers CLIP': (
        built('huggingface', name='CLIPVision'),
        f'{VISION}encoder.layers.1',
        (17, WIDTH),
        (WIDTH, 4, 4),
    ),
    'transformers Swin': (built('huggingface_swin'), 'layernorm', (16, 16), (16, 4, 4)),
    'mmpretrain ViT': (configured('VisionTransformer'), 'backbone.layers.1', (17, WIDTH), (WIDTH, 4, 4)),
    'mmpretrain ViT, featmap': (
        configured('VisionTransformer', out_type='featmap'),
        'backbone',
        (WIDTH, 4, 4),
        (WIDTH, 4, 4),
    ),
    'mmpretrain ViT, raw': (configured('VisionTransformer', out_type='raw'), 'backbone', (17, WIDTH), (WIDTH, 4, 4)),
    'mmpretrain DeiT': (configured('DistilledVisionTransformer'), 'backbone.ln1', (18, WIDTH), (WIDTH, 4, 4)),
    'mmpretrain EVA-02': (
        configured('ViTEVA02', arch=dict(embed_dims=WIDTH, num_layers=2, num_heads=2, feedforward_channels=32)),
        'backbone.layers.1',
        (17, WIDTH),
        (WIDTH, 4, 4),
    ),
    'mmpretrain Swin': (configured('SwinTransformer', **SWIN), 'backbone.stages.1', (16, 16), (16, 4, 4)),
}


@pytest.fixture
def student():
    return MODELS.build(classifier())


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32)


def step(student, teacher, terms, images):
    """Return the losses of a step behind a dry run, and its lines."""
    core = Distillation(student, teacher, terms, task='off')
    lines = core.dry_run(student, images, None)
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    losses = core(features, core.teacher_features(images, None), images, None)
    sum(losses.values()).backward()
    return core, losses, lines


@pytest.mark.parametrize('name', TEACHERS)
def test_transformers_teach_every_loss(name, student, images):
    pytest.importorskip(name.split()[0])
    teacher, tap, seen, expected = TEACHERS[name]
    taps = dict(student='backbone.stage2', teacher=tap)
    terms = [
        NST | taps,
        AT | taps,
        FIT | taps | dict(adapter='auto'),
        FIT | taps | dict(name='mlp', adapter='mlp', resize='teacher'),
        SP | taps,
        COSINE | taps | dict(adapter='mlp', resize='student'),
    ]
    core, losses, lines = step(student, teacher, terms, images)
    becomes = '' if seen == expected else f' as {(4, *expected)}'
    for term, line in zip(terms, lines, strict=True):
        whole = becomes if term['name'] != 'SPLoss' else ''
        assert f'student backbone.stage2 (4, 8, 16, 16) -> teacher {tap} {(4, *seen)}{whole}' in line
        assert (' as ' in line) == bool(whole)
    assert all(value > 0 for value in losses.values())
    assert all(p.grad.abs().sum() > 0 for p in core.parameters())
    assert student.backbone.stage2[0].conv1.weight.grad.abs().sum() > 0
    assert student.backbone.stage2[0].conv1.weight.grad.isfinite().all()


@pytest.mark.parametrize('registers', [0, 4])
def test_the_map_is_that_of_timm(registers):
    pytest.importorskip('timm')
    network, images = vit(img_size=(32, 48), reg_tokens=registers).eval(), torch.randn(2, 3, 32, 48)
    options = dict(indices=[1], norm=True, intermediates_only=True)
    (expected,) = network.forward_intermediates(images, output_fmt='NCHW', **options)
    tokens = network.forward_features(images)
    known = layout_of('teacher', network, 'norm', Tokens())
    assert torch.equal(known.as_map(tokens, (32, 48)), expected)


@pytest.mark.parametrize('name', ['VisionTransformer', 'DistilledVisionTransformer', 'ViTEVA02'])
def test_the_map_is_that_of_mmpretrain(name):
    network = MODELS.build(backbone(name, img_size=(32, 48), out_type='featmap')).eval()
    images = torch.randn(2, 3, 32, 48)
    (expected,) = network(images, mode='tensor')
    network.backbone.out_type = 'raw'
    (tokens,) = network(images, mode='tensor')
    known = layout_of('student', network, 'backbone', Tokens())
    assert torch.equal(known.as_map(tokens, (32, 48)), expected)


STUDENTS = {
    'ViT': (backbone('VisionTransformer'), 'backbone.layers.1'),
    'DeiT': (backbone('DistilledVisionTransformer'), 'backbone.layers.1'),
    'EVA-02': (backbone('ViTEVA02'), 'backbone.layers.1'),
    'Swin': (backbone('SwinTransformer', **SWIN), 'backbone.stages.1'),
    'ConvNeXt': (
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1] * 4, channels=[4, 8, 8, 8])),
            data_preprocessor=PLAIN,
        ),
        'backbone.stages.1',
    ),
}


@pytest.mark.parametrize('name', STUDENTS)
def test_transformers_learn_by_every_loss(name, images, tmp_path):
    config, tap = STUDENTS[name]
    network = MODELS.build(config)
    taps = dict(student=tap, teacher='backbone.stage2')
    terms = [
        NST | taps,
        AT | taps,
        FIT | taps | dict(adapter='auto', resize='student'),
        FIT | taps | dict(name='mlp', adapter='mlp'),
        SP | taps,
        COSINE | taps | dict(adapter='mlp', resize='teacher'),
    ]
    core, losses, _ = step(network, saved_teacher(tmp_path), terms, images)
    assert all(value > 0 for value in losses.values())
    assert all(p.grad.abs().sum() > 0 for p in core.parameters())


def test_a_stage_of_two_resolutions_is_one_level_for_each(images):
    """mmdet's Swin returns the tokens that it has merged, and its own."""
    pytest.importorskip('mmdet.models')
    swin = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=2)
    config = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmdet.SwinTransformer', init_cfg=None, **swin),
        data_preprocessor=PLAIN,
    )
    taps = dict(student='backbone.stages.0', teacher='backbone.stages.0')
    torch.manual_seed(1)
    student = MODELS.build(config)
    core, losses, _ = step(student, dict(config=config, checkpoint=None), [NST | taps], images)
    with torch.no_grad(), core.recorder.recording() as features:
        student(images, mode='tensor')
    pairs = list(zip(features[taps['student']], core.teacher(images, None)[taps['teacher']], strict=True))
    assert [s.shape for s, _ in pairs] == [(4, 16, 16), (4, 64, 8)]
    maps = [(as_map(s, 0, size), as_map(t, 0, size)) for (s, t), size in zip(pairs, ((4, 4), (8, 8)), strict=True)]
    torch.testing.assert_close(losses['loss_NSTLoss'].detach(), sum(nst_loss(s, t) for s, t in maps))


# ---- what a term compares --------------------------------------------------------------------------------------------

VIT = backbone('VisionTransformer')
LAYER = dict(student='backbone.layers.1', teacher='backbone.layers.1')
STAGE = dict(student='backbone.stage2', teacher='backbone.layers.1')


def compared(student, teacher, term, images):
    """Return the loss of a term without adapters, with the features that it has compared."""
    core, losses, lines = step(student, teacher, [term | dict(name='x')], images)
    targets = core.teacher(images, None)[term['teacher']][0]
    with torch.no_grad(), core.recorder.recording() as features:
        student(images, mode='tensor')
    return losses['loss_x'].detach(), features[term['student']][0], targets, lines[0]


def as_map(tokens, prefix=1, size=(4, 4)):
    return tokens[:, prefix:].mT.unflatten(2, size)


@pytest.mark.parametrize(('term', 'function'), [(FIT, fitnet_loss), (COSINE, cosine_loss), (SP, sp_loss)])
def test_equal_sequences_are_compared_with_their_class_tokens(term, function, images):
    loss, s, t, line = compared(MODELS.build(VIT), configured('VisionTransformer'), term | LAYER, images)
    torch.testing.assert_close(loss, function(s, t))
    assert s.shape == (4, 17, WIDTH)
    assert ' as ' not in line


@pytest.mark.parametrize(('term', 'function'), [(FIT, fitnet_loss), (COSINE, cosine_loss), (NST, nst_loss)])
def test_unequal_sequences_are_compared_as_maps(term, function, images):
    teacher = configured('DistilledVisionTransformer', patch_size=16)
    loss, s, t, line = compared(MODELS.build(VIT), teacher, term | LAYER, images)
    torch.testing.assert_close(loss, function(as_map(s), as_map(t, 2, (2, 2))))
    assert line.endswith(
        f'backbone.layers.1 (4, 17, {WIDTH}) as (4, {WIDTH}, 4, 4) -> '
        f'teacher backbone.layers.1 (4, 6, {WIDTH}) as (4, {WIDTH}, 2, 2)'
    )


def test_relations_take_whole_sequences_unless_told(student, images):
    teacher = configured('VisionTransformer')
    loss, s, t, _ = compared(student, teacher, SP | STAGE, images)
    torch.testing.assert_close(loss, sp_loss(s, t))
    loss, s, t, _ = compared(student, teacher, SP | STAGE | dict(teacher_tokens=dict(prefix=1)), images)
    torch.testing.assert_close(loss, sp_loss(s, t[:, 1:]))


def test_the_class_token_teaches_vectors(student, images):
    term = COSINE | dict(student='neck', teacher='backbone.layers.1', teacher_tokens=dict(take='cls'))
    loss, s, t, line = compared(student, configured('VisionTransformer'), term, images)
    torch.testing.assert_close(loss, cosine_loss(s, t[:, 0]))
    assert line.endswith(f'neck (4, 16) -> teacher backbone.layers.1 (4, 17, {WIDTH}) as (4, {WIDTH})')


def test_a_loss_that_declares_nothing_gets_features_as_they_are(images):
    seen = []

    class Loss(torch.nn.Module):
        def forward(self, student, teacher):
            seen.append((student.ndim, teacher.ndim))
            return student.mean() + teacher.mean()

    teacher = configured('VisionTransformer', patch_size=16)
    compared(MODELS.build(VIT), teacher, dict(loss=Loss()) | LAYER, images)
    assert set(seen) == {(3, 3)}


@pytest.mark.parametrize('resize', ['student', 'teacher'])
def test_resize(student, images, resize):
    taps = dict(student='backbone.stage2', teacher='backbone.layers.1')
    loss, s, t, _ = compared(student, configured('VisionTransformer'), NST | taps | dict(resize=resize), images)
    t = as_map(t)
    s, t = (s, resized(t, (16, 16))) if resize == 'student' else (resized(s, (4, 4)), t)
    torch.testing.assert_close(loss, nst_loss(s, t))


def test_other_sizes_at_every_step(images):
    """Multi-scale batches, and a teacher that sees another size."""
    student = MODELS.build(VIT)
    teacher = configured('VisionTransformer') | dict(size=(16, 48))
    core = Distillation(student, teacher, [NST | LAYER], task='off')
    core.dry_run(student, images, None)
    for size in ((32, 32), (64, 24)):
        inputs = torch.randn(2, 3, *size)
        with core.recorder.recording() as features:
            student(inputs, mode='tensor')
        targets = core.teacher_features(inputs, None)
        loss = core(features, targets, inputs, None)['loss_NSTLoss']
        s, t = features['backbone.layers.1'][0], targets[0]['backbone.layers.1'][0]
        torch.testing.assert_close(loss, nst_loss(as_map(s, 1, (size[0] // 8, size[1] // 8)), as_map(t, 1, (2, 6))))


def test_cached_tokens(student, images, tmp_path):
    teacher = configured('VisionTransformer') | dict(cache=str(tmp_path))
    core = Distillation(student, teacher, [NST | STAGE], task='off')
    core.dry_run(student, images, None)
    with core.recorder.recording() as features:
        student(images, mode='tensor')
    losses = []
    for _ in range(2):
        losses.append(core(features, core.teacher_features(images, None), images, None)['loss_NSTLoss'])
        core.teacher.model.forward = None
    assert torch.equal(*losses)


def test_under_autocast(student, images):
    terms = [NST | STAGE, COSINE | STAGE | dict(adapter='mlp', resize='teacher')]
    plain = step(student, configured('VisionTransformer'), terms, images)
    core = plain[0]
    with torch.autocast('cpu', torch.bfloat16):
        with core.recorder.recording() as features:
            student(images, mode='tensor')
        losses = core(features, core.teacher_features(images, None), images, None)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, plain[1][name], rtol=0.05, atol=0)


def test_tokens_are_traced_in_one_piece():
    """As a part of a compiled step."""
    known, tokens = layout(1, (8, 8)), torch.randn(2, 17, 3)
    traced = torch.compile(lambda x: known.as_map(x, (32, 32)), backend='eager', fullgraph=True)
    assert torch.equal(traced(tokens), as_map(tokens))


def test_an_adapter_larger_than_the_student_is_reported(student, images, monkeypatch):
    lines = []
    monkeypatch.setattr(term_module, 'print_log', lambda line, *_: lines.append(line))
    wide = configured('VisionTransformer', arch=dict(embed_dims=96, num_layers=1, num_heads=1, feedforward_channels=8))
    term = COSINE | dict(student='backbone.stage2', teacher='backbone.layers.0')
    step(student, wide, [term | dict(adapter='auto')], images)
    assert lines == []
    step(student, wide, [term | dict(adapter='mlp')], images)
    size, least = 9 * 96 + 2 * 96 + 97 * 96, sum(p.numel() for p in student.parameters())
    assert lines == [
        f"term 'CosineLoss': its adapter has {size:,} parameters, more than the student's {least:,}, and may learn in "
        "the student's place; adapter='auto', or a tap with fewer channels, makes it smaller"
    ]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(teacher_tokens=5), "teacher_tokens of term 'NSTLoss' must be a dict, as dict.prefix=1, .*got 5"),
        (dict(teacher_tokens=dict(prefx=1)), "teacher_tokens of .* has no option 'prefx': did you mean 'prefix'"),
        (dict(student_tokens=dict(prefix=-1)), 'student_tokens of .*: prefix must be a number of tokens, got -1'),
        (dict(student_tokens=dict(size=16)), r'size must be the \(H, W\) of the grid of tokens, .* got 16'),
        (dict(student_tokens=dict(size=(4, 0))), r'size must be .* got \(4, 0\)'),
        (dict(teacher_tokens=dict(take='class')), "take must be 'cls' or None, got 'class'"),
        (dict(resize='larger'), "the resize of term 'NSTLoss' must be 'smaller', 'student' or 'teacher', got 'larger'"),
        (dict(adapter='MLP'), "must be None, 'auto', 'mlp', 'abf' or a config dict, got 'MLP'"),
        (dict(teacher_tokens=dict(prefix=2)), r"the 17 tokens of 'backbone.layers.1' fit no grid .* with 2 before"),
        (dict(teacher_tokens=dict(size=(4, 5))), r'teacher_tokens=dict\(size=\(4, 5\)\) are not the 17 tokens of'),
        (
            dict(teacher_tokens=dict(take='cls')),
            r'feature maps .* and teacher \(4, 16\); tap layers that',
        ),
        (
            dict(student_tokens=dict(take='cls')),
            r"are for taps that yield tokens \(B, N, C\), but 'backbone.stage2'",
        ),
        (dict(teacher='backbone'), r'teacher backbone \(4, 16\): shape mismatch: nst_loss: expected feature maps'),
        (
            SP | dict(teacher='backbone', resize='student'),
            r"resize='student' needs maps \(B, C, H, W\) of both",
        ),
        (
            dict(loss=dict(type='torch.nn.MSELoss')),
            r"; one network gives maps and the other tokens, .*'positions', or the term teacher_tokens=dict\(\.\.\.\)",
        ),
    ],
)
def test_errors_are_one_line(student, images, change, message):
    with pytest.raises(UserError, match=message) as error:
        Distillation(student, configured('VisionTransformer', out_type='cls_token'), [NST | STAGE | change]).dry_run(
            student, images, None
        )
    assert '\n' not in str(error.value)
