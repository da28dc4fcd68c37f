"""Every config that a user can name loads, and what it describes fits together."""

import re
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, HOOKS, PARAM_SCHEDULERS
from mmengine.structures import BaseDataElement
from mmpretrain.structures import DataSample

from kd_plugins.config import default_work_dir
from kd_plugins.distillation import sources
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.registry import MODELS

ROOT = Path(__file__).parents[1]
ALL = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob('configs/**/*.py'))
    if not {'_base_', 'studies'} & {*path.parts}
]
ONLINE = [path for path in ALL if {'dml', 'one'} & {*re.split(r'[/._]', path)}]  # networks that teach each other
ONLINE_MODELS = {'one': 'NativeEnsemble', 'dml': 'MutualLearning'}
LEAVES = [path for path in ALL if path not in ONLINE]
CLASSIFICATION = [path for path in LEAVES if path.startswith(('configs/cifar', 'configs/imagenet', 'configs/tiny_'))]
REID = [path for path in LEAVES if path.startswith('configs/market1501')]
TRANSFER = [path for path in LEAVES if path.startswith('configs/transfer')]
PAIRS = [path for path in CLASSIFICATION if '_to_' in path]
METHODS = {
    'kd',
    'fitnet',
    'at',
    'fsp',
    'sp',
    'rkd-d',
    'rkd-a',
    'rkd-da',
    'nst-linear',
    'nst-poly',
    'nst-gaussian',
    'kd_nst',
    'kd_at',
    'kd_nst_at',
    'fitnet_nst',
    'kd_fitnet',
    'kd_fitnet_nst',
    'at_nst',
    'bss',
    'nst-gan',
    'fitnet_stage1',
    'fitnet_two-stage',
    'fsp_stage1',
    'fsp_two-stage',
}


@pytest.fixture(autouse=True)
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a config's networks are initialised from is not there."""
    monkeypatch.setattr(sources, '_initialise', lambda network: None)


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


def teachers_of(record: ConfigDict) -> list[ConfigDict]:
    return [record.teacher] if isinstance(record.teacher, dict) else record.teacher


def distillation_of(config: Config) -> ConfigDict | None:
    return next((x for x in config.get('custom_hooks', []) if x.type == 'kd_plugins.DistillationHook'), None)


@pytest.mark.parametrize('path', ONLINE)
def test_an_online_config_is_its_plain_networks_run(path: str) -> None:
    config, folder = load(path), Path(path).parent
    method = folder.name if folder.name in ONLINE_MODELS else re.split(r'[/._]', path)[-2]
    assert config.model.type == f'kd_plugins.{ONLINE_MODELS[method]}'
    if folder.name in ONLINE_MODELS:
        plain = load(str(folder.parent / f'{Path(path).stem.partition("_")[0]}.py'))
        assert config.model.student == plain.model
        changed = {key for key in config.keys() | plain.keys() if config.get(key) != plain.get(key)}
        assert changed == {'model'} or Path(path).stem in ('resnet32', 'wrn-28-2_resnet26')
    with MODELS.switch_scope_and_registry('mmpretrain'):
        MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


@pytest.mark.parametrize(
    ('path', 'batch', 'optimizer', 'epochs', 'drops'),
    [
        (
            'cifar10/one/resnet32',
            128,
            dict(type='SGD', lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4),
            300,
            [151, 225],
        ),
        (
            'cifar100/one/resnet32',
            128,
            dict(type='SGD', lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4),
            300,
            [151, 225],
        ),
        (
            'cifar100/dml/resnet32',
            64,
            dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            200,
            [60, 120, 180],
        ),
        ('market1501/mobilenet-v2_dml', 16, dict(type='Adam', lr=2e-4, betas=(0.5, 0.999), weight_decay=4e-5), 124, []),
    ],
)
def test_online_methods_have_their_papers_training(path, batch, optimizer, epochs, drops) -> None:
    config = load(f'configs/{path}.py')
    assert config.train_dataloader.batch_size == batch
    assert config.optim_wrapper.optimizer == optimizer
    assert config.train_cfg.max_epochs == epochs
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], optimizer['lr'])
    schedulers = [PARAM_SCHEDULERS.build(dict(config.param_scheduler, optimizer=sgd))] if drops else []
    rates = []
    for _ in range(epochs):
        rates.append(sgd.param_groups[0]['lr'])
        sgd.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates == pytest.approx([optimizer['lr'] * 0.1 ** sum(e >= drop for drop in drops) for e in range(epochs)])


def test_bss_attacks_in_its_authors_normalisation() -> None:
    config = load('configs/cifar10/resnet26_to_resnet8/bss.py')
    authors = 255 * torch.tensor([0.2023, 0.1994, 0.2010])
    scale = distillation_of(config).terms[1].loss.scale
    expected = authors / torch.tensor(config.data_preprocessor.std)
    torch.testing.assert_close(torch.tensor(scale), expected, rtol=0, atol=5e-4)


def test_both_online_methods_have_the_posters_networks() -> None:
    networks = {'resnet8', 'resnet14', 'resnet20', 'resnet26', 'wrn-10-2', 'wrn-16-2', 'wrn-28-2', 'wrn-40-2'}
    for data in ('cifar10', 'cifar100'):
        for method in ONLINE_MODELS:
            assert networks <= {Path(x).stem for x in ONLINE if x.startswith(f'configs/{data}/{method}/')}


@pytest.mark.parametrize('path', [x for x in LEAVES if x not in CLASSIFICATION + REID])
def test_a_config_on_the_way_to_a_detector_takes_its_student_over(path: str) -> None:
    """Every detector's backbone is, key for key, that of the student that its config requires."""
    config = load(path)
    assert config.default_hooks.export.type == 'kd_plugins.ExportHook'
    assert config.default_hooks.pretrained_check.type == 'kd_plugins.PretrainedCheckHook'
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
    alpha = sum(
        term.weight for term in terms if term.name == 'kd' and not isinstance(term.weight, dict) and term.weight < 1
    )
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
    teacher = [{**x, 'config': model_of(x.config), 'checkpoint': None} for x in teachers_of(record)]
    distillation = Distillation(student, teacher, record.terms)
    lines = distillation.dry_run(student, images, None)
    assert [line.split(':')[0] for line in lines] == [term.name for term in record.terms]


def normalise(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Give an untrained network the BatchNorm statistics of its own maps, so that these are of a trained one's size."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(images)
    network.eval()


@pytest.mark.parametrize(
    'path',
    [
        x
        for x in CLASSIFICATION
        if re.match(
            r'configs/(cifar10/(resnet26|wrn-40-2)_to_.*/(bss|fitnet|fsp|at|sp|kd|nst-.*|rkd-.*)[_.]|imagenet/.*_fitnet_)',
            x,
        )
        and not re.search('two-(stage|teachers)', x)
    ],
)
def test_a_method_survives_the_first_steps_of_its_own_learning_rate(path: str) -> None:
    """The full schedules have no warm-up: a weight that is too large diverges at once."""
    torch.manual_seed(0)
    config, side = load(path), 64 if 'imagenet' in path else 32
    images = torch.randn(4, 32, 3, side, side)
    samples = [DataSample().set_gt_label(x) for x in range(8)] * 4
    student, record = build_teacher(model_of(path), None), distillation_of(config)
    student.init_weights()
    teachers = [{**x, 'config': model_of(x.config), 'checkpoint': None} for x in teachers_of(record)]
    distillation = Distillation(student, teachers, record.terms, record.get('task', True))
    for teacher in distillation.teachers:
        normalise(teacher.model, images[0])
    distillation.dry_run(student, images[0], samples)
    options = {key: value for key, value in config.optim_wrapper.optimizer.items() if key not in ('type', '_scope_')}
    optimizer = torch.optim.SGD([*student.parameters(), *distillation.parameters()], **options)
    sizes = []
    for batch in images:
        losses = distillation.losses(partial(student.train(), batch, samples, mode='loss'), batch, samples)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        sizes.append(sum(losses[f'loss_{term.name}'].item() for term in record.terms))
    # An untrained student can be as near to an untrained teacher as nothing: what grows from there is no divergence.
    assert all(size < 20 * max(sizes[0], 0.05) for size in sizes), sizes


@pytest.mark.parametrize(
    'path',
    [f'configs/cifar10/{method}/{network}.py' for method in ONLINE_MODELS for network in ('resnet8', 'wrn-16-2')],
)
def test_networks_that_teach_each_other_survive_their_first_steps(path: str) -> None:
    torch.manual_seed(0)
    config = load(path)
    with MODELS.switch_scope_and_registry('mmpretrain'):
        model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
    model.init_weights()
    options = {key: value for key, value in config.optim_wrapper.optimizer.items() if key not in ('type', '_scope_')}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    sizes = []
    for images in torch.randn(6, 32, 3, 32, 32):
        losses = model.train()(images, [DataSample().set_gt_label(x) for x in range(8)] * 4, mode='loss')
        total = sum(value for name, value in losses.items() if 'loss' in name)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        sizes.append(total.item())
    assert all(size < 3 * sizes[0] for size in sizes)


def test_every_pair_has_every_method() -> None:
    for data in ('cifar10', 'cifar100'):
        for pair in ('resnet26_to_resnet8', 'wrn-40-2_to_wrn-16-2'):
            one_of_a_kind = {'kd_two-teachers'} if (data, pair) == ('cifar10', 'resnet26_to_resnet8') else set()
            assert {Path(x).stem for x in PAIRS if x.startswith(f'configs/{data}/{pair}/')} == METHODS | one_of_a_kind


@pytest.mark.parametrize('path', PAIRS)
def test_a_pair_is_its_baselines_and_the_teacher_comes_from_its_own_run(path: str) -> None:
    config, folder = load(path), Path(path).parent
    teacher, student = (load(str(folder.parent / f'{name}.py')) for name in folder.name.split('_to_'))
    taught, stages = distillation_of(config), [x for x in config.requires if x.config.endswith('_stage1.py')]
    assert [x for x in config.requires if x not in stages] == (teachers_of(taught) if taught else [])
    first = config.requires[0]
    assert Path(first.config) in (folder.parent / f'{folder.name.split("_to_")[0]}.py', folder / 'fsp_stage1.py')
    for required in config.requires:
        assert required.checkpoint == f'{default_work_dir(required.config)}/student.pth'
    assert teacher.train_dataloader == config.train_dataloader
    assert teacher.model.head.num_classes == config.model.head.num_classes
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'):
        assert student[key] == config[key]
    assert student.model.backbone == config.model.backbone


TWO_STAGE = [path for path in CLASSIFICATION if path.endswith('_two-stage.py')]


@pytest.mark.parametrize('path', TWO_STAGE)
def test_a_second_stage_goes_on_from_the_hints_of_the_first(path: str) -> None:
    config, first = load(path), load(path.replace('_two-stage', '_stage1'))
    joint = load(path.replace('_two-stage', ''))
    assert config.load_from == config.requires[-1].checkpoint
    assert config.requires[-1].config == path.replace('_two-stage', '_stage1')
    assert (distillation_of(first).task, first.find_unused_parameters) == (False, True)
    assert distillation_of(first).terms == distillation_of(joint).terms
    assert distillation_of(first).teacher == distillation_of(joint).teacher
    assert config.model == first.model == joint.model
    terms = (distillation_of(config) or {'terms': []})['terms']
    assert [term.name for term in terms] == (['kd'] if 'fitnet' in path else [])


def test_every_stage_is_there() -> None:
    assert len(TWO_STAGE) == 2 * 5


def test_weights_of_bss_are_the_authors() -> None:
    """w_KD = 3 (1 - e / E) + 1, w_BSS = max(2 (1 - 4 e / (3 E)), 0), beside a KDLoss that includes tau^2."""
    kd, bss = distillation_of(load('configs/cifar10/resnet26_to_resnet8/bss.py')).terms
    assert kd.loss.tau == bss.loss.tau == 3
    for progress in (0, 0.2, 0.5, 0.75, 0.9, 1):
        values = [Schedule(**term.weight).value_at(progress) for term in (kd, bss)]
        assert values == pytest.approx([(3 * (1 - progress) + 1) / 9, max(2 * (1 - 4 * progress / 3), 0)])


@pytest.mark.parametrize('path', [x for x in CLASSIFICATION if x.startswith('configs/imagenet/')])
def test_an_imagenet_teacher_has_the_weights_of_its_config(path: str) -> None:
    teacher = distillation_of(load(path)).teacher
    assert teacher.checkpoint.startswith(
        f'https://mmassets.onedl.ai/mmclassification/v0/resnet/{Path(teacher.config).stem}_'
    )


@pytest.mark.parametrize('path', REID)
def test_a_reid_config_is_a_whole_run(path: str) -> None:
    config = load(path)
    hooks, model = config.default_hooks, config.model.get('student', config.model)
    assert (hooks.export.type, hooks.pretrained_check.type) == (
        'kd_plugins.ExportHook',
        'kd_plugins.PretrainedCheckHook',
    )
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


@pytest.mark.parametrize(
    'pair', ['market1501/resnet50_to_resnet18', 'market1501/resnet50_to_mobilenet-v2', 'market1501_sample']
)
def test_every_loss_of_a_reid_pair_meets_its_teacher(pair: str) -> None:
    """All terms of the pair's configs at once: building a ResNet-50 for each would take a minute."""
    configs = [load(path) for path in REID if path.startswith(f'configs/{pair}/')]
    records = [x for x in map(distillation_of, configs) if x is not None]
    terms = {str(term): term for record in records for term in record.terms}
    assert {term.loss.type for term in terms.values()} >= {
        f'kd_plugins.{name}Loss' for name in ('KD', 'AT', 'SP', 'RKD', 'NST')
    }

    def reid_model(config: Config) -> ConfigDict:
        model = ConfigDict(config.model, data_preprocessor=config.data_preprocessor, _scope_='mmpretrain')
        return ConfigDict(model, backbone=ConfigDict(model.backbone, init_cfg=None))

    config = next(x for x in configs if distillation_of(x) is not None)
    student = build_teacher(reid_model(config), None)
    teacher = dict(records[0].teacher, config=reid_model(load(records[0].teacher.config)), checkpoint=None)
    distillation = Distillation(
        student, teacher, [dict(term, name=f'term{number}') for number, term in enumerate(terms.values())]
    )
    lines = distillation.dry_run(student, torch.randn(2, 3, 128, 64), None)
    assert len(lines) == len(terms)
    # The last stage does not stride: on maps, student and teacher meet at a sixteenth of the size.
    assert all('8, 4)' in line for line in lines if 'NSTLoss' in line)


@pytest.mark.parametrize(
    'name', ['market1501/resnet50_to_resnet18/kd', 'cifar10/resnet8', 'cifar100/resnet8', 'tiny_imagenet/wrn-16-2']
)
def test_data_sets_and_hooks_are_found_by_name(name: str) -> None:
    import mmpretrain.datasets  # noqa: F401

    config = load(f'configs/{name}.py')
    for loader in (config.train_dataloader, config.val_dataloader):
        data = DATASETS.build({**loader.dataset, 'lazy_init': True, '_scope_': 'mmpretrain'})
        assert len(data.pipeline.transforms) == len(loader.dataset.pipeline)
    for hook in config.default_hooks.values():
        HOOKS.build(hook)


@pytest.mark.parametrize('path', TRANSFER)
def test_a_transfer_config_takes_its_backbone_over_from_its_student(path: str) -> None:
    config = load(path)
    hooks, source = config.default_hooks, config.model.backbone.init_cfg
    assert (hooks.export.type, hooks.pretrained_check.type) == (
        'kd_plugins.ExportHook',
        'kd_plugins.PretrainedCheckHook',
    )
    assert (source.type, source.prefix) == ('Pretrained', 'backbone.')
    assert config.model.head.num_classes == config.data_preprocessor.num_classes
    network = build_teacher(path, None)
    if 'frozen' not in hooks:  # fine-tuning, from public weights
        assert source.checkpoint.startswith('https://')
        split = load(path).split
        assert split == '1'
        assert config.work_dir == f'work_dirs/transfer/dtd/split{split}/' + path[len('configs/transfer/dtd/') : -3]
        assert config.train_dataloader.dataset.ann_file == f'lists/trainval{split}.txt'
        assert config.val_dataloader.dataset.ann_file == f'lists/test{split}.txt'
        for required in config.get('requires', []):
            assert required == distillation_of(config).teacher
            assert required.checkpoint == f'{load(required.config).work_dir}/student.pth'
            teacher = dict(required, config=required.config, checkpoint=None)
            Distillation(network, teacher, distillation_of(config).terms).dry_run(
                network, torch.randn(2, 3, 64, 64), None
            )
        return
    assert hooks.frozen.modules == ['backbone']
    for required in config.get('requires', []):
        assert required.checkpoint == source.checkpoint == f'{default_work_dir(required.config)}/student.pth'
        student = build_teacher(required.config, None)
        shapes = [{k: v.shape for k, v in net.backbone.state_dict().items()} for net in (network, student)]
        assert shapes[0] == shapes[1]
    for other in config.get('compare', {}).values():
        assert other in TRANSFER
