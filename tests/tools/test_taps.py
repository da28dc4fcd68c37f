import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny import classification_config, classifier, image_folder
from torch import nn

from kd_plugins.distillation.distillation import Distillation
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

TOOL = Path(__file__).parents[2] / 'tools' / 'visualize.py'
sys.path.append(str(TOOL.parent))  # last, since tools/test.py must not hide the standard library's test
_spec = importlib.util.spec_from_file_location('visualize', TOOL)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)
from visuals import taps  # noqa: E402

NST = dict(name='nst', loss=dict(type='kd_plugins.NSTLoss'), student='backbone.stage3', teacher='backbone.stage3')
TEACHER = dict(config=classifier(14, 8), checkpoint='nosuch.pth')


class Transformer(nn.Module):
    """Patches of 4 pixels behind a class token, whose 11 channels a mean over all tokens returns."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 11))
        self.patches = nn.Conv2d(3, 11, 4, 4)
        self.flat = nn.Flatten(2)
        self.block = nn.Linear(11, 11)
        self.unused = nn.Linear(11, 11)
        self.last = nn.Identity()

    def forward(self, images):
        x = self.flat(self.patches(images)).mT
        x = self.block(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))
        return self.last(self.block(x).mean(1))


def write(folder: Path, **content: object) -> str:
    """Write a config of images of 16 x 16 pixels, and return its path."""
    config = classification_config(folder / 'nosuch', folder / 'run', **content)
    config.train_dataloader.dataset.pipeline[1] = dict(type='RandomCrop', crop_size=16, padding=2)
    config.dump(str(folder / 'run.py'))
    return str(folder / 'run.py')


def hook(teacher: object = TEACHER, *terms: dict) -> list[dict]:
    return [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=list(terms) or [NST])]


def listed(capsys: pytest.CaptureFixture, *argv: object) -> tuple[str, dict]:
    """Return what the command prints, and what it writes as JSON."""
    file = Path(argv[0]).parent / 'taps.json'
    tool.main(['taps', *map(str, argv), '--json', str(file)])
    return capsys.readouterr().out, json.loads(file.read_text())


def rows(printed: str) -> list[list[list[str]]]:
    """Return the cells of each table."""
    tables = printed.split('┏')[1:]
    return [[[x.strip() for x in y.split('│')[1:-1]] for y in z.splitlines() if y.startswith('│')] for z in tables]


def test_modules_of_student_and_teacher_are_listed_without_data_or_weights(tmp_path, capsys):
    printed, content = listed(capsys, write(tmp_path, custom_hooks=hook()), '--depth', 2)
    student, teacher = rows(printed)
    assert 'student: ImageClassifier, input 3 x 16 x 16 (the pipeline of train_dataloader)' in printed
    assert [x for x in student if x[0] == 'backbone.stage2'] == [
        ['backbone.stage2', 'Sequential', '1', '(B, 8, 8, 8)', '2', 'maps', '']
    ]
    assert [x[3:] for x in teacher if x[0] == 'backbone.stage3'] == [['(B, 32, 4, 4)', '4', 'maps', 'nst']]
    assert [x[1:] for x in student if x[0] == 'head.fc'] == [['Linear', '1', '(B, 4)', '', 'vectors', '']]
    assert [x[3] for x in student if x[0] == 'head.loss_module'] == ['does not run']
    assert not any('backbone.stage3.0' in x[0] for x in student)
    network = MODELS.build(classifier())
    modules = {x['name']: x for x in content['networks'][0]['modules']}
    assert list(modules) == [name for name, _ in network.named_modules() if name]
    assert modules['backbone.stage3.0.conv1']['outputs'] == [[2, 16, 4, 4]]
    assert modules['backbone.stage3.0.conv1']['strides'] == [4]
    assert 'NSTLoss' in modules['backbone.stage3']['losses']
    assert 'NSTLoss' not in modules['head.fc']['losses']
    assert {'KDLoss', 'RKDLoss'} <= {*modules['head.fc']['losses']}
    assert modules['head.loss_module']['losses'] == []


def test_the_terms_that_it_proposes_distil(tmp_path, capsys):
    printed, content = listed(capsys, write(tmp_path, custom_hooks=hook()))
    terms = eval(f'[{printed.partition("same stride:")[2]}]')  # as pasted into a config
    assert terms == content['terms']
    assert [(x['student'], x['teacher']) for x in terms] == [
        ('backbone.stage2', 'backbone.stage2'),
        ('backbone.stage3', 'backbone.stage3'),
        ('head.fc', 'head.fc'),
    ]
    student = MODELS.build(classifier())
    distillation = Distillation(student, TEACHER | dict(checkpoint=None), terms)
    assert len(distillation.dry_run(student, torch.randn(2, 3, 16, 16), None)) == 3


def test_a_stage_is_proposed_before_the_network_around_it(tmp_path, capsys):
    headless = {**TEACHER, 'config': classifier(14, 8) | dict(neck=None, head=None)}
    _, content = listed(capsys, write(tmp_path, custom_hooks=hook(headless)))
    assert [x['teacher'] for x in content['terms']] == ['backbone.stage2', 'backbone.stage3']


def test_heads_of_attention_are_no_maps_to_propose():
    shapes = [(2, 3, 8, 8)]
    found = [taps.Tap(name, 'x', False, 1, i, shapes, [*shapes]) for i, name in enumerate(('a.attn.q', 'a.b.c.d'))]
    (tap,) = taps.taps_by_stride(taps.Network('x', 'x', found, '', (16, 16), {}), (16, 16)).values()
    assert tap.name == 'a.b.c.d'


def test_pyramids_are_proposed_whole_and_the_largest_strides_that_both_have():
    def network(*strides_by_name: tuple[str, tuple[int, ...]]) -> taps.Network:
        found = []
        for order, (name, strides) in enumerate(strides_by_name):
            shapes = [(2, 4, 256 // x, 256 // x) for x in strides]
            found.append(taps.Tap(name, 'x', False, runs=1, first_run=order, shapes=shapes, maps=list(shapes)))
        return taps.Network('x', 'x', found, '', (256, 256), {})

    stages = [(f'backbone.layer{i}', (2**i,)) for i in range(1, 6)]
    neck = ('neck', (8, 16, 32, 64)), ('neck.extra', (64,))
    detector = network(('backbone', (4, 8)), *stages, *neck, ('head', (8, 8)))

    def proposed(other: taps.Network) -> list[tuple[str, str, str]]:
        return [(x['name'], x['student'], x['teacher']) for x, _ in taps.pairs_of(detector, other, (256, 256))]

    same = [(f'nst_{2**i}', f'backbone.layer{i}', f'backbone.layer{i}') for i in range(2, 6)]
    assert proposed(detector) == [*same, ('nst_neck', 'neck', 'neck')]
    assert proposed(network(*stages)) == same
    patches = network(('blocks.0', (14,)), ('blocks.1', (14,)), ('', (14,)))
    assert proposed(patches) == [('nst_16', 'backbone.layer4', 'blocks.1')]
    assert proposed(network()) == []
    # A neck of another detector, whose levels begin and end at other strides.
    two_stage = network(('neck', (4, 8, 16, 32)))
    ((term, words),) = taps.pairs_of(detector, two_stage, (256, 256))
    assert (term['student_levels'], term['teacher_levels']) == ([0, 1, 2], [1, 2, 3])
    assert words == 'strides 8, 16, 32; 4 and 4 channels'
    ((term, _),) = taps.pairs_of(two_stage, network(('neck', (8, 16, 32))), (256, 256))
    assert term['student_levels'] == [1, 2, 3]
    assert 'teacher_levels' not in term


@pytest.mark.parametrize(
    ('teacher', 'tap'),
    [(dict(timm='deit_tiny_distilled_patch16_224'), ''), (dict(timm='deit_tiny_patch16_224'), 'head')],
)
def test_logits_are_what_joins_the_classifiers_of_two_tokens(teacher, tap):
    deit = dict(type='DistilledVisionTransformer', arch='deit-tiny', img_size=32, patch_size=16)
    head = dict(type='DeiTClsHead', num_classes=1000, in_channels=192)
    model = dict(type='ImageClassifier', _scope_='mmpretrain', backbone=deit, head=head)
    hooks = hook(teacher | dict(weights=None, size=224))
    networks, _ = taps.networks_of(Config(dict(model=model, custom_hooks=hooks)), (3, 32, 32), False)
    ((term, _),) = [x for x in taps.pairs_of(*networks, (32, 32)) if x[0]['name'] == 'kd']
    assert (term['student'], term['teacher']) == ('head', tap)


def test_a_distiller_and_several_teachers(tmp_path, capsys):
    model = dict(
        type='kd_plugins.Distiller',
        student=classifier(),
        teacher=[TEACHER, TEACHER | dict(config=classifier(8, 8))],
        terms=[NST | dict(teachers=[1])],
        input_shape=(3, 8, 16),
    )
    printed, content = listed(capsys, write(tmp_path, model=model))
    assert [x['name'] for x in content['networks']] == ['student', 'teacher 0', 'teacher 1']
    assert "input 3 x 8 x 16 (the Distiller's input_shape)" in printed
    student, first, second = rows(printed)
    assert [[x[6:] for x in y if x[0] == 'backbone.stage3'] for y in (student, first, second)] == [
        [['nst']],
        [[]],
        [['nst']],
    ]
    assert [x['teachers'] for x in content['terms'] if x['student'] == 'head.fc'] == [[0], [1]]
    Distillation(MODELS.build(classifier()), [x | dict(checkpoint=None) for x in model['teacher']], content['terms'])


def test_one_network_alone_and_the_size_of_the_images(tmp_path, capsys):
    printed, content = listed(capsys, write(tmp_path), '--input', 3, 24, 32)
    assert [x['name'] for x in content['networks']] == ['network']
    assert [x['outputs'] for x in content['networks'][0]['modules'] if x['name'] == 'backbone'] == [[[2, 16, 6, 8]]]
    assert 'same stride' not in printed
    (tmp_path / 'bare.py').write_text("model = dict(type='mmpretrain.MobileNetV2', widen_factor=0.1)")
    printed, _ = listed(capsys, tmp_path / 'bare.py', '--depth', 1)
    assert '3 x 224 x 224 (assumed: --input gives another size)' in printed
    assert [x[3:5] for x in rows(printed)[0] if x[0] == 'layer7'] == [['(B, 32, 7, 7)', '32']]


def test_tokens_are_shown_with_their_grid(tmp_path, capsys):
    build = f'{__file__}:Transformer'
    path = write(tmp_path, custom_hooks=hook(dict(build=build, size=(24, 16)), NST))
    printed, content = listed(capsys, path)
    found = {x[0]: x[2:6] for x in rows(printed)[1]}
    assert 'teacher: Transformer, input 3 x 24 x 16 (resized from 16 x 16)' in printed
    assert found == {
        "''": ['1', '(B, 11)', '', 'vectors'],
        'patches': ['1', '(B, 11, 6, 4)', '3.27', 'maps'],
        'flat': ['1', '(B, 11, 24)', '', 'tokens'],
        'block': ['2 in 2 runs', '2 x (B, 25, 11)', '3.27 3.27', '1 + 6 x 4 tokens'],
        'unused': ['', 'does not run', '', ''],
        'last': ['1', '(B, 11)', '', 'vectors'],
    }
    modules = {x['name']: x for x in content['networks'][1]['modules']}
    assert modules['block']['maps'] == [[2, 11, 6, 4]] * 2
    assert 'NSTLoss' in modules['block']['losses']
    assert 'NSTLoss' not in modules['flat']['losses']


def test_a_teacher_alone(tmp_path, capsys):
    (tmp_path / 'teacher.py').write_text("teacher = dict(torchvision='resnet18')")
    printed, content = listed(capsys, tmp_path / 'teacher.py', '--input', 3, 64, 64, '--depth', 1)
    assert [x['name'] for x in content['networks']] == ['teacher']
    assert [x[3:5] for x in rows(printed)[0] if x[0] == 'layer3'] == [['(B, 256, 4, 4)', '16']]


@pytest.mark.parametrize(
    ('maps', 'size', 'stride'),
    [
        ((7, 7), (224, 224), 32),
        ((16, 16), (224, 224), 14),
        ((13, 21), (800, 1344), 64),  # of a pyramid, where 25 x 42 became 13 x 21
        ((7, 11), (800, 1344), 128),
        ((4, 4), (15, 15), 4),  # rounded up
        ((3, 3), (15, 15), 4),  # rounded down
        ((32, 32), (16, 16), 0.5),  # larger than the input
        ((9, 2), (27, 27), 6.36),
        ((5, 5), (5, 5), 1),
    ],
)
def test_strides(maps, size, stride):
    assert taps.stride_of(maps, size) == stride


SHAPES = {
    'maps': ((2, 4, 3, 3), (2, 4, 3, 3)),
    'tokens': ((2, 7, 4), None),
    'vectors': ((2, 4), None),
}


@pytest.mark.parametrize('kind', SHAPES)
def test_a_loss_is_said_to_fit_what_it_takes(kind):
    """A loss that is listed returns a scalar, and one that is not raises."""
    shape, as_map = SHAPES[kind]
    listed = taps.Tap('', '', False, shapes=[shape], maps=[as_map]).losses()
    for name, class_ in taps.known_losses().items():
        if name in ('DistillationLoss', 'AdversarialLoss'):
            continue
        if class_.features == 'heads':
            assert name not in listed
            continue
        loss, features = class_(), (torch.randn(shape), torch.randn(shape))
        if class_.takes_pairs:
            features = tuple((x, x) for x in features)
        more = [torch.arange(2)] if class_.needs_labels else []
        options = dict(indices=torch.arange(2)) if class_.needs_indices else {}
        loss.set_num_samples(2)
        if name in listed:
            assert loss(*features, *more, **options).numel() == 1, name
        elif (kind, class_.features) != ('tokens', 'logits'):  # (N, L, K) may be logits of a dense head, too
            with pytest.raises((ValueError, RuntimeError)):
                loss(*features, *more, **options)


@pytest.mark.parametrize(
    ('step', 'size'),
    [
        (dict(type='RandomResizedCrop', scale=224), (224, 224)),
        (dict(type='Resize', scale=(128, 256)), (256, 128)),  # width, height
        (dict(type='RandomCrop', crop_size=(256, 128)), (256, 128)),  # height, width
        (dict(type='RandomChoiceResize', scales=[(480, 320), (640, 400)]), (400, 640)),
        (dict(type='torchvision/RandomResizedCrop', size=96, scale=(0.2, 1.0)), (96, 96)),
        (dict(type='RandomFlip', prob=0.5), None),
    ],
)
def test_the_size_that_a_transform_makes(step, size):
    assert taps.size_of(step) == size


def test_maps_that_are_pooled_to_a_size_of_their_own_are_not_proposed():
    found = [
        taps.Tap(name, 'Conv2d', False, 1, number, [(2, 4, side, side)], [(2, 4, side, side)])
        for number, (name, side) in enumerate(dict(layer3=8, psp_modules=2, ppm=4).items())
    ]
    network = taps.Network('student', 'FastSCNN', found, '', (64, 64), {})
    assert [(strides, tap.name) for strides, tap in taps.taps_by_stride(network, (64, 64)).items()] == [
        ((8,), 'layer3')
    ]


def test_the_images_are_as_large_as_the_data_where_no_transform_states_it(tmp_path):
    config = classification_config(image_folder(tmp_path / 'data', size=20), tmp_path)
    taps.init_default_scope('mmpretrain')
    assert taps.input_of(config) == ((3, 20, 20), 'the first training image')
    assert taps.input_of(Config(dict(model={})))[0] == (3, 224, 224)


def test_a_pass_that_ends_early_says_why():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Identity(), nn.Identity()

        def forward(self, x):
            return self.second(self.first(x).nosuch)

    network = Fails()
    found, failure = taps.trace(network, lambda: network(torch.ones(2, 3)), 'student', (1, 1))
    assert [(x.name, x.runs) for x in found] == [('first', 1), ('second', 0)]
    assert 'nosuch' in failure
    with pytest.raises(UserError, match='Fails: no module runs on random images: TypeError'):
        taps.trace(network, lambda: network(), 'student', (1, 1))


def test_rows_are_chosen_by_depth_and_name(tmp_path, capsys):
    path = write(tmp_path, custom_hooks=hook())
    names = [x[0] for x in rows(listed(capsys, path, '--depth', 1)[0])[0]]
    assert names == ['data_preprocessor', 'backbone', 'backbone.stage3', 'neck', 'head']  # and what a term taps
    names = [x[0] for x in rows(listed(capsys, path, '--filter', '*stage1*conv?')[0])[0]]
    assert names == ['backbone.stage1.0.conv1', 'backbone.stage1.0.conv2']
    names = [x[0] for x in rows(listed(capsys, path, '--filter', 'stage1', '--depth', 2)[0])[0]]
    assert names == ['backbone.stage1']


def test_mistakes(tmp_path):
    def refused(*argv: object) -> str:
        with pytest.raises(UserError) as error:
            tool.main(['taps', *map(str, argv)])
        return str(error.value)

    path = write(tmp_path, custom_hooks=hook())
    assert refused(path, '--depth', 0) == '--depth: expected at least 1, got 0'
    assert refused(path, '--input', 3, 0, 16).startswith('--input 3 0 16: expected channels, height and width')
    assert 'nearest names: backbone.stage' in refused(path, '--filter', 'stage9')
    assert 'nosuch.pth does not exist' in refused(path, '--weights')
    assert 'no module runs on random images: ' in refused(path, '--input', 5, 16, 16)
    gray = write(tmp_path, model=dict(type='mmpretrain.ImageClassifier', backbone=dict(type='mmpretrain.LeNet5')))
    assert refused(gray).endswith('--input C H W gives others, as 1 28 28 gray ones')
    tool.main(['taps', gray, '--input', '1', '32', '32'])
    assert "the teacher has no option 'chekpoint'" in refused(write(tmp_path, custom_hooks=hook(dict(chekpoint=1))))
    assert 'exactly one of config=' in refused(write(tmp_path, custom_hooks=hook(dict(checkpoint='x'))))
    (tmp_path / 'none.py').write_text('x = 1')
    assert "none.py has neither 'model' nor 'teacher'" in refused(tmp_path / 'none.py')
