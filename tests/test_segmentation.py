"""mmseg's segmentors: stock ones train, predict and export; the configs meet their teachers; a run from end to end."""

import argparse
import copy
import json
import re
import runpy
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmengine.utils import package_utils
from tiny import config_by_method as load
from tiny import train

from kd_plugins.config import load_config
from kd_plugins.datasets import LoadSegMap
from kd_plugins.datasets.drawing import CLASSES, draw_voc
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.errors import UserError
from kd_plugins.export.images import images_for
from kd_plugins.export.network import Segmentor, exportable
from kd_plugins.export.score import check_score
from kd_plugins.hooks import LabelMapHook, label_map_hook
from kd_plugins.registry import MODELS, TRANSFORMS

mmseg = pytest.importorskip('mmseg')
SegDataSample = pytest.importorskip('mmseg.structures').SegDataSample

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'tools'))  # last, since tools/test.py must not hide the standard library's test
from visuals import taps  # noqa: E402

PAIRS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/segmentation/*.py'))
DRAWN = 'configs/segmentation/drawn/student_from_teacher.py'


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv('METHOD', raising=False)
    # mmengine knows mmseg by the name of a package that it would install over the one that is there.
    monkeypatch.setattr(package_utils, 'call_command', lambda command: pytest.fail(' '.join(command)))


def build(model):
    model = ConfigDict(copy.deepcopy(model))
    model.update(pretrained=None)
    with DefaultScope.overwrite_default_scope('mmseg'), MODELS.switch_scope_and_registry('mmseg'):
        return revert_sync_batchnorm(MODELS.build(model))


def data_of(count, size, classes):
    """Return a batch as mmseg's pipelines give it."""
    samples = []
    for i in range(count):
        sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
        labels = torch.arange(size * size).reshape(1, size, size) // (size * size // 4) + i
        sample.gt_sem_seg = PixelData(data=labels % classes)
        samples.append(sample)
    return dict(inputs=[*torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)], data_samples=samples)


@pytest.mark.parametrize(
    'name',
    [
        'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        'ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py',  # two heads in a row
    ],
)
def test_a_stock_segmentor_trains_predicts_and_exports(name):
    """On the operators of kd_plugins, which mmseg imports where mmcv is not compiled."""
    config = get_config(f'mmseg::{name}').model
    config.data_preprocessor.update(size=(64, 64))
    config.backbone.init_cfg = None
    model = build(config)
    heads = model.decode_head if isinstance(model.decode_head, torch.nn.ModuleList) else [model.decode_head]
    data = data_of(2, 64, heads[-1].num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = [p.clone() for p in model.parameters()]
    losses = model.train().train_step(data, OptimWrapper(optimizer))
    assert losses['loss'].isfinite()
    assert all((a != b).any() for a, b in zip(before, model.parameters(), strict=True) if b.grad is not None)
    model.eval()
    with torch.no_grad():
        predicted = model.test_step(data)
        part = exportable(model)
        images = model.data_preprocessor(data, False)
        own = part.predict(part(images['inputs']), images['data_samples'])
    assert isinstance(part, Segmentor)
    assert part.names == ['scores']
    for sample, other in zip(predicted, own, strict=True):
        assert sample.pred_sem_seg.data.shape == (1, 64, 64)
        torch.testing.assert_close(other.seg_logits.data, sample.seg_logits.data)


@pytest.mark.parametrize('path', PAIRS)
def test_a_config_builds_as_it_is_and_its_teacher_is_the_one_that_mmseg_publishes(path):
    config = load(path)
    student, teacher = build(config.model), build(get_config(config.teacher.config).model)
    assert student.decode_head.num_classes == teacher.decode_head.num_classes
    sizes = [sum(p.numel() for p in network.parameters()) for network in (student, teacher)]
    assert sizes[0] < 0.3 * sizes[1]
    stock = config.teacher.config.removeprefix('mmseg::')
    published = (Path(mmseg.__file__).parent / '.mim/configs' / stock).with_name('metafile.yaml').read_text()
    (entry,) = (x for x in published.split('- Name: ') if x.startswith(f'{Path(stock).stem}\n'))
    assert f'Weights: {config.teacher.checkpoint}\n' in entry
    (score,) = re.findall(r'\((\d+\.\d+) mIoU\)', Path(path).read_text())
    assert f'mIoU: {score}\n' in entry


def small(model, width):
    """Return a model's config dict with a narrow backbone of its kind."""
    model = ConfigDict(copy.deepcopy(model), pretrained=None)
    model.data_preprocessor.update(size=(64, 64))
    if model.backbone.type == 'MixVisionTransformer':
        model.backbone.update(embed_dims=width, num_layers=[1] * 4, num_heads=[1, 2, 4, 8], init_cfg=None)
        model.decode_head.update(in_channels=[width, 2 * width, 4 * width, 8 * width], channels=16)
    else:
        model.backbone.update(depth=18, stem_channels=width, base_channels=width)
        model.decode_head.update(in_channels=8 * width, channels=16)
        model.auxiliary_head.update(in_channels=4 * width, channels=8)
    return model


@pytest.mark.parametrize('path', [*PAIRS, DRAWN])
def test_every_method_meets_the_teacher_and_trains_a_step(path):
    torch.manual_seed(0)
    methods = {name: terms for name, terms in load(path).methods.items() if name != 'cwd_authors'}
    config = load(path, '+'.join(methods))
    assert config.work_dir == f'work_dirs/{path[8:-3]}/{"+".join(methods)}'
    other = config.teacher.config
    other = get_config(other).model if '::' in other else load(other).model
    student, other = build(small(config.model, 8)), small(other, 16)
    (hook,) = config.custom_hooks
    distillation = Distillation(student, dict(config=ConfigDict(other, _scope_='mmseg'), checkpoint=None), hook.terms)
    data = student.data_preprocessor(data_of(2, 64, student.decode_head.num_classes), True)
    inputs, samples = data['inputs'], data['data_samples']
    distillation.dry_run(student, inputs, samples)
    losses = distillation.losses(partial(student.train(), inputs, samples), inputs, samples)
    assert {f'loss_{term.name}' for term in hook.terms} | {'decode.loss_ce'} <= losses.keys()
    student.parse_losses(losses)[0].backward()
    gradients = [p.grad for p in (*student.parameters(), *distillation.parameters()) if p.grad is not None]
    assert all(x.isfinite().all() for x in gradients)
    assert all(losses[f'loss_{term.name}'] > 0 for term in hook.terms)


@pytest.mark.parametrize(
    ('side', 'network'), [('student', "the student's module"), ('teacher', "the teacher's module")]
)
def test_a_head_that_mmseg_calls_past_its_hooks_names_its_layer(side, network):
    student, other = build(load(DRAWN).model), load('configs/segmentation/drawn/teacher.py').model
    teacher = dict(config=ConfigDict(other, _scope_='mmseg'), checkpoint=None)
    taps = dict(student='decode_head.conv_seg', teacher='decode_head.conv_seg') | {side: 'decode_head'}
    term = dict(name='cwd', loss=dict(type='kd_plugins.CWDLoss'), **taps)
    distillation = Distillation(student, teacher, [term])
    with pytest.raises(UserError, match=rf"{network} 'decode_head' outputs no tensor .*: tap 'decode_head\.conv_seg'"):
        distillation.dry_run(student, torch.randn(2, 3, 32, 32), data_of(2, 32, 9)['data_samples'])


def test_mmsegs_configs_are_read_by_their_module_and_nothing_is_installed():
    assert get_config('mmseg::_base_/models/pspnet_r50-d8.py').model.type == 'EncoderDecoder'


def test_the_terms_proposed_for_two_segmentors_are_of_backbones_and_of_the_scores_of_pixels(tmp_path, capsys):
    hook = dict(teacher=dict(config='configs/segmentation/drawn/teacher.py', checkpoint=None), terms=[])
    config = load('configs/segmentation/drawn/student.py')
    config = Config(dict(config.to_dict(), custom_hooks=[dict(type='kd_plugins.DistillationHook', **hook)]))
    config.dump(tmp_path / 'run.py')
    args = argparse.Namespace(
        config=str(tmp_path / 'run.py'), depth=None, filter=None, input=(3, 96, 96), weights=False
    )
    args.json = tmp_path / 'taps.json'
    taps.taps(args)
    terms = json.loads(args.json.read_text())['terms']
    assert [(x['name'], x['student'], x['teacher']) for x in terms] == [
        ('nst_2', 'backbone.stem', 'backbone.stem'),
        ('nst_4', 'backbone.layer1', 'backbone.layer1'),
        ('nst_8', 'backbone.layer4', 'backbone.layer4'),
        ('cwd', 'decode_head.conv_seg', 'decode_head.conv_seg'),
    ]
    assert '9 scores of each pixel, if of the same classes' in capsys.readouterr().out


def test_a_head_of_queries_is_refused():
    config = get_config('mmseg::maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py').model
    with torch.device('meta'), pytest.raises(UserError, match='MaskFormerHead predicts masks, and is not exported'):
        exportable(build(config))


def test_a_network_that_estimates_depth_is_no_segmentor():
    network = build(load('configs/segmentation/drawn/student.py').model)
    network.__class__ = type('DepthEstimator', (type(network),), {})
    with pytest.raises(UserError, match='DepthEstimator is a model that is not exported'):
        exportable(network)


@pytest.fixture
def run(tmp_path):
    """Return a function that trains the small PSPNet for two steps on drawn scenes, in a folder below."""
    root = draw_voc(tmp_path / 'data', train=6, val=2, test=3, size=(32, 48), masks=True)

    def run(path, name, step=None, **changes):
        config = copy.deepcopy(load_config(path))
        for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            config[key].update(batch_size=4 if key == 'train_dataloader' else 1, num_workers=0)
            config[key].update(persistent_workers=False)
            config[key].dataset.data_root = f'{root}/'
        config.train_dataloader.dataset.pipeline[2:2] = [step] if step else []
        config.model.data_preprocessor.size = (48, 32)
        config.train_cfg.update(max_epochs=1, val_interval=1)
        config.param_scheduler = []
        for key in ('prepare', 'requires', '_base_', 'terms_of', 'trained'):
            config.pop(key, None)
        config.update(work_dir=str(tmp_path / name), experiment_name=name, log_level='ERROR', **changes)
        train(config)
        config.dump(tmp_path / f'{name}.py')
        return config

    return run


def test_a_segmentor_learns_from_another_and_is_scored_drawn_and_exported(run, tmp_path, monkeypatch, capsys):
    run('configs/segmentation/drawn/teacher.py', 'teacher')
    teacher = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher/student.pth'))
    terms = [x for name in ('cwd', 'kd', 'pkd') for x in load(DRAWN).methods[name]]
    hook = dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms)
    summary = dict(type='kd_plugins.SummaryHook')
    config = load_config('configs/segmentation/drawn/student.py')
    hooks = dict(config.default_hooks, summary=summary)
    run('configs/segmentation/drawn/student.py', 'student', custom_hooks=[hook], default_hooks=hooks)
    weights = torch.load(tmp_path / 'student/student.pth', weights_only=True)['state_dict']
    assert weights.keys() == build(config.model).state_dict().keys()
    (log,) = (tmp_path / 'student').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {'loss_cwd', 'loss_kd', 'loss_pkd', 'decode.loss_ce', 'aux.loss_ce'} <= lines[0].keys()
    result = json.loads((tmp_path / 'student/result.json').read_text())['metrics']

    def call(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [tool, str(tmp_path / 'student.py'), str(tmp_path / 'student/student.pth')])
        sys.argv += map(str, arguments)
        runpy.run_path(str(ROOT / 'tools' / tool))['main']()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    metrics = call('test.py', '--show-dir', tmp_path / 'pictures', '--work-dir', tmp_path / 'test')
    assert metrics.keys() == {'mIoU', 'aAcc', 'mAcc'}
    assert metrics == pytest.approx({name: result[name] for name in metrics})
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 3
    file = tmp_path / 'student.onnx'
    card = call('export.py', '--to', file, '--score', '--normalize', '--work-dir', tmp_path / 'export')
    assert card['student']['metrics'] == pytest.approx(metrics)
    assert card['difference'] < 1e-4
    heads = sum(value.numel() for name, value in weights.items() if name.startswith('auxiliary_head'))
    assert heads > 0
    trained = sum(p.numel() for p in build(config.model).parameters())
    assert trained - heads <= card['student']['parameters'] < trained
    session = onnxruntime.InferenceSession(file)
    (shape,) = (x.shape for x in session.get_outputs())
    assert shape[1:] == [9, 6, 4]
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata['task'], json.loads(metadata['classes'])) == ('segmentation', ['background', *CLASSES])


def test_a_score_by_windows_is_no_score_of_a_file():
    config = copy.deepcopy(load('configs/segmentation/drawn/student.py'))
    check_score(config, None)
    config.model.test_cfg.mode = 'slide'
    for model in (config.model, dict(type='kd_plugins.Distiller', student=config.model, teacher={}, terms=[])):
        config.model = model
        with pytest.raises(UserError, match=r"mode is 'slide'.*test_cfg\.mode=whole"):
            check_score(config, None)


def test_images_of_several_sizes_are_padded_in_the_dry_run_as_in_training(run):
    """As those of mmseg's RandomResize and RandomCrop are; in evaluation its preprocessor takes one size alone."""
    teacher = dict(config=load('configs/segmentation/drawn/teacher.py').model.to_dict(), checkpoint=None)
    teacher['config'].update(_scope_='mmseg', data_preprocessor=load(DRAWN).model.data_preprocessor.to_dict())
    hook = dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=load(DRAWN).methods.cwd)
    step = dict(type='kd_plugins.Cropped')
    run('configs/segmentation/drawn/student.py', 'student', step, custom_hooks=[hook])


@TRANSFORMS.register_module()
class Cropped(BaseTransform):
    """Leaves out a row of every second picture."""

    def transform(self, results):
        if int(Path(results['img_path']).stem) % 2:
            results.update(img=results['img'][1:], gt_seg_map=results['gt_seg_map'][1:])
            results['img_shape'] = results['img'].shape[:2]
        return results


def test_an_export_takes_the_images_of_the_first_ones_size_and_asks_for_a_size_where_there_are_none(run, tmp_path):
    config = run('configs/segmentation/drawn/student.py', 'student')
    network = build(config.model)
    config.test_dataloader.dataset.pipeline.insert(2, dict(type='kd_plugins.Cropped'))
    found = images_for(config, network, None)  # of pictures 9, 10 and 11
    assert found.images.shape == (7, 3, 47, 32)
    assert found.source == 'of the test set'
    config.test_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    with pytest.raises(UserError, match=r'the test set is not here, .*: give --size HEIGHT WIDTH'):
        images_for(config, network, None)
    assert images_for(config, network, (40, 56)).images.shape == (7, 3, 40, 56)


def test_what_a_segmentors_file_says_of_binary_scores_and_of_padding():
    model = load('configs/segmentation/drawn/student.py').model
    part = exportable(build(model))
    assert part.meaning.endswith('and take the largest')
    assert 'pad_size_divisor' not in part.metadata((1, 3, 96, 96), None)
    model = copy.deepcopy(model)
    model.decode_head.update(
        num_classes=2, out_channels=1, threshold=0.4, loss_decode=dict(use_sigmoid=True, class_weight=None)
    )
    model.data_preprocessor = dict(model.data_preprocessor, size=None, size_divisor=64, test_cfg=dict(size_divisor=16))
    part = exportable(build(model))
    assert part.meaning.endswith(': resize them bilinearly to the image and take the sigmoid; above 0.4 it is one')
    assert part.metadata((1, 3, 96, 96), None)['pad_size_divisor'] == '16'
    model.data_preprocessor.test_cfg = dict(size=(128, 128))
    model.decode_head.align_corners = True
    part = exportable(build(model), normalize=True)
    about = part.metadata((1, 3, 128, 128), None)
    assert 'resize them bilinearly (align_corners=True) to the image' in about['meaning']
    assert about['pad_sides'] == 'right and bottom'
    assert json.loads(about['pad_value']) == pytest.approx(part.mean.flatten().tolist())
    assert 'pad_size_divisor' not in about


def test_heads_that_return_more_than_scores_are_refused():
    part = exportable(build(load('configs/segmentation/drawn/student.py').model))
    with pytest.raises(UserError, match='PSPHead returns 2 tensors, expected scores of pixels: it is not exported'):
        part.name_outputs((torch.zeros(1), torch.zeros(1)))


@TRANSFORMS.register_module()
class Renumbered(BaseTransform):
    """Gives the classes of some pictures other numbers."""

    def __init__(self, classes, pictures):
        self.classes, self.pictures = classes, pictures

    def transform(self, results):
        if int(Path(results['img_path']).stem) in self.pictures:
            results['gt_seg_map'] = np.resize(np.array(self.classes, np.uint8), results['gt_seg_map'].shape)
        return results


def test_a_class_that_a_head_lacks_is_refused_with_the_file(run):
    hook = dict(type='kd_plugins.LabelMapHook')
    teacher = dict(config=load('configs/segmentation/drawn/teacher.py').model.to_dict(), checkpoint=None)
    teacher['config'].update(_scope_='mmseg')
    distillation = dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=load(DRAWN).methods.cwd)
    for pictures, hooks in (([4], [hook]), (range(6), [distillation, hook])):
        step = dict(type='kd_plugins.Renumbered', classes=[0, 8, 9, 33, 255], pictures=pictures)
        file = pictures[0] if len(pictures) == 1 else r'\d'
        message = rf'{file}\.png: label map has class 9, expected 0 to 8, the classes of decode_head, or 255 where'
        with pytest.raises(UserError, match=message):
            run('configs/segmentation/drawn/student.py', 'student', step, custom_hooks=hooks)


def test_a_class_that_a_head_lacks_is_refused_in_a_score_too():
    hook, network = LabelMapHook(), build(load('configs/segmentation/drawn/student.py').model)
    runner = SimpleNamespace(model=network)
    data = data_of(2, 8, 9)
    hook.before_val_iter(runner, 0, data)
    data['data_samples'][1].gt_sem_seg.data[0, 3, 3] = 255
    hook.before_test_iter(runner, 0, data)
    network.decode_head.ignore_index = None
    data['data_samples'][1].set_metainfo(dict(seg_map_path='b.png'))
    for check in (hook.before_val_iter, hook.before_test_iter):
        with pytest.raises(UserError, match=r'b\.png: label map has class 255, expected 0 to 8, .* of decode_head: '):
            check(runner, 0, data)
    network.decode_head.ignore_index, network.decode_head.num_classes, network.decode_head.out_channels = 255, 1, 1
    data['data_samples'] = data_of(2, 8, 2)['data_samples']
    hook.before_val_iter(runner, 0, data)  # mmseg takes one score for labels of 0 and 1
    runner.model = torch.nn.Sequential()  # as a backbone alone
    hook.before_val_iter(runner, 0, data)


@pytest.mark.parametrize(
    ('labels', 'words'),
    [([[0, 255], [255, 0]], 'have class 0 alone'), ([[3, 3], [255, 255]], 'have class 3 alone'), ([[0], [1]], '')],
)
def test_one_class_alone_is_logged_once(labels, words, monkeypatch):
    lines = []
    monkeypatch.setattr(label_map_hook, 'print_log', lambda line, *_: lines.append(line))
    monkeypatch.setattr(label_map_hook, '_BATCHES', 4)
    hook, network = LabelMapHook(), build(load('configs/segmentation/drawn/student.py').model)
    for step in range(6):
        data = data_of(1, 2, 9)
        data['data_samples'][0].gt_sem_seg = PixelData(data=torch.tensor(labels[step % 2])[None, None])
        hook.before_train_iter(SimpleNamespace(model=network, iter=step), step, data)
    assert [words in line for line in lines] == [True] * bool(words)


def test_a_sample_without_a_label_map_stays_as_it_is():
    """mmseg's inference leaves out the step that reads label maps by a name that a run's own config does not have."""
    load_map = LoadSegMap(dict(type='mmseg.LoadAnnotations'))
    assert load_map(dict(img_path='a.jpg')) == dict(img_path='a.jpg')
