import copy

import mmengine
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, BaseModule, ImgDataPreprocessor
from mmengine.structures import BaseDataElement
from mmpretrain.structures import DataSample
from tiny import PREPROCESSOR, classifier, equal, saved_teacher
from torch import nn

from kd_plugins.distillation import sources
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.distillation.teacher import Teacher
from kd_plugins.errors import UserError
from kd_plugins.models import Distiller, MutualLearning, NativeEnsemble
from kd_plugins.registry import MODELS, TRANSFORMS
from kd_plugins.utils.models import to_channels_last


def build(**preprocessor):
    return MODELS.build(classifier() | dict(data_preprocessor=PREPROCESSOR | preprocessor))


class Body(BaseModule):
    """A network with a part of another library."""

    def __init__(self, part):
        super().__init__(dict(type='Constant', layer='Linear', val=0))
        self.own, self.part = nn.Linear(2, 2), part


def test_features_are_those_of_the_network(tmp_path):
    network = build_teacher(**saved_teacher(tmp_path))
    images = torch.randn(2, 3, 16, 16)
    features = Teacher(network, ['head.fc', 'backbone.stage2'], build().data_preprocessor)(images, None)
    network.eval()
    assert torch.equal(features['head.fc'][0], network(images, mode='tensor'))
    assert not features['head.fc'][0].requires_grad


def test_stays_out_of_its_owner(tmp_path):
    owner = nn.Linear(2, 2)
    owner.teacher = Teacher(build_teacher(**saved_teacher(tmp_path)), ['head.fc'], None)
    owner.train()
    assert set(owner.state_dict()) == {'weight', 'bias'}
    assert len(list(owner.parameters())) == 2
    assert not any(module.training for module in owner.teacher.model.modules())
    assert not any(p.requires_grad for p in owner.teacher.model.parameters())
    assert copy.deepcopy(owner).teacher is owner.teacher


@pytest.mark.parametrize(
    ('teacher', 'student'),
    [
        (dict(mean=[10.0, 20, 30], std=[1.0, 2, 4]), dict(mean=[100.0, 110, 120], std=[50.0, 60, 70])),
        (dict(mean=[10.0, 20, 30], std=[1.0, 2, 4], to_rgb=True), dict(mean=[100.0, 110, 120], std=[50.0, 60, 70])),
        (dict(mean=[10.0, 20, 30], std=[1.0, 2, 4]), dict(to_rgb=True)),
        (dict(mean=None, std=None), dict(mean=[100.0, 110, 120])),
        (dict(mean=None, std=None, to_rgb=True), {}),
        (dict(mean=None, std=None, to_rgb=True), dict(mean=None, std=None)),
        (dict(), dict(mean=None, std=None, to_rgb=True)),
    ],
)
def test_sees_images_in_its_own_normalisation(teacher, student):
    teacher, student = build(**teacher), build(**student)
    images = torch.randint(0, 256, (2, 3, 16, 16)).float()
    own = teacher.data_preprocessor(dict(inputs=images), False)['inputs']
    students = student.data_preprocessor(dict(inputs=images), False)['inputs']
    converted = Teacher(teacher, ['head.fc'], student.data_preprocessor)._convert(students, None)
    torch.testing.assert_close(converted, own, rtol=1e-4, atol=1e-4)


CIFAR = dict(mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7])  # of RGB arrays, which need no conversion
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)  # of files, loaded as BGR
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1, 1])  # of the same files, as they are


@pytest.mark.parametrize(
    ('student', 'arrays', 'teacher', 'sees'),
    [
        (CIFAR, 'rgb', IMAGENET, 'rgb'),
        (CIFAR, 'rgb', CIFAR | dict(mean=[127.5] * 3), 'rgb'),
        (IMAGENET, 'bgr', CIFAR, 'rgb'),
        (IMAGENET, 'bgr', CAFFE, 'bgr'),
        (CAFFE, 'bgr', IMAGENET, 'rgb'),
        (CAFFE, 'bgr', CAFFE | dict(mean=[127.5] * 3), 'bgr'),
        (IMAGENET | dict(mean=[127.5] * 3), 'bgr', IMAGENET, 'rgb'),
    ],
)
def test_sees_the_order_of_channels_that_it_was_trained_with(student, arrays, teacher, sees):
    red = torch.rand(1, 3, 8, 8) * torch.tensor([255.0, 20, 20])[:, None, None]
    images = red if arrays == 'rgb' else red.flip(1)
    student, teacher = build(**student), build(**teacher)
    batch = student.data_preprocessor(dict(inputs=images), False)['inputs']
    converted = Teacher(teacher, ['head.fc'], student.data_preprocessor)._convert(batch, None)
    own = (red if sees == 'rgb' else red.flip(1)) - teacher.data_preprocessor.mean
    torch.testing.assert_close(converted, own / teacher.data_preprocessor.std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('student', 'teacher', 'noted'),
    [
        (CIFAR | dict(mean=[127.5] * 3), IMAGENET, True),
        (CIFAR | dict(mean=[127.5] * 3), CIFAR, False),
        (CIFAR, IMAGENET, False),
        (IMAGENET | dict(mean=[127.5] * 3), IMAGENET, False),
    ],
)
def test_an_order_of_channels_that_nothing_tells_is_noted(student, teacher, noted, monkeypatch):
    lines = []
    monkeypatch.setattr('kd_plugins.distillation.teacher.print_log', lambda text, *_: lines.append(text))
    Teacher(build(**teacher), ['head.fc'], build(**student).data_preprocessor)
    assert ['are taken for BGR' in line for line in lines] == [True] * noted


def test_config_dict_without_a_normalisation_gets_the_batch_as_it_is():
    model = classifier()
    without = {key: value for key, value in model.items() if key != 'data_preprocessor'}
    images = torch.randn(2, 3, 8, 8)
    for network in (build_teacher(without, None), build_teacher(model, None, {})):
        teacher = Teacher(network, ['head.fc'], build(std=[1.0] * 3).data_preprocessor)
        assert torch.equal(teacher._convert(images, None), images)


def test_detector_of_raw_pixels_gets_them():
    """YOLOX: no mean and std, channels as they are, padded with 114."""
    student = ImgDataPreprocessor(mean=[10.0, 20, 30], std=[1.0, 2, 4], bgr_to_rgb=True)
    teacher = nn.Module()
    teacher.data_preprocessor = MODELS.build(dict(type='mmdet.DetDataPreprocessor', pad_value=114))
    batch = [torch.randint(0, 256, (3, *size)) for size in ((5, 7), (8, 8))]
    samples = [BaseDataElement(metainfo=dict(img_shape=x.shape[1:])) for x in batch]
    own = teacher.data_preprocessor(dict(inputs=batch), False)['inputs']
    converted = Teacher(teacher, [], student)._convert(student(dict(inputs=batch), False)['inputs'], samples)
    assert own[0, :, 5:].unique().tolist() == [114]
    torch.testing.assert_close(converted, own, rtol=1e-4, atol=1e-4)


def padded(count=1):
    """Return images of 5 x 7, which batching has padded to 8 x 8."""
    return nn.functional.pad(torch.randn(count, 3, 5, 7), (0, 1, 0, 3))


def test_padding_alone_is_converted():
    image = padded()
    sample = BaseDataElement(metainfo=dict(img_shape=(5, 7)))
    converted = Teacher(build(pad_value=3), ['head.fc'], build().data_preprocessor)._convert(image, [sample])
    assert torch.equal(converted[..., :5, :7], image[..., :5, :7])
    assert (converted[..., 5:, :] == 3).all()
    assert (converted[..., 7:] == 3).all()


def test_batch_of_unknown_normalisation_is_refused():
    for preprocessor in ({}, dict(mean=None, std=None)):
        with pytest.raises(UserError, match=r'BaseDataPreprocessor, defines none: .* as it is') as error:
            Teacher(build(**preprocessor), ['head.fc'], BaseDataPreprocessor())
        assert '\n' not in str(error.value)


def test_padding_stays_zero():
    convert = Teacher(build(mean=[0.0] * 3), ['head.fc'], build().data_preprocessor)._convert
    sample = BaseDataElement(metainfo=dict(img_shape=(5, 7)))
    images = convert(padded(), [sample])
    assert images[0, :, :5, :7].abs().min() > 0
    assert images[0, :, 5:].abs().max() == 0
    assert images[0, :, :, 7:].abs().max() == 0


def test_an_outdated_img_shape_masks_no_pixels():
    """mmpretrain's ``torchvision/Resize`` resizes the image and not ``img_shape``."""
    results = TRANSFORMS.build(dict(type='mmpretrain.torchvision/Resize', size=(8, 8)))(
        dict(img=torch.randint(1, 256, (3, 5, 7), dtype=torch.uint8), img_shape=(5, 7))
    )
    assert results['img_shape'] == (5, 7)
    teacher, student = build(mean=[0.0] * 3, std=[1.0] * 3), build()
    batch = student.data_preprocessor(dict(inputs=[results['img']]), False)['inputs']
    converted = Teacher(teacher, ['head.fc'], student.data_preprocessor)._convert(
        batch, [BaseDataElement(metainfo=dict(img_shape=results['img_shape']))]
    )
    torch.testing.assert_close(converted[0], results['img'].float())


def test_features_can_be_differentiated_in_the_inputs():
    """Through the conversion too; the gradient in the padding is 0."""
    network = build(mean=[0.0] * 3, to_rgb=True)
    teacher = Teacher(network, ['head.fc'], build().data_preprocessor)
    images = torch.cat([padded(), torch.randn(1, 3, 8, 8)]).requires_grad_()
    samples = [BaseDataElement(metainfo=dict(img_shape=(5, 7))), BaseDataElement()]
    (logits,) = teacher.features(images, samples)['head.fc']
    assert torch.equal(logits, teacher(images, samples)['head.fc'][0])
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient[0, :, :5, :7].abs().min() > 0
    assert gradient[0, :, 5:].abs().max() == gradient[0, :, :, 7:].abs().max() == 0
    assert gradient[1].abs().min() > 0
    assert all(p.grad is None for p in network.parameters())


def test_config_file_with_its_own_scope_and_preprocessor(tmp_path):
    teacher_config = saved_teacher(tmp_path)
    model = teacher_config['config'] | dict(_scope_=None)
    preprocessor = model.pop('data_preprocessor')
    config = mmengine.Config(dict(default_scope='mmpretrain', model=model, data_preprocessor=preprocessor))
    config.dump(str(tmp_path / 'teacher.py'))
    network = build_teacher(str(tmp_path / 'teacher.py'), teacher_config['checkpoint'])
    assert network.data_preprocessor.mean.flatten().tolist() == PREPROCESSOR['mean']


def test_stock_config_by_package_name(tmp_path):
    network = build_teacher('mmpretrain::resnet/resnet18_8xb16_cifar10.py', None)
    assert type(network.backbone).__name__ == 'ResNet_CIFAR'


@pytest.mark.parametrize('kind', ['kd_plugins.Distiller', Distiller, MutualLearning, NativeEnsemble])
def test_distilled_teacher_is_its_student(tmp_path, kind):
    teacher_config = saved_teacher(tmp_path)
    student = dict(teacher_config['config'])
    for where in ('student', 'model', None):  # the config dict that has the preprocessor
        distilled = dict(type=kind, student=student, data_preprocessor=PREPROCESSOR if where == 'model' else None)
        network = build_teacher(distilled, teacher_config['checkpoint'])
        assert type(network).__name__ == 'ImageClassifier'
        assert hasattr(network.data_preprocessor, 'mean') == (where is not None)
        if where == 'student':
            student.pop('data_preprocessor')


def test_without_a_checkpoint_init_cfg_loads_and_random_weights_are_logged(tmp_path, monkeypatch):
    log = []
    monkeypatch.setattr(sources, 'print_log', lambda line, *_: log.append(line))
    teacher_config = saved_teacher(tmp_path)
    model = teacher_config['config']
    model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=teacher_config['checkpoint'], prefix='backbone')
    network, expected = build_teacher(model, None), build_teacher(**teacher_config)
    assert equal(network.backbone.state_dict(), expected.backbone.state_dict())
    assert 'random weights in head.fc.weight, head.fc.bias: give it a checkpoint' in log[0]
    assert len(log) == 1
    model['init_cfg'] = dict(type='Pretrained', checkpoint=teacher_config['checkpoint'])
    assert equal(build_teacher(model, None).state_dict(), expected.state_dict())
    assert len(log) == 1
    model['backbone']['depth'] = 8
    with pytest.raises(UserError, match=r'the model does not have its pretrained weights: .*stage1\..* is left over'):
        build_teacher(model, None)


def test_a_part_of_another_library_keeps_its_weights():
    """timm's and transformers' networks have an init_weights, too, that re-initialises pretrained weights."""

    class Pretrained(nn.Conv1d):
        def init_weights(self):
            nn.init.zeros_(self.weight)

    network = build_teacher(dict(type=Body, part=Pretrained(2, 2, 1)), None)
    assert network.part.weight.any()
    assert not network.own.weight.any()


def test_missing_config(tmp_path):
    with pytest.raises(UserError, match=r'teacher config .*none\.py does not exist'):
        build_teacher(str(tmp_path / 'none.py'), None)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (None, 'comes from exactly one of config=, timm=, torchvision=, huggingface=, build=, got none'),
        (5, "must be a path, package::path, or a model's config dict with a 'type', got 5"),
        ({}, r'got \{\}'),
        ('nowhere::resnet.py', "teacher config nowhere::resnet.py does not exist: no package 'nowhere' is installed"),
        ('mmpretrain::_base_/datasets/cifar10_bs16.py', 'cifar10_bs16.py has no model: give the config of a whole'),
    ],
)
def test_invalid_configs(config, message):
    with pytest.raises(UserError, match=message):
        build_teacher(config, None)


def test_checkpoint_of_another_network(tmp_path):
    teacher_config = saved_teacher(tmp_path)
    with pytest.raises(UserError, match=r'does not fit ImageClassifier: .*stage1.* is left over.*this very network'):
        build_teacher(classifier(8), teacher_config['checkpoint'])
    with pytest.raises(UserError, match=r'size mismatch for backbone\.stem'):
        build_teacher(classifier(14, width=8), teacher_config['checkpoint'])


@pytest.mark.parametrize('kept', [0.5, 1.0])
def test_a_network_that_is_random_in_evaluation_is_refused(kept):
    """As a masked autoencoder, or a dropout by F.dropout, whose default is training."""

    class Masked(nn.Conv2d):
        def forward(self, images):
            noise = torch.rand(len(images), 1, *images.shape[-2:]) < kept
            return (super().forward(images) * noise).masked_fill(images[:, :1] > 9, torch.inf)  # which stays so

    teacher, images = Teacher(Masked(3, 4, 1), ['']), torch.randn(2, 3, 9, 9)
    images[0, 0, 0, 0] = 10
    if kept == 1:
        assert teacher.probe(images, None)[''][0].isinf().sum() == 4
        return
    with pytest.raises(UserError, match='the teacher, Masked, gives other features for the same images in every pass'):
        teacher.probe(images, None)


def test_runs_in_bfloat16_with_bf16_true(tmp_path):
    network = build_teacher(**saved_teacher(tmp_path))
    taps, images = ['head.fc', 'backbone.stage2'], torch.randn(4, 3, 16, 16)
    exact = Teacher(network, taps)(images, None)
    teacher = Teacher(copy.deepcopy(network), taps, bf16=True)
    features = teacher(images, None)
    for tap in taps:
        (rounded,), (expected,) = features[tap], exact[tap]
        assert rounded.dtype == torch.bfloat16
        assert 0 < (rounded - expected).norm() < 0.03 * expected.norm()
    assert features['backbone.stage2'][0].is_contiguous(memory_format=torch.channels_last)
    assert all(
        torch.equal(a, b)
        for a, b in zip(teacher.model.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert not torch.is_autocast_enabled('cpu')
    # Inputs of an attack keep float32: it compares nearly equal logits.
    (logits,) = teacher.features(images, None)['head.fc']
    torch.testing.assert_close(logits, exact['head.fc'][0])


@pytest.mark.parametrize('options', [dict(bf16=True), {}])
def test_a_network_whose_weights_have_five_dimensions_runs_channels_last(options: dict) -> None:
    """As those of 3-D convolutions do, and of grouped ones in other libraries."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 1, (1, 3, 3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.deep(self.flat(images)[:, None])[:, 0]

    network, images = Mixed(), torch.randn(2, 3, 9, 9)
    expected = network(images)
    teacher = Teacher(network, [''], **options)
    distilled = nn.Module()
    distilled._apply = lambda function: teacher.apply(function)  # as Distillation passes it on
    to_channels_last(distilled)
    assert network.flat.weight.is_contiguous(memory_format=torch.channels_last)
    (output,) = teacher(images, None)['']
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)


class Detector(BaseModel):
    """A network that reads what mmdet's data samples have and mmpretrain's lack."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs * data_samples[0].batch_input_shape[0]


def test_data_samples_of_another_package_are_named() -> None:
    teacher, images = Teacher(Detector(), ['']), torch.randn(1, 3, 4, 4)
    with pytest.raises(
        UserError,
        match=r"the teacher, Detector, reads what the data samples .*DataSamples, do not have .*'batch_input_shape'",
    ):
        teacher.probe(images, [DataSample()])
    with pytest.raises(TypeError, match='subscriptable'):  # without samples: of the network itself
        teacher.probe(images, None)
