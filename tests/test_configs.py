"""Every config that a user can name loads, with every method, and what it describes fits together."""

import copy
import os
import re
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, HOOKS, PARAM_SCHEDULERS
from mmengine.structures import BaseDataElement
from mmpretrain.structures import DataSample

from kd_plugins.config import check_config, load_config, terms_of, trained
from kd_plugins.distillation import sources
from kd_plugins.distillation.distillation import Distillation
from kd_plugins.distillation.schedule import Schedule
from kd_plugins.distillation.sources import build_teacher
from kd_plugins.errors import UserError
from kd_plugins.registry import MODELS

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob('configs/**/*.py'))
# Detectors and segmentors have files of their own, test_detection_configs.py and test_segmentation.py.
OTHER = {'_base_', 'studies', 'detection', 'segmentation'}
ALL = [path.relative_to(ROOT).as_posix() for path in FILES if not OTHER & {*path.parts}]
# METHOD in the environment chooses what these train on, NETWORK what networks that teach each other are.
WITH_METHOD = [path for path in ALL if '{{$METHOD:' in Path(ROOT, path).read_text()]
TWO_STAGE = [path for path in WITH_METHOD if path.endswith('_two-stage.py')]
PAIRS = [
    path
    for path in WITH_METHOD
    if not re.search(r'_stage1|_two-stage|/transfer/(stl10|tiny_imagenet)/|/voc_sample/|retail', path)
]
ONLINE = [(path, {}) for path in ALL if re.search(r'_(dml|one)\.|_quick/(dml|one)\.|_sample/dml\.', path)]
POSTER = ('resnet8', 'resnet14', 'resnet20', 'resnet26', 'wrn-10-2', 'wrn-16-2', 'wrn-28-2', 'wrn-40-2')
ONLINE += [
    (f'configs/{data}/{method}.py', dict(NETWORK=network))
    for data in ('cifar10', 'cifar100')
    for method in ('dml', 'one')
    for network in POSTER
]
ONLINE_MODELS = {'one': 'NativeEnsemble', 'dml': 'MutualLearning'}
LEAVES = [path for path in ALL if path not in [name for name, _ in ONLINE]]
CLASSIFICATION = [path for path in LEAVES if path.startswith(('configs/cifar', 'configs/imagenet', 'configs/tiny_'))]
REID = [path for path in LEAVES if path.startswith('configs/market1501')]
TRANSFER = [path for path in LEAVES if path.startswith('configs/transfer')]
# Leaves of a pair and one of its methods, in folders where people look for a file.
ONE_METHOD = [
    path for path in ALL if re.match(r'configs/(imagenet|market1501)/.*_from_[a-z]+\d+_(?!kd_distiller)', path)
]
REPDISTILLER = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4)
# Files of other programs, and the user's own, which comments and configs name.
ELSEWHERE = {'eval_rep.py', 'run_distill_classification.py', 'train_normal.py', 'data/reid/retail.py'}


@pytest.fixture(autouse=True)
def _without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the weights that a config's networks start from: no test downloads them."""
    monkeypatch.setattr(sources, '_initialise', lambda network: None)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@cache
def _load(path: str, environment: tuple[tuple[str, str], ...]) -> Config:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in ('METHOD', 'NETWORK', 'DTD_SPLIT'):
            patch.delenv(name, raising=False)
        for name, value in environment:
            patch.setenv(name, value)
        return load_config(path)


def load(path: str, **environment: str) -> Config:
    return _load(path, tuple(environment.items()))


def model_of(path: str | ConfigDict) -> str | ConfigDict:
    """Return the model's config dict, without reading the config again; a stock config's name or a dict as it is."""
    if not isinstance(path, str) or '::' in path:
        return path
    config = load(path)
    return ConfigDict(config.model, data_preprocessor=config.data_preprocessor, _scope_='mmpretrain')


def teachers_of(record: ConfigDict) -> list[ConfigDict]:
    return [record.teacher] if isinstance(record.teacher, dict) else record.teacher


def distillation_of(config: Config) -> ConfigDict | None:
    return next((x for x in config.get('custom_hooks', []) if x.type == 'kd_plugins.DistillationHook'), None)


@pytest.mark.parametrize(('path', 'environment'), ONLINE)
def test_an_online_config_is_its_plain_networks_run(path: str, environment: dict[str, str]) -> None:
    config, method = load(path, **environment), re.split(r'[/._]', path)[-2]
    assert config.model.type == f'kd_plugins.{ONLINE_MODELS[method]}'
    if network := environment.get('NETWORK'):
        plain = load(str(Path(path).with_name(f'{network}.py')))
        assert config.model.student == plain.model
        changed = {key for key in config.keys() | plain.keys() if config.get(key) != plain.get(key)}
        assert changed == {'model', 'variant', 'work_dir'}
        assert config.work_dir == f'work_dirs/{path[8:-3]}/{network}'
    with MODELS.switch_scope_and_registry('mmpretrain'):
        MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


@pytest.mark.parametrize(
    ('path', 'batch', 'optimizer', 'epochs', 'drops'),
    [
        (
            'cifar10/resnet32_one',
            128,
            dict(type='SGD', lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4),
            300,
            [151, 225],
        ),
        (
            'cifar100/resnet32_one',
            128,
            dict(type='SGD', lr=0.1, momentum=0.9, nesterov=False, weight_decay=1e-4),
            300,
            [151, 225],
        ),
        (
            'cifar100/resnet32_dml',
            64,
            dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            200,
            [60, 120, 180],
        ),
        ('cifar100/canonical/resnet20', 64, REPDISTILLER, 240, [150, 180, 210]),
        ('cifar100/canonical/shufflenet-v2', 64, REPDISTILLER | dict(lr=0.01), 240, [150, 180, 210]),
        ('market1501/mobilenet-v2_dml', 16, dict(type='Adam', lr=2e-4, betas=(0.5, 0.999), weight_decay=4e-5), 124, []),
    ],
)
def test_a_training_is_its_papers(path, batch, optimizer, epochs, drops) -> None:
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
    config = load('configs/cifar10/resnet8_from_resnet26.py', METHOD='bss')
    authors = 255 * torch.tensor([0.2023, 0.1994, 0.2010])
    scale = distillation_of(config).terms[1].loss.scale
    expected = authors / torch.tensor(config.data_preprocessor.std)
    torch.testing.assert_close(torch.tensor(scale), expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize('path', [x for x in LEAVES if x not in CLASSIFICATION + REID])
def test_a_config_on_the_way_to_a_detector_takes_its_student_over(path: str) -> None:
    """Every detector's backbone is, key for key, that of the student that its config requires."""
    config = load(path)
    check_config(config)
    assert config.default_hooks.export.type == 'kd_plugins.ExportHook'
    assert config.default_hooks.pretrained_check.type == 'kd_plugins.PretrainedCheckHook'
    network = build_teacher(path, None)
    if config.default_scope != 'mmdet':
        return
    source = config.model.backbone.init_cfg
    if source is None:
        assert (config.requires, config.model.backbone.frozen_stages) == ([], -1)
        return
    assert (source.type, source.prefix) == ('Pretrained', 'backbone.')
    for required in config.get('requires', []):
        assert required.checkpoint == source.checkpoint == f'{load(required.config).work_dir}/student.pth'
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
    assert config.model.head.loss.loss_weight == (0.1 if config.get('variant') == 'kd_alpha' else 1)


@pytest.mark.parametrize('path', [x for x in PAIRS if 'kd_alpha' in load(x).methods])
def test_the_share_that_kd_takes_is_the_one_that_the_task_gives_up(path: str) -> None:
    """In (1 - alpha) CE + alpha KD; standardised KD has a tenth of CE, too."""
    for method, alpha, task in (
        ('kd', 0, 1),
        ('kd_alpha', 0.9, 0.1),
        ('at+kd_alpha', 0.9, 0.1),
        ('lskd', 0, 0.1),
        ('dkd+sp', 0, 1),
    ):
        config = load(path, METHOD=method)
        assert config.model.head.loss.loss_weight == task
        assert sum(x.weight for x in distillation_of(config).terms if x.name == 'kd' and x.weight < 1) == alpha


@pytest.mark.parametrize('path', [x for x in PAIRS if 'cifar' in x and 'lskd' in load(x).methods])
def test_standardised_logits_count_from_the_start_only_at_the_authors_learning_rate(path: str) -> None:
    """And so do DIST's correlations: neither sees the size of small logits."""
    methods = load(path).methods
    weights = methods.lskd[0].weight, methods.dist[0].weight
    if 'canonical' in path:
        assert weights == (1.0 if 'mobilenet' in path else 9.0, 1.0)
    else:
        schedules = [Schedule(**weight) for weight in weights]
        assert [(x.by, x.value_at(0), x.value_at(1)) for x in schedules] == [('progress', 0, 9), ('progress', 0, 1)]


@pytest.mark.parametrize('path', [x for x in CLASSIFICATION if '_from_' not in x])
def test_a_single_network_runs(path: str) -> None:
    config = load(path)
    with torch.no_grad():
        logits = build_teacher(model_of(path), None).eval()(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, config.model.head.num_classes)


@pytest.mark.parametrize(
    ('name', 'published'),
    {
        'resnet20': 278_324,
        'resnet32': 472_756,
        'resnet56': 861_620,
        'resnet110': 1_736_564,
        'resnet8x4': 1_233_540,
        'resnet32x4': 7_433_860,
        'resnet50': 23_705_252,
        'wrn-16-2': 703_284,
        'wrn-40-1': 569_780,
        'wrn-40-2': 2_255_156,
        'vgg8': 3_965_028,
        'vgg13': 9_462_180,
        'shufflenet-v1': 949_258,
        'shufflenet-v2': 1_355_528,
        'mobilenet-v2': 812_836,
    }.items(),
)
def test_canonical_networks_have_the_parameters_of_repdistillers(name: str, published: int) -> None:
    """Counted from its classes with 100 classes."""
    network = build_teacher(model_of(f'configs/cifar100/canonical/{name}.py'), None)
    assert sum(p.numel() for p in network.parameters()) == published


def reduced(model: str | ConfigDict) -> str | ConfigDict:
    """Return a network's config dict without the address of its weights."""
    return model if isinstance(model, str) else ConfigDict(model, backbone=ConfigDict(model.backbone, init_cfg=None))


@pytest.mark.parametrize('path', PAIRS)
def test_every_method_of_a_pair_meets_its_networks(path: str) -> None:
    """The terms of all methods at once: building the networks for each would take minutes."""
    config = copy.deepcopy(load(path))
    side = (128, 64) if 'market1501' in path else (64, 64) if re.search('imagenet|dtd|pretrain', path) else (32, 32)
    student = build_teacher(reduced(model_of(path)), None)
    teachers = [
        dict(x, config=reduced(model_of(x.config)), checkpoint=None) for x in teachers_of(distillation_of(config))
    ]
    if '_and_' in path:
        config.methods.pop('fsp')  # it compares channels, and the WideResNet has twice as many
    if path.endswith('_from_resnet50.py') and 'canonical' in path:
        config.methods.pop('mgd')  # its block of 2048 channels has 75 million weights
    terms = list({str(term): term for term in chain(*config.methods.values())}.values())
    named = [dict(term, name=f'term{i}') for i, term in enumerate(terms)]
    distillation = Distillation(student, teachers, named, distillation_of(config).get('task', 'train'))
    lines = distillation.dry_run(student, torch.randn(2, 3, *side), None)
    assert len(lines) == len(terms) >= (5 if 'pretrain' in path else 8)
    if 'market1501' in path:  # the last stage does not stride: its maps have a sixteenth of the size
        assert all('8, 4)' in line for line in lines if 'NSTLoss' in line)


def test_every_method_meets_a_network_that_a_file_returns(tmp_path: Path) -> None:
    (tmp_path / 'retail.py').write_text(
        'from torch import nn\n'
        'class Retail(nn.Module):\n'
        '    def __init__(self):\n'
        '        super().__init__()\n'
        '        self.maps = nn.Conv2d(3, 5, 16, 16)\n'
        '        self.embedding = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n'
        '    def forward(self, images): return self.embedding(self.maps(images))\n'
    )
    path = 'configs/market1501_sample/retail-0277.py'
    config = load(path)
    teacher = dict(distillation_of(config).teacher, build=f'{tmp_path}/retail.py:Retail', cache=None)
    terms = [term for terms in config.methods.values() for term in terms]
    student, images = build_teacher(path, None), torch.randn(2, 3, 128, 64)
    lines = Distillation(student, teacher, terms).dry_run(student, images, None)
    assert len(lines) == 4
    assert all('(2, 128)' in line and '(2, 5)' in line for line in lines if 'NST' not in line)
    assert '(2, 128, 8, 4)' in lines[1]
    assert '(2, 5, 16, 8)' in lines[1]


@pytest.mark.parametrize('path', WITH_METHOD)
def test_a_method_says_what_is_trained_and_where(path: str) -> None:
    """Every method of every pair, one at a time; of the canonical pairs, whose files are alike, three."""
    methods = load(path).get('methods') or load(load(path).requires[-1].config).methods
    tried = [*methods][:: len(methods) // 2 if '/canonical/' in path else 1]
    folders = set()
    for method in [*tried, '+'.join(tried[-2:])]:
        config = load(path, METHOD=method)
        folders.add(config.work_dir)
        assert re.fullmatch(rf'work_dirs/{path[8:-3]}/(split1/)?{re.escape(method)}', config.work_dir)
        if path in TWO_STAGE or 'methods' not in config:
            required = config.requires[-1]
            assert required.checkpoint == f'{load(required.config, METHOD=method).work_dir}/student.pth'
        else:
            assert distillation_of(config).terms == terms_of(methods, method)
    assert len(folders) == len(tried) + 1


@pytest.mark.parametrize('path', ONE_METHOD)
def test_a_leaf_is_its_pair_with_the_method_of_its_name(path: str) -> None:
    config, (pair, text) = load(path), re.match(r'(.*_from_[a-z]+\d+)_(.*)\.py', path).groups()
    methods = {
        f'{a}{"_" * bool(b)}{b}': f'{a}{"+" * bool(b)}{b}' for a in config.methods for b in ('', *config.methods)
    }
    same = load(f'{pair}.py', METHOD=methods[text])
    changed = {key for key in config.keys() | same.keys() if config.get(key) != same.get(key)}
    assert changed == {'variant', 'work_dir'}


def test_all_of_a_pairs_methods_are_there_and_what_is_none_is_reported() -> None:
    path = 'configs/cifar10/wrn-16-2_from_wrn-40-2.py'
    methods = load(path).methods
    assert set(methods) >= {
        *(
            'kd',
            'kd_alpha',
            'lskd',
            'dkd',
            'nkd',
            'dist',
            'fitnet',
            'at',
            'fsp',
            'sp',
            'rkd_d',
            'rkd_a',
            'rkd_da',
            'bss',
        ),
        *('nst_linear', 'nst_poly', 'nst_gaussian', 'nst_gan', 'cosine', 'cwd', 'mgd', 'pkd', 'reviewkd'),
    }
    assert [term.name for term in distillation_of(load(path, METHOD='kd+fitnet+nst_poly')).terms] == [
        'kd',
        'fitnet',
        'nst',
    ]
    for method, reported in (
        ('nosuch', r"METHOD=nosuch: there is no method 'nosuch'; methods, .*, are kd, kd_alpha, lskd, dkd, .*"),
        ('kd+dml', "METHOD=kd.dml: there is no method 'dml'; methods"),
        ('kd+', "METHOD=kd.: there is no method ''"),
        ('sp+sp', "METHOD=sp.sp: two of the methods have a term 'sp': give one of them"),
        ('kd+bss', "two of the methods have a term 'kd'"),
    ):
        with pytest.raises(UserError, match=f'{path}.*{reported}') as error:
            load(path, METHOD=method)
        assert '\n' not in str(error.value)


def test_no_method_is_the_default() -> None:
    path = 'configs/cifar10/wrn-16-2_from_wrn-40-2.py'
    assert load(path, METHOD='').to_dict() == load(path).to_dict()


def test_a_network_that_is_none_is_reported() -> None:
    with pytest.raises(
        UserError, match=r'dml.py names configs/cifar10/resnet9.py, which does not exist; nearest.*resnet'
    ):
        load('configs/cifar10/dml.py', NETWORK='resnet9')


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(ROOT / 'configs').as_posix())
def test_what_a_config_names_is_there(path: Path) -> None:
    """Configs in code and comments, and the commands of comments, with what they set in the environment."""
    text = path.read_text()
    for package, name in re.findall(r'(\w+::)?([\w./*-]+\.py)\b', text):
        if not package and name not in ELSEWHERE:
            there = (path.parent / name).is_file() or (ROOT / name).is_file()
            assert there or any(fnmatchcase(file.as_posix(), f'*/{name}') for file in FILES), name
    for setting, config in re.findall(r'^#     ((?:\w+=\S+ )*)python tools/train\.py (\S+)', text, re.MULTILINE):
        load(config, **dict(x.split('=', 1) for x in setting.split()))


def normalise(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Give an untrained network the BatchNorm statistics of its own maps, so that these are of a trained one's size."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(images)
    network.eval()


STEPS = [
    (f'configs/cifar10/{pair}{stage}.py', method)
    for pair in ('resnet8_from_resnet26', 'wrn-16-2_from_wrn-40-2')
    for stage, methods in (
        (
            '',
            'kd_alpha bss fitnet fsp at cwd+mgd+pkd crd+pkt+vid sp rkd_da rkd_da_unit nst_linear nst_gaussian nst_gan '
            'cosine kd+fitnet+nst_poly',
        ),
        ('_stage1', 'fitnet fsp'),
    )
    for method in methods.split()
]
STEPS += [('configs/cifar10/resnet8_from_resnet26.py', 'nkd')]


@pytest.mark.usefixtures('hub')
@pytest.mark.parametrize(('path', 'method'), [*STEPS, ('configs/imagenet/resnet18_from_resnet101.py', 'fitnet')])
def test_a_method_survives_the_first_steps_of_its_own_learning_rate(path: str, method: str) -> None:
    """The full schedules have no warm-up: a weight that is too large diverges at once."""
    torch.manual_seed(0)
    config, side = load(path, METHOD=method), 64 if 'imagenet' in path else 32
    images = torch.randn(4, 32, 3, side, side)
    samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % 8) for i in range(32)]
    student, record = build_teacher(model_of(path), None), distillation_of(config)
    student.init_weights()
    teachers = [{**x, 'config': model_of(x.config), 'checkpoint': None} for x in teachers_of(record)]
    distillation = Distillation(student, teachers, record.terms, record.get('task', 'train'))
    for teacher in distillation.teachers:
        normalise(teacher.model, images[0])
    distillation.set_num_samples(1000)
    distillation.dry_run(student, images[0][:8], samples[:8])
    options = {key: value for key, value in config.optim_wrapper.optimizer.items() if key not in ('type', '_scope_')}
    optimizer = torch.optim.SGD([*student.parameters(), *distillation.parameters()], **options)
    sizes = []
    for batch in images:
        losses = distillation.losses(partial(student.train(), batch, samples), batch, samples)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        sizes.append(sum(losses[f'loss_{term.name}'].item() for term in record.terms))
    # An untrained student can be as near to an untrained teacher as nothing: what grows from there is no divergence.
    assert all(size < 20 * max(sizes[0], 0.05) for size in sizes), sizes


@pytest.mark.usefixtures('hub')
@pytest.mark.parametrize('network', ['resnet8', 'wrn-16-2'])
@pytest.mark.parametrize('method', ONLINE_MODELS)
def test_networks_that_teach_each_other_survive_their_first_steps(method: str, network: str) -> None:
    torch.manual_seed(0)
    config = load(f'configs/cifar10/{method}.py', NETWORK=network)
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


@pytest.mark.parametrize('path', [x for x in PAIRS if not re.search('/(imagenet|pretrain)/', x)])
def test_a_pair_is_its_baselines_and_the_teacher_comes_from_its_own_run(path: str) -> None:
    config, (name, others) = load(path), Path(path).stem.split('_from_')
    student = load(str(Path(path).with_name(f'{name}.py')))
    assert config.requires == teachers_of(distillation_of(config))
    assert [Path(x.config).stem for x in config.requires] == others.split('_and_')
    for required in config.requires:
        teacher = load(required.config)
        assert required.checkpoint == f'{teacher.work_dir}/student.pth'
        assert teacher.model.head.num_classes == config.model.head.num_classes
        if '_quick' not in path:  # whose teacher has seen all images
            assert teacher.train_dataloader == config.train_dataloader
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'randomness'):
        assert student[key] == config[key]
    assert student.model.backbone == config.model.backbone


def test_a_config_of_its_own_settings_has_its_own_folder(tmp_path: Path) -> None:
    """One that inherits from a pair, too."""
    (tmp_path / 'mine.py').write_text(f"_base_ = '{ROOT}/configs/cifar10/resnet8_from_resnet26.py'\n")
    assert load(str(tmp_path / 'mine.py'), METHOD='at').work_dir == 'work_dirs/mine/at'
    assert trained('configs/cifar10/resnet8.py')['checkpoint'] == 'work_dirs/cifar10/resnet8/student.pth'
    assert os.environ.get('METHOD') is None


@pytest.mark.parametrize('method', ['fitnet', 'fsp'])
@pytest.mark.parametrize('path', TWO_STAGE)
def test_a_second_stage_goes_on_from_the_hints_of_the_first(path: str, method: str) -> None:
    config, first, joint = (
        load(path.replace('_two-stage', stage), METHOD=method) for stage in ('_two-stage', '_stage1', '')
    )
    assert config.load_from == config.requires[-1].checkpoint == f'{first.work_dir}/student.pth'
    assert config.requires[-1].config == path.replace('_two-stage', '_stage1')
    assert config.requires[:-1] == (joint.requires if method == 'fitnet' else [])
    assert (distillation_of(first).task, first.find_unused_parameters) == (False, True)
    assert distillation_of(first).terms == distillation_of(joint).terms
    assert distillation_of(first).teacher == distillation_of(joint).teacher
    assert config.model == first.model == joint.model
    terms = (distillation_of(config) or {'terms': []})['terms']
    assert [term.name for term in terms] == (['kd'] if method == 'fitnet' else [])


def test_both_stages_have_the_same_method_by_default() -> None:
    assert len(TWO_STAGE) == 5
    for path in TWO_STAGE:
        assert load(path).load_from == f'{load(path.replace("_two-stage", "_stage1")).work_dir}/student.pth'
        assert load(path).variant == 'fitnet'


def test_weights_of_bss_are_the_authors() -> None:
    """w_KD = 3 (1 - e / E) + 1, w_BSS = max(2 (1 - 4 e / (3 E)), 0), beside a KDLoss that includes tau^2."""
    kd, bss = distillation_of(load('configs/cifar10/resnet8_from_resnet26.py', METHOD='bss')).terms
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
    assert (record is not None and 'config' in record.teacher) == ('requires' in config)
    for required in config.get('requires', []):
        assert required == record.teacher
        assert required.checkpoint == f'{load(required.config).work_dir}/student.pth'
        assert load(required.config).model.head.num_classes == model.head.num_classes


@pytest.mark.parametrize(
    'name', ['market1501/resnet18_from_resnet50', 'cifar10/resnet8', 'cifar100/resnet8', 'tiny_imagenet/wrn-16-2']
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
        assert config.work_dir.startswith(f'work_dirs/{path[8:-3]}/split{split}')
        assert config.train_dataloader.dataset.ann_file == f'lists/trainval{split}.txt'
        assert config.val_dataloader.dataset.ann_file == f'lists/test{split}.txt'
        for required in config.get('requires', []):
            assert required == distillation_of(config).teacher
            assert required.checkpoint == f'{load(required.config).work_dir}/student.pth'
        return
    assert hooks.frozen.modules == ['backbone']
    for required in config.get('requires', []):
        assert required.checkpoint == source.checkpoint == f'{load(required.config).work_dir}/student.pth'
        student = build_teacher(required.config, None)
        shapes = [{k: v.shape for k, v in net.backbone.state_dict().items()} for net in (network, student)]
        assert shapes[0] == shapes[1]
    for other in config.get('compare', {}).values():
        assert other in TRANSFER
