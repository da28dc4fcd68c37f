"""Teachers of other libraries: their networks, weights and normalisation."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image
from safetensors.torch import save_file
from tiny import classifier, equal
from torch import nn
from torchvision.transforms.functional import resize

from kd_plugins import checkpoint
from kd_plugins.distillation import sources
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.errors import UserError
from kd_plugins.models import Distiller
from kd_plugins.registry import MODELS

VIT = 'test_vit.r160_in1k'  # timm's own network for tests: patches of 16 pixels
MOBILENET = dict(type='mmpretrain.MobileNetV2', widen_factor=0.25, out_indices=(4, 7))


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(sources, 'print_log', lambda line, *_: lines.append(line))
    return lines


def network_of(name='network'):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def saved(network, path):
    if path.suffix == '.safetensors':
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return str(path)


def dinov2(folder):
    """Save a tiny DINOv2 as transformers does, with a normalisation of its own."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=7, image_size=28)
    network = Dinov2Model(config)
    network.save_pretrained(folder)
    BitImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.3, 0.2, 0.1]).save_pretrained(folder)
    return network


# ---- one source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('teacher', 'message'),
    [
        (dict(), 'exactly one of config=, timm=, torchvision=, huggingface=, build=, got none'),
        (dict(timm=VIT, build='a:b'), 'got timm and build'),
        (dict(config=MOBILENET), "needs the option 'checkpoint'"),
        (dict(config=MOBILENET, checkpoint=None, weights=None), 'weights=None is for timm=, torchvision= and'),
        (dict(timm=VIT, weights='IMAGENET1K_V1'), "must be 'DEFAULT' or None"),
        (dict(timm=5), 'timm= must be a name, got 5'),
        (dict(timm=VIT, data_preprocessor=5), 'data_preprocessor must be a config dict, got 5'),
        (dict(timm=VIT, weights=None, revise_keys=[('a', 'b')]), 'revise_keys= renames what checkpoint= holds'),
        (dict(timm='resnet188'), "timm has no model 'resnet188'; nearest names: resnet18"),
        (dict(timm='vit_small_patch14_dinov2.lvd142'), r'nearest names: vit_small_patch14_dinov2\.lvd142m'),
        (dict(torchvision='resnet188'), "torchvision has no model 'resnet188'; nearest names: resnet18"),
        (dict(torchvision='resnet18', weights='V2'), "no weights 'V2': give one of IMAGENET1K_V1"),
        (dict(build='torchvision.models.resnet18'), "must be 'module:function'"),
        (dict(build=dict(arg=1)), "must be 'module:function'"),
        (dict(build='nosuch.module:f'), 'nosuch.module cannot be imported .*nosuch'),
        (dict(build='nosuch.py:f'), r'nosuch\.py cannot be imported .*does not exist'),
        (dict(build='torchvision.models:resnet181'), "has no 'resnet181'; nearest names: resnet18"),
        (dict(build='torchvision:__version__'), 'is a .*, expected a function'),
        (dict(build=dict(function='torch.nn:Linear', in_feature=2, out_features=2)), "did you mean 'in_features'"),
        (dict(build='torch.nn.init:constant_'), "needs the option 'tensor'"),
        (dict(build=dict(function='torch.nn:Conv2d', in_channels=3, out_channels=4, kernel_size='a')), 'failed .Type'),
        (dict(build='collections:OrderedDict'), 'returned a OrderedDict, expected an nn.Module'),
    ],
)
def test_mistakes_end_in_one_line(teacher, message):
    with pytest.raises(UserError, match=message) as error:
        build_teacher(**teacher)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('package', 'extra'), [('timm', 'timm'), ('transformers', 'huggingface')])
def test_a_missing_library_names_its_extra(monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{extra}= needs {package}, .*pip install -e '\.\[{extra}\]'"):
        build_teacher(**{extra: 'x'})


# ---- config ----------------------------------------------------------------------------------------------------------


def test_a_stock_config_without_a_head_has_the_scope_of_its_package(log):
    """Such a config has no default_scope; the run may be one of mmdet."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        network = build_teacher('mmpretrain::dinov2/vit-small-p14_dinov2-pre_headless.py', None)
    assert type(network.backbone).__module__.startswith('mmpretrain')
    assert network.data_preprocessor.to_rgb
    features = Teacher(network, ['backbone.layers.11'])(torch.randn(1, 3, 28, 28), None)
    assert features['backbone.layers.11'][0].shape == (1, 1 + 4, 384)


def test_a_detector_in_a_run_of_mmpretrain():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = sources.build_network('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
        features = Teacher(network, ['neck'])(torch.randn(1, 3, 64, 64), None)
    assert type(network).__module__.startswith('mmdet')
    assert [level.shape[1] for level in features['neck']] == [256] * 5


def test_a_bare_backbone(tmp_path, log):
    """Its ``eval()`` returns None, and its forward takes images alone."""
    own = build_teacher(MOBILENET, None)
    path = tmp_path / 'mobilenet.pth'
    torch.save({f'backbone.{key}': value for key, value in own.state_dict().items()}, path)
    network = build_teacher(MOBILENET, str(path), revise_keys=[(r'^backbone\.', '')])
    assert equal(network.state_dict(), own.state_dict())
    assert 'states no normalisation' in log[-1]
    images = torch.randn(2, 3, 32, 32)
    features = Teacher(network, ['', 'conv2'])(images, None)
    assert [x.shape[1] for x in features['']] == [24, 1280]
    own.train(False)
    assert torch.equal(features['conv2'][0], own(images)[1])
    # A whole network's file gives it its part.
    assert equal(build_teacher(MOBILENET, str(path)).state_dict(), own.state_dict())
    torch.save({f'neck.{key}': value for key, value in own.state_dict().items()}, path)
    with pytest.raises(UserError, match=r'does not fit MobileNetV2: conv1\.conv\.weight is missing'):
        build_teacher(MOBILENET, str(path))


def test_a_bare_backbones_preprocessor_is_its_teachers(log):
    network = build_teacher(MOBILENET, None, dict(mean=[1.0, 2, 3], std=[1.0] * 3, to_rgb=True))
    assert network.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]
    assert not any('normalisation' in line for line in log)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
@pytest.mark.parametrize(
    'teacher', [dict(timm=VIT), dict(torchvision='squeezenet1_0'), dict(build=f'{__name__}:network_of')]
)
def test_a_checkpoint_is_loaded(tmp_path, log, teacher, ending):
    random = {} if 'build' in teacher else dict(weights=None)
    own = build_teacher(**teacher, **random)
    path = saved(own, tmp_path / f'weights.{ending}')
    log.clear()
    network = build_teacher(**teacher, checkpoint=path)
    assert equal(network.state_dict(), own.state_dict())
    assert not [line for line in log if 'random' in line]
    other = saved(nn.Linear(2, 2), tmp_path / f'other.{ending}')
    with pytest.raises(UserError, match=rf'other\.{ending} does not fit {type(own).__name__}: .*is missing'):
        build_teacher(**teacher, checkpoint=other)
    (tmp_path / f'cut.{ending}').write_bytes(Path(path).read_bytes()[:-9])
    with pytest.raises(UserError, match=rf'cut\.{ending} is not a readable checkpoint') as error:
        build_teacher(**teacher, checkpoint=str(tmp_path / f'cut.{ending}'))
    assert '\n' not in str(error.value)


def test_random_weights_are_asked_for_and_logged(log):
    build_teacher(timm=VIT, weights=None)
    assert log == [f"the teacher timm='{VIT}' has random weights, as weights=None says"]


def test_a_folder_of_transformers(tmp_path, log):
    own = dinov2(tmp_path)
    network = build_teacher(huggingface=str(tmp_path))
    preprocessor = network.data_preprocessor
    assert equal(network.state_dict(), own.state_dict())
    assert log == []
    torch.testing.assert_close(preprocessor.mean.flatten(), torch.tensor([127.5, 102, 76.5]))
    torch.testing.assert_close(preprocessor.std.flatten(), torch.tensor([76.5, 51, 25.5]))
    images = torch.randn(2, 3, 14, 21)
    features = Teacher(network, ['encoder.layer.1'])(images, None)
    with torch.no_grad():
        expected = own.eval()(images, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(features['encoder.layer.1'][0], expected)


def test_transformers_weights_of_a_classifier_in_half_precision_and_by_a_file(tmp_path, log):
    """It comes with its head; some files hold bfloat16."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patch_size=8)
    own = ViTForImageClassification(config).bfloat16()
    own.save_pretrained(tmp_path)
    by_folder = build_teacher(huggingface=str(tmp_path))
    file = (tmp_path / 'model.safetensors').rename(tmp_path / 'weights.safetensors')
    by_file = build_teacher(huggingface=str(tmp_path), checkpoint=str(file))
    assert len(log) == 2
    assert 'states no normalisation' in log[0]  # no preprocessor_config.json
    images = torch.randn(1, 3, 16, 24)  # of another size than the 224 pixels of its position table
    for network in (by_folder, by_file):
        assert {x.dtype for x in network.parameters()} == {torch.float32}
        assert equal(network.state_dict(), {name: x.float() for name, x in own.state_dict().items()})
        features = Teacher(network, ['vit.layernorm', 'classifier', '']).probe(images, None)
        assert features['vit.layernorm'][0].shape == (1, 7, 16)
        assert features['classifier'][0].shape == (1, 2)
        assert torch.equal(features[''][0], features['classifier'][0])
    random = build_teacher(huggingface=str(tmp_path), weights=None)
    assert {name: x.shape for name, x in random.named_parameters()} == {n: x.shape for n, x in own.named_parameters()}


def test_transformers_weights_of_another_task(tmp_path, log):
    """Their names have a prefix, and there is no pooler."""
    from transformers import ViTConfig, ViTForMaskedImageModeling

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    own = ViTForMaskedImageModeling(config)
    own.save_pretrained(tmp_path)
    network = build_teacher(huggingface=str(tmp_path))
    assert ['random weights in pooler.dense.bias' in line for line in log] == [True, False]
    weights = {name: x for name, x in network.state_dict().items() if 'pooler' not in name}
    assert equal(weights, {name: x for name, x in own.vit.state_dict().items() if 'mask_token' not in name})


def test_the_part_for_images_of_a_model_of_images_and_text(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    part = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    text = part | dict(vocab_size=9, bos_token_id=1, eos_token_id=2)
    own = CLIPModel(CLIPConfig(text_config=text, vision_config=part | dict(patch_size=8, image_size=16)))
    own.save_pretrained(tmp_path)
    network = build_teacher(huggingface=str(tmp_path), data_preprocessor={})
    assert equal(network.state_dict(), own.vision_model.state_dict())


def test_a_file_of_the_networks_authors_is_renamed_by_timm(tmp_path, log):
    """DINOv2's own file has a mask token and the register tokens under another name."""
    name = 'vit_small_patch14_reg4_dinov2.lvd142m'
    own = build_teacher(timm=name, weights=None)
    weights = own.state_dict()
    theirs = dict(weights, mask_token=torch.zeros(1, 384), register_tokens=weights['reg_token'])
    # The class token has a position there, timm's table has none for it.
    theirs['pos_embed'] = torch.cat([torch.zeros(1, 1, 384), weights['pos_embed']], 1)
    del theirs['reg_token']
    torch.save(theirs, tmp_path / 'dinov2.pth')
    network = build_teacher(timm=name, checkpoint=str(tmp_path / 'dinov2.pth'))
    assert equal(network.state_dict(), weights)
    assert 'state_dict' not in network.pretrained_cfg


def test_transformers_in_bfloat16(tmp_path):
    dinov2(tmp_path)
    network = build_teacher(huggingface=str(tmp_path))
    images = torch.randn(2, 3, 14, 14)
    (exact,) = Teacher(network, ['layernorm'])(images, None)['layernorm']
    (rounded,) = Teacher(network, ['layernorm'], bf16=True)(images, None)['layernorm']
    assert 0 < (rounded - exact).norm() < 0.03 * exact.norm()


def test_code_beside_the_weights_is_not_run(tmp_path, monkeypatch, log):
    """Nor offered to be run: a folder may name classes of its own, which transformers would ask about."""
    monkeypatch.setattr('builtins.input', lambda *_: 'y')
    dinov2(tmp_path)
    (tmp_path / 'own.py').write_text(
        f'open({str(tmp_path / "ran")!r}, "w").close()\n'
        'from transformers import BitImageProcessor, Dinov2Model\n'
        'class Processor(BitImageProcessor):\n    pass\n'
        'class Model(Dinov2Model):\n    pass\n'
    )
    file = tmp_path / 'preprocessor_config.json'
    file.write_text('{"image_processor_type": "Processor", "auto_map": {"AutoImageProcessor": "own.Processor"}}')
    build_teacher(huggingface=str(tmp_path))
    assert ['states no normalisation' in line for line in log] == [True]
    (tmp_path / 'config.json').write_text('{"model_type": "rag", "auto_map": {"AutoModel": "own.Model"}}')
    with pytest.raises(UserError, match='cannot be loaded'):
        build_teacher(huggingface=str(tmp_path))
    assert not (tmp_path / 'ran').exists()


class Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def test_pickled_code_is_not_run_by_timm(tmp_path, monkeypatch):
    """Its older versions read files of the hub by ``torch.load(..., weights_only=False)``."""
    import timm

    torch.save(dict(weight=Touch(tmp_path / 'ran')), tmp_path / 'evil.bin')
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: torch.load(tmp_path / 'evil.bin', weights_only=False))
    with pytest.raises(UserError, match=f"timm='{VIT}' cannot be loaded"):
        build_teacher(timm=VIT)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('given', [dict(mean=[10.0, 20.0, 30.0], std=[1.0, 2.0, 4.0]), {}])
def test_a_sequential_network_does_not_run_its_preprocessor(tmp_path, given):
    (tmp_path / 'own.py').write_text(
        'from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())\n'
    )
    network = build_teacher(build=f'{tmp_path}/own.py:net', data_preprocessor=given)
    images, student = torch.rand(2, 3, 8, 8), MODELS.build(classifier()).data_preprocessor
    features = Teacher(network, ['1'], student)(images, None)['1'][0]
    converted = Teacher(network, ['1'], student)._convert(images, None)
    torch.testing.assert_close(features, network[0](converted).relu())
    assert torch.equal(converted, images) == (not given)


def test_pickled_code_is_not_run_by_an_init_cfg(tmp_path):
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'more': Touch(tmp_path / 'ran')}, tmp_path / 'evil.pth')
    config = classifier()
    config['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'evil.pth'), prefix='backbone.')
    with pytest.raises(UserError, match=r'evil.pth holds pickled code'):
        build_teacher(config, None)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('allowed', [False, True])
def test_the_commands_flag_for_pickled_code_holds_for_hugging_face_too(tmp_path, monkeypatch, allowed):
    transformers = pytest.importorskip('transformers')
    asked = []

    def from_pretrained(*_, weights_only, **__):
        asked.append(weights_only)
        raise ValueError('stop here')

    folder = tmp_path / 'model'
    transformers.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(folder)
    monkeypatch.setattr(transformers.Dinov2Model, 'from_pretrained', from_pretrained)
    monkeypatch.setattr(checkpoint, 'pickle_allowed', lambda: allowed)
    with pytest.raises(UserError, match='stop here'):
        build_teacher(huggingface=str(folder))
    assert asked == [not allowed]


def test_torchvisions_weights_load_where_pickles_are_allowed_elsewhere(tmp_path, monkeypatch):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    own = squeezenet1_1(weights=None)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    (tmp_path / 'checkpoints').mkdir()
    torch.save(own.state_dict(), tmp_path / 'checkpoints' / Path(SqueezeNet1_1_Weights.DEFAULT.url).name)
    assert equal(build_teacher(torchvision='squeezenet1_1').state_dict(), own.state_dict())


def test_torchvisions_files_are_loaded_as_torchvision_does(tmp_path):
    """Its densenets have older names in the files, Inception converts its input, and segmenters have a second head."""
    from torchvision import models

    own = models.densenet121(weights=None)
    weights = {name: x for name, x in own.state_dict().items() if x.ndim}  # they count no batches
    theirs = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', name): x for name, x in weights.items()}
    torch.save(theirs, tmp_path / 'densenet.pth')
    network = build_teacher(torchvision='densenet121', checkpoint=str(tmp_path / 'densenet.pth'))
    assert equal(network.state_dict(), own.state_dict())
    saved(models.inception_v3(weights=None, init_weights=False), tmp_path / 'inception.pth')
    assert build_teacher(torchvision='inception_v3', checkpoint=str(tmp_path / 'inception.pth')).transform_input
    own = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    with pytest.raises(UserError, match=r'other\.pth does not fit LRASPP: size mismatch'):
        build_teacher(torchvision='lraspp_mobilenet_v3_large', checkpoint=saved(own, tmp_path / 'other.pth'))


def test_weights_that_lack_layers_are_refused(tmp_path):
    from transformers import Dinov2Config

    dinov2(tmp_path)
    config = Dinov2Config.from_pretrained(tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r'the weights lack encoder\.layer\.2'):
        build_teacher(huggingface=str(tmp_path))


def test_without_a_network_the_line_says_what_to_fetch(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError('no network')

    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    monkeypatch.setattr('kd_plugins.checkpoint.download_url_to_file', refuse)
    with pytest.raises(UserError, match=r'https://download\.pytorch\.org/models/resnet18-f37072fd\.pth cannot be'):
        build_teacher(torchvision='resnet18')
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', refuse)
    address = rf'https://huggingface\.co/timm/{VIT}/resolve/main/model\.safetensors'
    with pytest.raises(UserError, match=rf'no network\): fetch {address} and give its path as checkpoint='):
        build_teacher(timm=VIT)
    monkeypatch.setattr('transformers.AutoConfig.from_pretrained', refuse)
    with pytest.raises(UserError, match=r'no network\): fetch config\.json, .* of https://huggingface\.co/a/b into'):
        build_teacher(huggingface='a/b')


# ---- normalisation ---------------------------------------------------------------------------------------------------


STUDENTS = {
    'BGR': dict(mean=[103.5, 116.3, 123.7], std=[1.0, 2.0, 3.0]),
    'RGB': dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True),
    'raw': dict(),
    'raw RGB': dict(bgr_to_rgb=True),
}


def seen_by(teacher, student, pixels):
    """Return what a teacher sees of an RGB image (H, W, 3), which the student's data set loads as BGR."""
    student = ImgDataPreprocessor(**student)
    bgr = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
    batch = student(dict(inputs=[bgr], data_samples=None), False)['inputs']
    return Teacher(teacher, [], student)._convert(batch, None)[0]


@pytest.mark.parametrize('student', STUDENTS.values(), ids=STUDENTS)
@pytest.mark.parametrize('source', ['timm', 'torchvision', 'huggingface'])
def test_the_teacher_sees_what_its_own_transform_gives(tmp_path, source, student):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if source == 'timm':
        from timm.data import create_transform

        network = build_teacher(timm=VIT, weights=None)  # mean and std of 0.5
        expected = create_transform(32, **_statistics_of_timm(network), crop_pct=1.0)(image)
    elif source == 'torchvision':
        from torchvision.models import ResNet18_Weights

        network = build_teacher(torchvision='resnet18', weights=None)
        expected = ResNet18_Weights.DEFAULT.transforms(crop_size=32, resize_size=32)(image)
    else:
        from transformers import AutoImageProcessor

        dinov2(tmp_path)
        network = build_teacher(huggingface=str(tmp_path))
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        expected = processor(image, do_resize=False, do_center_crop=False, return_tensors='pt').pixel_values[0]
    torch.testing.assert_close(seen_by(network, student, pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('options', [{}, dict(rescale_factor=1 / 127.5, rescale_offset=True, include_top=False)])
def test_a_processor_with_options_of_its_own(tmp_path, options):
    """EfficientNet's normalises twice, or scales to -1..1 before."""
    from transformers import EfficientNetImageProcessor

    dinov2(tmp_path)
    processor = EfficientNetImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.3, 0.2, 0.1], **options)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = processor(pixels, do_resize=False, do_center_crop=False, return_tensors='pt').pixel_values[0]
    network = build_teacher(huggingface=str(tmp_path))
    torch.testing.assert_close(seen_by(network, STUDENTS['RGB'], pixels), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('student', STUDENTS.values(), ids=STUDENTS)
def test_a_network_of_transformers_that_takes_bgr(tmp_path, student):
    from transformers import AutoImageProcessor, MobileViTConfig, MobileViTImageProcessor, MobileViTModel

    sizes = dict(hidden_sizes=[8] * 3, neck_hidden_sizes=[8] * 7, num_attention_heads=2, image_size=32)
    MobileViTModel(MobileViTConfig(**sizes)).save_pretrained(tmp_path)
    MobileViTImageProcessor().save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    expected = processor(pixels, do_resize=False, do_center_crop=False, return_tensors='pt').pixel_values[0]
    network = build_teacher(huggingface=str(tmp_path))
    torch.testing.assert_close(seen_by(network, student, pixels), expected, rtol=1e-4, atol=1e-4)
    cifar = ImgDataPreprocessor(mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7])  # its batch is RGB
    batch = cifar(dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)]), False)['inputs']
    torch.testing.assert_close(Teacher(network, [], cifar)._convert(batch, None)[0], expected, rtol=1e-4, atol=1e-4)


def _statistics_of_timm(network):
    return {key: network.pretrained_cfg[key] for key in ('mean', 'std')}


def test_a_data_set_of_rgb_images_is_recognised_by_its_mean():
    """CIFAR's: ``to_rgb=False``, though the batch is RGB."""
    network = build_teacher(timm=VIT, weights=None)
    student = ImgDataPreprocessor(mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7])
    rgb = torch.randint(0, 256, (3, 16, 16))
    batch = student(dict(inputs=[rgb]), False)['inputs']
    own = network.data_preprocessor
    torch.testing.assert_close(
        Teacher(network, [], student)._convert(batch, None)[0], (rgb - own.mean) / own.std, rtol=1e-4, atol=1e-4
    )


def test_a_given_preprocessor_comes_first(log):
    network = build_teacher(timm=VIT, weights=None, data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3))
    assert network.data_preprocessor.std.flatten().tolist() == [2] * 3
    network = build_teacher(timm=VIT, weights=None, data_preprocessor={})
    assert type(network.data_preprocessor) is BaseDataPreprocessor
    log.clear()
    build_teacher(build='torch.nn:Flatten')
    assert ['states no normalisation' in line for line in log] == [True]
    build_teacher(build='torch.nn:Flatten', data_preprocessor={})
    assert len(log) == 1


# ---- a function ------------------------------------------------------------------------------------------------------


def test_a_function_of_a_file_with_arguments(tmp_path):
    (tmp_path / 'beside.py').write_text('from torch.nn import Linear\n')
    (tmp_path / 'own.py').write_text('from beside import Linear\n\ndef net(width):\n    return Linear(3, width)\n')
    path = list(sys.path)
    network = build_teacher(build=dict(function=f'{tmp_path}/own.py:net', width=5), data_preprocessor={})
    assert network.weight.shape == (5, 3)
    assert sys.path == path


def test_a_file_may_import_in_its_function_and_define_dataclasses(tmp_path):
    (tmp_path / 'beside_later.py').write_text('WIDTH = 5\n')
    (tmp_path / 'own.py').write_text(
        'from __future__ import annotations\n'
        'from dataclasses import dataclass\n'
        'from torch.nn import Linear\n\n'
        '@dataclass\nclass Options:\n    inputs: int = 3\n\n'
        'def net():\n    from beside_later import WIDTH\n    return Linear(Options().inputs, WIDTH)\n'
    )
    path = list(sys.path)
    network = build_teacher(build=f'{tmp_path}/own.py:net', data_preprocessor={})
    assert network.weight.shape == (5, 3)
    assert sys.path == path


# ---- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('size', 'expected'), [(8, (8, 8)), ((12, 20), (12, 20)), ([6, 4], (6, 4))])
def test_the_batch_is_resized_after_its_conversion(size, expected):
    """As Pillow's and torchvision's antialiased bilinear filter does."""
    student = ImgDataPreprocessor([120.0] * 3, [60.0] * 3)
    network = build_teacher(build='torch.nn:Identity', data_preprocessor=dict(mean=[10.0] * 3, std=[5.0] * 3))
    pixels = torch.randint(0, 256, (2, 3, 24, 40)).float()
    batch = student(dict(inputs=pixels), False)['inputs']
    (seen,) = Teacher(network, [''], student, size=size)(batch, None)['']
    assert seen.shape[-2:] == expected
    own = resize(pixels, list(expected), antialias=True)
    torch.testing.assert_close(seen, (own - 10) / 5, rtol=1e-4, atol=1e-4)


def test_padding_is_the_teachers_before_it_is_resized():
    student, mean = ImgDataPreprocessor([120.0] * 3, [60.0] * 3), dict(mean=[10.0] * 3, std=[5.0] * 3)
    network = build_teacher(build='torch.nn:Identity', data_preprocessor=mean | dict(pad_value=7))
    batch = student(dict(inputs=[torch.rand(3, 8, 8) * 255, torch.rand(3, 8, 4) * 255]), False)['inputs']
    samples = [BaseDataElement(metainfo=dict(img_shape=(8, width))) for width in (8, 4)]
    (seen,) = Teacher(network, [''], student, size=4)(batch, samples)['']
    assert (seen[1, :, :, 3] == 7).all()


@pytest.mark.parametrize('size', ['224', (1, 2, 3), 0, (4, -1), 2.5, True, (4.0, 4.0)])
def test_invalid_sizes(size):
    with pytest.raises(UserError, match=r"a teacher's size must be a number of pixels or \(height, width\), got"):
        Teacher(nn.Identity(), [], size=size)


@pytest.mark.parametrize(
    ('teacher', 'side', 'options', 'message'),
    [
        (dict(timm=VIT), 40, {}, r'patches of 16 x 16 pixels, but gets images of 40 x 40: .* as size=\(32, 32\)'),
        (dict(timm=VIT), 32, dict(size=(32, 50)), r'gets images of 32 x 50: .* as size=\(32, 48\)'),
        (
            dict(
                timm='vit_base_patch32_clip_224',
            ),
            8,
            {},
            r'as size=\(32, 32\)',
        ),
        (
            dict(torchvision='vit_b_32'),
            64,
            {},
            r'VisionTransformer, does not run on images of 64 x 64 pixels \(AssertionError: Wrong image',
        ),
    ],
)
def test_sizes_that_a_teacher_does_not_take(teacher, side, options, message):
    network = build_teacher(**teacher, weights=None)
    with pytest.raises(UserError, match=message) as error:
        Teacher(network, [''], **options).probe(torch.zeros(1, 3, side, side), None)
    assert '\n' not in str(error.value)


def test_a_size_of_a_later_batch_that_a_teacher_does_not_take():
    """As in training at several scales."""
    teacher = Teacher(build_teacher(timm=VIT, weights=None), [''])
    teacher.probe(torch.zeros(1, 3, 32, 32), None)
    teacher(torch.zeros(1, 3, 48, 32), None)
    with pytest.raises(UserError, match=r'gets images of 40 x 32: .* as size=\(32, 32\)'):
        teacher(torch.zeros(1, 3, 40, 32), None)


def test_vision_transformers_resize_their_position_table():
    network = build_teacher(timm='vit_tiny_patch16_224', weights=None)
    features = Teacher(network, ['blocks.1']).probe(torch.zeros(1, 3, 32, 48), None)
    assert features['blocks.1'][0].shape == (1, 1 + 2 * 3, 192)


def test_a_network_that_takes_more_than_images():
    teacher = Teacher(nn.Bilinear(2, 2, 2), [''])
    with pytest.raises(UserError, match=r'Bilinear, does not run on images of 8 x 8 pixels \(TypeError: .*missing'):
        teacher.probe(torch.zeros(1, 3, 8, 8), None)


def test_networks_of_one_size_are_set_to_the_given_one():
    network = build_teacher(timm='swin_tiny_patch4_window7_224', weights=None)
    features = Teacher(network, ['layers.3'], size=(64, 96)).probe(torch.zeros(1, 3, 32, 32), None)
    assert features['layers.3'][0].shape == (1, 2, 3, 768)


def test_networks_that_pad_take_every_size(log):
    network = build_teacher('mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py', None)
    assert Teacher(network, ['backbone'], size=40).probe(torch.zeros(1, 3, 32, 32), None)['backbone']


# ---- what holds for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('teacher', [dict(timm=VIT, weights=None, size=32), dict(build=f'{__name__}:network_of')])
def test_a_students_training_leaves_a_teacher_of_another_library_alone(teacher, log):
    tap = 'blocks.1' if 'timm' in teacher else '0'
    term = dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student='backbone.stage3', teacher=tap)
    student = classifier()
    model = Distiller(student, teacher, [term], task='off', input_shape=(3, 24, 24))
    network = model.distillation.teacher.model
    before = {name: x.clone() for name, x in network.state_dict().items()}
    assert model.state_dict().keys() == MODELS.build(student).state_dict().keys()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        losses = model(torch.randn(2, 3, 24, 24), None, mode='loss')
        losses['loss_at'].backward()
        optimizer.step()
    assert equal(network.state_dict(), before)
    assert not any(module.training for module in network.modules())
    model.double()
    assert next(network.parameters()).dtype == torch.float64
    assert model(torch.randn(2, 3, 24, 24).double(), None, mode='loss')['loss_at'].dtype in (
        torch.float32,
        torch.float64,
    )


def test_a_teacher_of_another_library_is_frozen_and_cached(tmp_path, log):
    network = build_teacher(timm=VIT, weights=None)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    student = ImgDataPreprocessor([120.0] * 3, [60.0] * 3)
    images, taps = torch.randn(2, 3, 32, 32), ['blocks.1', 'norm']

    def teacher(**options):
        return Teacher(network, taps, student, **options)

    plain = teacher(size=48)(images, None)
    cached = teacher(size=48, cache=str(tmp_path))
    assert cached(images, None).keys() == plain.keys()
    cached.features = None  # no further pass
    assert all(torch.equal(a, b) for tap in taps for a, b in zip(cached(images, None)[tap], plain[tap], strict=True))
    assert len({teacher(size=size, cache=str(tmp_path))._cache.path for size in (None, 48, (48, 32))}) == 3
    for tap, (rounded,) in teacher(size=48, bf16=True)(images, None).items():
        assert 0 < (rounded - plain[tap][0]).norm() < 0.03 * plain[tap][0].norm()
    assert equal(network.state_dict(), before)
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    cached.apply(lambda x: x.double() if x.is_floating_point() else x)
    assert teacher(size=48)(images.double(), None)['norm'][0].dtype == torch.float64
