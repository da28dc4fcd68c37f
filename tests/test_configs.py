"""Every config that a user can name loads, and what it describes fits together."""

from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, HOOKS
from mmengine.structures import BaseDataElement

from kd_plugins.config import default_work_dir
from kd_plugins.distiller import Distillation
from kd_plugins.teacher import build_teacher

ROOT = Path(__file__).parents[1]
LEAVES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob('configs/**/*.py')) if '_base_' not in path.parts
]
CLASSIFICATION = [path for path in LEAVES if path.startswith(('configs/cifar', 'configs/imagenet', 'configs/tiny_'))]
REID = [path for path in LEAVES if path.startswith('configs/market1501')]
PAIRS = [path for path in CLASSIFICATION if '_to_' in path]
METHODS = {
    'kd', 'fitnet', 'at', 'fsp', 'sp', 'rkd-d', 'rkd-a', 'rkd-da', 'nst-linear', 'nst-poly', 'nst-gaussian',
    'kd_nst', 'kd_at', 'kd_nst_at', 'fitnet_nst',
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@cache
def load(path: str) -> Config:
    return Config.fromfile(path)


def model_of(path: str) -> str | ConfigDict:
    """Return the model's record, without reading the config again; a stock config's name as it is."""
    if '::' in path:
        return path
    config = load(path)
    return ConfigDict(config.model, data_preprocessor=config.data_preprocessor, _scope_='mmpretrain')


def distillation_of(config: Config) -> ConfigDict | None:
    return next((x for x in config.get('custom_hooks', []) if x.type == 'kd_plugins.DistillationHook'), None)


@pytest.mark.parametrize('path', [x for x in LEAVES if x not in CLASSIFICATION + REID])
def test_a_config_on_the_way_to_a_detector_takes_its_student_over(path: str) -> None:
    """Every detector's backbone is, key for key, that of the student that its config requires."""
    config = load(path)
    assert config.default_hooks.export.type == 'kd_plugins.ExportHook'
    assert config.default_hooks.handover.type == 'kd_plugins.HandoverHook'
    network = build_teacher(path, None)
    if config.default_scope != 'mmdet':
        return
    source = config.model.backbone.init_cfg
    assert (source.type, source.prefix) == ('Pretrained', 'backbone.')
    for required in config.get('requires', []):
        assert required.checkpoint == source.checkpoint == f'{default_work_dir(required.config)}/student.pth'
        student = build_teacher(required.config, None)
        shapes = [{k: v.shape for k, v in net.backbone.state_dict().items()} for net in (network, student)]
        assert shapes[0] == shapes[1]


def test_distillation_inside_the_detector_meets_on_every_level() -> None:
    path = 'configs/voc/nst_in_detector.py'
    record, student = distillation_of(load(path)), build_teacher(path, None)
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (64, 64))
    sample = BaseDataElement(metainfo=sizes | dict(scale_factor=(1.0, 1.0)))
    teacher = dict(config=record.teacher.config, checkpoint=None)
    lines = Distillation(student, teacher, record.terms).dry_run(student, torch.randn(1, 3, 64, 64), [sample])
    assert lines[1].count('(1, 256, ') == 10  # five levels on each side


@pytest.mark.parametrize('path', CLASSIFICATION)
def test_a_classification_config_is_a_whole_run(path: str) -> None:
    config = load(path)
    # Both come through default_hooks, so that a leaf's own custom_hooks cannot drop them.
    assert config.default_hooks.export.type == 'kd_plugins.ExportHook'
    assert config.default_hooks.reseed.type == 'kd_plugins.ReseedHook'
    assert 'kd_plugins' in config.custom_imports.imports
    assert config.model.head.num_classes == config.data_preprocessor.num_classes
    # The share that KD takes in (1 - alpha) CE + alpha KD is the one that the task gives up.
    terms = (distillation_of(config) or {'terms': []})['terms']
    alpha = sum(term.weight for term in terms if term.name == 'kd' and term.weight < 1)
    assert config.model.head.loss.loss_weight == pytest.approx(1 - alpha)


@pytest.mark.parametrize('path', CLASSIFICATION)
def test_networks_and_terms_of_a_config_meet(path: str) -> None:
    config = load(path)
    images = torch.randn(2, 3, *((64, 64) if 'imagenet' in path else (32, 32)))
    student = build_teacher(model_of(path), None)
    record = distillation_of(config)
    if record is None:
        with torch.no_grad():
            logits = student.eval()(images)
        assert logits.shape == (2, config.model.head.num_classes)
        return
    teacher = {**record.teacher, 'config': model_of(record.teacher.config), 'checkpoint': None}
    distillation = Distillation(student, teacher, record.terms)
    lines = distillation.dry_run(student, images, None)
    assert [line.split(':')[0] for line in lines] == [term.name for term in record.terms]


def test_every_pair_has_every_method() -> None:
    for data in ('cifar10', 'cifar100'):
        for pair in ('resnet26_to_resnet8', 'wrn-40-2_to_wrn-16-2'):
            assert {Path(x).stem for x in PAIRS if x.startswith(f'configs/{data}/{pair}/')} == METHODS


@pytest.mark.parametrize('path', PAIRS)
def test_a_pair_is_its_baselines_and_the_teacher_comes_from_its_own_run(path: str) -> None:
    config, folder = load(path), Path(path).parent
    teacher, student = (load(str(folder.parent / f'{name}.py')) for name in folder.name.split('_to_'))
    (required,) = config.requires
    assert required == distillation_of(config).teacher
    assert Path(required.config) == folder.parent / f'{folder.name.split("_to_")[0]}.py'
    assert required.checkpoint == f'{default_work_dir(required.config)}/student.pth'
    assert teacher.train_dataloader == config.train_dataloader
    assert teacher.model.head.num_classes == config.model.head.num_classes
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'):
        assert student[key] == config[key]
    assert student.model.backbone == config.model.backbone


@pytest.mark.parametrize('path', [x for x in CLASSIFICATION if x.startswith('configs/imagenet/')])
def test_an_imagenet_teacher_has_the_weights_of_its_config(path: str) -> None:
    teacher = distillation_of(load(path)).teacher
    assert teacher.checkpoint.startswith(
        f'https://mmassets.onedl.ai/mmclassification/v0/resnet/{Path(teacher.config).stem}_')


@pytest.mark.parametrize('path', REID)
def test_a_reid_config_is_a_whole_run(path: str) -> None:
    config = load(path)
    hooks, model = config.default_hooks, config.model.get('student', config.model)
    assert (hooks.export.type, hooks.handover.type) == ('kd_plugins.ExportHook', 'kd_plugins.HandoverHook')
    assert hooks.sync_buffers.type == 'SyncBuffersHook'
    sampler = config.train_dataloader.sampler
    assert config.train_dataloader.batch_size == sampler.identities * sampler.instances
    assert model.head.num_classes == config.data_preprocessor.num_classes
    assert config.val_dataloader.dataset.split == config.test_dataloader.dataset.split == 'test'
    assert config.val_dataloader.dataset.pipeline[-1].meta_keys == ('img_path', 'identity', 'camera', 'is_query')
    record = config.model if 'terms' in config.model else distillation_of(config)
    assert (record is not None) == ('requires' in config)
    for required in config.get('requires', []):
        assert required == record.teacher
        assert required.checkpoint == f'{default_work_dir(required.config)}/student.pth'
        assert load(required.config).model.head.num_classes == model.head.num_classes


@pytest.mark.parametrize('pair', ['market1501/resnet50_to_resnet18', 'market1501/resnet50_to_mobilenet-v2',
                                  'market1501_sample'])
def test_every_loss_of_a_reid_pair_meets_its_teacher(pair: str) -> None:
    """All terms of the pair's configs at once: building a ResNet-50 for each would take a minute."""
    configs = [load(path) for path in REID if path.startswith(f'configs/{pair}/')]
    records = [x for x in map(distillation_of, configs) if x is not None]
    terms = {str(term): term for record in records for term in record.terms}
    assert {term.loss.type for term in terms.values()} >= {
        f'kd_plugins.{name}Loss' for name in ('KD', 'AT', 'SP', 'RKD', 'NST')}

    def reid_model(config: Config) -> ConfigDict:
        model = ConfigDict(config.model, data_preprocessor=config.data_preprocessor, _scope_='mmpretrain')
        return ConfigDict(model, backbone=ConfigDict(model.backbone, init_cfg=None))

    config = next(x for x in configs if distillation_of(x) is not None)
    student = build_teacher(reid_model(config), None)
    teacher = dict(records[0].teacher, config=reid_model(load(records[0].teacher.config)), checkpoint=None)
    distillation = Distillation(student, teacher, [
        dict(term, name=f'term{number}') for number, term in enumerate(terms.values())])
    lines = distillation.dry_run(student, torch.randn(2, 3, 128, 64), None)
    assert len(lines) == len(terms)
    # The last stage does not stride: on maps, student and teacher meet at a sixteenth of the size.
    assert all('8, 4)' in line for line in lines if 'NSTLoss' in line)


@pytest.mark.parametrize(
    'name', ['market1501/resnet50_to_resnet18/kd', 'cifar10/resnet8', 'cifar100/resnet8', 'tiny_imagenet/wrn-16-2'])
def test_data_sets_and_hooks_are_found_by_name(name: str) -> None:
    import mmpretrain.datasets  # noqa: F401

    config = load(f'configs/{name}.py')
    for loader in (config.train_dataloader, config.val_dataloader):
        data = DATASETS.build({**loader.dataset, 'lazy_init': True, '_scope_': 'mmpretrain'})
        assert len(data.pipeline.transforms) == len(loader.dataset.pipeline)
    for hook in config.default_hooks.values():
        HOOKS.build(hook)
