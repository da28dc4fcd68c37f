"""Batches from memory hold what mmpretrain's transforms would have made of the same draws."""

import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, DefaultSampler, default_collate
from mmengine.dataset import sampler as stock_sampler
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.datasets.transforms import PackInputs, RandomCrop
from mmpretrain.registry import TRANSFORMS
from tiny import classifier, equal, train, weights

from kd_plugins.checkpoint import read_checkpoint
from kd_plugins.datasets import CIFAR10, CIFAR100, BatchedImages, whole_batch
from kd_plugins.datasets import batched as module
from kd_plugins.errors import UserError

COLLATE = dict(type='kd_plugins.whole_batch')
ROOT = Path(__file__).parents[2]


class Pictures(BaseDataset):
    """``count`` pictures without a black pixel; with ``alike`` all the same, and no pixel like another."""

    def __init__(self, count: int, size: tuple[int, int] = (5, 4), alike: bool = False, **options) -> None:
        self.count, self.size, self.alike = count, size, alike
        super().__init__(**options)

    def load_data_list(self) -> list[dict]:
        pictures = np.random.default_rng(0).integers(1, 256, (self.count, *self.size, 3), np.uint8)
        if self.alike:
            pictures[:] = 1 + np.arange(pictures[0].size, dtype=np.uint8).reshape(pictures[0].shape)
        return [dict(img=x, gt_label=i % 10) for i, x in enumerate(pictures)]


def write(root: Path, dataset: type[CIFAR10], per_file: int) -> Path:
    """Write a tiny folder in the official layout."""
    rng = np.random.default_rng(0)
    (root / dataset.base_folder).mkdir(parents=True)
    for name, _ in dataset.train_list + dataset.test_list:
        labels = rng.integers(0, len(dataset.METAINFO['classes']), per_file).tolist()
        entry = {'data': rng.integers(0, 256, (per_file, 3072), np.uint8), dataset.label_key: labels}
        (root / dataset.base_folder / name).write_bytes(pickle.dumps(entry))
    return root


def images(count: int, padding: int = 0, flip_prob: float = 0.0, options: dict | None = None, **more) -> BatchedImages:
    return BatchedImages(dict(type=Pictures, count=count, **more), padding, flip_prob, **options or {})


def drawn(data: BatchedImages, epoch: int, seed: int = 0) -> torch.Tensor:
    data.set_epoch(epoch, seed)
    return data.__getitems__(range(len(data)))['inputs']


def crops(picture: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Return every crop that can be drawn, and its draws."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((padding, padding), (padding, padding), (0, 0)))
    return {
        padded[y : y + height, x : x + width][:, :: -1 if flip else 1].transpose(2, 0, 1).tobytes(): (y, x, flip)
        for y, x, flip in itertools.product(range(2 * padding + 1), range(2 * padding + 1), (False, True))
    }


def loader(data: object, workers: int = 0, seed: int = 0, **more) -> torch.utils.data.DataLoader:
    return Runner.build_dataloader(
        dict(
            dataset=data,
            batch_size=8,
            num_workers=workers,
            collate_fn=COLLATE,
            sampler=dict(type='DefaultSampler', shuffle=True),
        )
        | more,
        seed=seed,
    )


def by_number(batches) -> dict[int, bytes]:
    return {
        sample.sample_idx: x.numpy().tobytes()
        for batch in batches
        for x, sample in zip(batch['inputs'], batch['data_samples'], strict=True)
    }


@pytest.mark.parametrize(
    'device',
    ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))],
)
def test_a_batch_is_what_mmpretrains_transforms_make_of_the_same_draws(monkeypatch, device) -> None:
    padding = 2
    draws = list(itertools.product(range(5), range(5), (False, True)))

    class Dealt:
        def integers(self, high: int, size: tuple[int, int]) -> np.ndarray:
            assert (high, size) == (5, (2, 50))
            return np.array([[y, x] for y, x, _ in draws]).T

        def random(self, size: int) -> np.ndarray:
            return np.array([0.49 if flip else 0.5 for *_, flip in draws])

    data = images(50, padding, 0.5, dict(device=device))
    monkeypatch.setattr(module.np.random, 'default_rng', lambda seed: Dealt())
    data.set_epoch(0, 0)
    order = torch.randperm(50).tolist()
    batch = data.__getitems__(order)
    monkeypatch.undo()

    source = Pictures(50)
    crop = RandomCrop(crop_size=(5, 4), padding=padding)
    flip = TRANSFORMS.build(dict(type='RandomFlip', prob=0.5, direction='horizontal'))
    samples = []
    for i in order:
        monkeypatch.setattr(crop, 'rand_crop_params', lambda img, i=i: (*draws[i][:2], 5, 4))
        monkeypatch.setattr(flip, '_choose_direction', lambda i=i: 'horizontal' if draws[i][2] else None)
        samples.append(PackInputs()(flip(crop(source.get_data_info(i)))))
    stock = default_collate(samples)

    assert batch['inputs'].device.type == device
    assert batch['inputs'].stride() == stock['inputs'].stride()
    assert torch.equal(batch['inputs'].cpu(), stock['inputs'])
    for own, other in zip(batch['data_samples'], stock['data_samples'], strict=True):
        assert type(own) is type(other)
        assert own.keys() == other.keys()
        assert (own.gt_label.shape, own.gt_label.dtype) == (other.gt_label.shape, other.gt_label.dtype)
        assert torch.equal(own.gt_label.cpu(), other.gt_label)
        assert own.metainfo == dict(sample_idx=other.sample_idx)


def test_a_sample_behaves_like_one_that_was_filled_by_its_own_methods() -> None:
    first, second = images(2).__getitems__([0, 1])['data_samples']
    first.set_pred_label(3).set_gt_label(7)
    assert 'pred_label' not in second
    assert first.to_dict() == dict(sample_idx=0, gt_label=torch.tensor([7]), pred_label=torch.tensor([3]))
    for copy in (second.to('cpu'), second.clone(), pickle.loads(pickle.dumps(second))):
        assert copy.to_dict() == dict(sample_idx=1, gt_label=torch.tensor([1]))


def test_offsets_and_flips_are_uniform_and_independent() -> None:
    data = images(9000, 2, 0.3, size=(4, 4), alike=True)
    cases = crops(Pictures(1, (4, 4), True).get_data_info(0)['img'], 2)
    assert len(cases) == 50
    for draw in ((0, 0), (1, 0)):
        seen = Counter(cases[x.numpy().tobytes()] for x in drawn(data, *draw))
        expected = {case: 9000 / 25 * (0.3 if case[2] else 0.7) for case in cases.values()}
        # The 0.1 % and 99.9 % quantiles of chi-square with 49 degrees of freedom.
        assert 23.98 < sum((seen[case] - n) ** 2 / n for case, n in expected.items()) < 85.35


@pytest.mark.parametrize(('padding', 'flip_prob', 'count'), [(0, 1.0, 1), (0, 0.5, 2), (1, 0.0, 9), (1, 1.0, 9)])
def test_only_what_is_asked_for_is_drawn(padding: int, flip_prob: float, count: int) -> None:
    picture = Pictures(1, (4, 4), True).get_data_info(0)['img']
    seen = {x.numpy().tobytes() for x in drawn(images(300, padding, flip_prob, size=(4, 4), alike=True), 0)}
    cases = crops(picture, padding)
    assert len(seen) == count
    assert {cases[x][2] for x in seen} == {0.0: {False}, 0.5: {False, True}, 1.0: {True}}[flip_prob]


def test_without_augmentation_nothing_is_drawn(monkeypatch) -> None:
    data, source = images(12), Pictures(12)
    monkeypatch.setattr(module.np.random, 'default_rng', None)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    data.__getitems__(range(12))
    assert torch.equal(torch.get_rng_state(), before[0])
    pictures = by_number(loader(data))
    for epoch in range(2):
        data.set_epoch(epoch, 0)
        assert by_number(loader(data)) == pictures
    assert pictures == {i: source.get_data_info(i)['img'].transpose(2, 0, 1).tobytes() for i in range(12)}
    assert np.random.get_state()[1].tolist() == before[1]


def test_draws_follow_from_seed_and_epoch_alone() -> None:
    data, again = images(40, 2, 0.5), images(40, 2, 0.5)
    first = drawn(data, 3, 5)
    drawn(data, 4, 5)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(drawn(data, 3, 5), first)
    assert torch.equal(drawn(again, 3, 5), first)
    order = torch.randperm(40)
    assert torch.equal(data.__getitems__(order.tolist())['inputs'], first[order])
    assert torch.equal(data[7]['inputs'], first[7:8])
    others = [drawn(data, *x).numpy().tobytes() for x in ((3, 5), (5, 3), (2, 5), (4, 5), (3, 4), (3, 6), (2, 6))]
    assert len(set(others)) == 7
    fixed = images(40, 2, 0.5, dict(seed=5))
    assert torch.equal(drawn(fixed, 3, 9), first)


def test_replay_comes_back_to_the_first_draws() -> None:
    free, replayed = images(40, 2, 0.5), images(40, 2, 0.5, dict(replay=3))
    epochs = [drawn(free, epoch).numpy().tobytes() for epoch in range(7)]
    assert len(set(epochs)) == 7
    assert [drawn(replayed, epoch).numpy().tobytes() for epoch in range(7)] == [epochs[i % 3] for i in range(7)]


def test_workers_make_the_same_batches() -> None:
    data = images(30, 2, 0.5)
    data.set_epoch(1, 0)
    alone, helped = (list(loader(data, workers)) for workers in (0, 2))
    assert [len(batch['data_samples']) for batch in alone] == [8, 8, 8, 6]
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a['inputs'], b['inputs'])
        assert [x.to_dict() for x in a['data_samples']] == [x.to_dict() for x in b['data_samples']]


def test_two_processes_cover_what_one_does(monkeypatch) -> None:
    def shard(rank: int, world: int) -> dict[int, bytes]:
        monkeypatch.setattr(stock_sampler, 'get_dist_info', lambda: (rank, world))
        data = images(30, 2, 0.5)
        data.set_epoch(2, 0)
        return by_number(loader(data, sampler=DefaultSampler(data, seed=4)))

    first, second, whole = shard(0, 2), shard(1, 2), shard(0, 1)
    assert not first.keys() & second.keys()
    assert first | second == whole


def test_single_pictures_are_joined_and_not_yet_augmented() -> None:
    data = images(5, 2, 1.0)
    batch = whole_batch([data[0], data[3]])
    assert torch.equal(batch['inputs'], images(5).__getitems__([0, 3])['inputs'])
    assert [x.sample_idx for x in batch['data_samples']] == [0, 3]
    assert whole_batch(batch) is batch
    assert len(list(data)) == 5


def test_a_run_without_epochs_set_is_refused() -> None:
    with pytest.raises(UserError, match=r'no epoch was set.*ReseedHook'):
        next(iter(loader(images(9, 1))))


@pytest.mark.parametrize(
    'options', [dict(padding=-1), dict(flip_prob=1.5), dict(flip_prob=-0.5), dict(replay=0), dict(seed=-1)]
)
def test_arguments_out_of_range_are_named(options: dict) -> None:
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f'{name}={value}.*; expected padding and seed of at least 0'):
        BatchedImages(dict(type=Pictures, count=2), **options)


@pytest.mark.parametrize(
    ('records', 'told'),
    [
        ([], 'nothing'),
        ([dict(img_path='a.png', gt_label=1)], 'no img'),
        ([dict(img=np.zeros((4, 4, 3), np.uint8))], 'no gt_label'),
        ([dict(img=np.zeros((4, 4), np.uint8), gt_label=1)], r'uint8 \(4, 4\)'),
        ([dict(img=np.zeros((4, 3), np.uint8), gt_label=1)], r'uint8 \(4, 3\)'),
        ([dict(img=np.zeros((4, 4, 3), np.float32), gt_label=1)], r'float32 \(4, 4, 3\)'),
        (
            [dict(img=np.zeros((4, i, 3), np.uint8), gt_label=1) for i in (4, 5)],
            r'uint8 \(4, 4, 3\) and uint8 \(4, 5, 3\)',
        ),
    ],
)
def test_a_data_set_of_another_kind_is_refused(monkeypatch, records: list[dict], told: str) -> None:
    monkeypatch.setattr(Pictures, 'load_data_list', lambda self: records)
    # BaseDataset cannot pack an empty list.
    with pytest.raises(UserError, match=f'the data set holds {told}; expected img, uint8') as error:
        images(0, serialize_data=False)
    assert '\n' not in str(error.value)


def test_subsets_are_numbered_anew() -> None:
    data = images(9, indices=[2, 5, 7])
    assert torch.equal(data.__getitems__([0, 1, 2])['inputs'], images(9).__getitems__([2, 5, 7])['inputs'])
    assert [x.gt_label.item() for x in data.__getitems__([0, 1, 2])['data_samples']] == [2, 5, 7]


class TestRun:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return write(tmp_path / 'data', CIFAR10, 4)

    def config(self, root: Path, work_dir: Path, **more) -> Config:
        config = Config.fromfile(ROOT / 'configs/_base_/datasets/cifar10_batched.py')
        for name in ('train', 'val', 'test'):
            config[f'{name}_dataloader'].batch_size = 8
            config[f'{name}_dataloader'].dataset.dataset.data_root = str(root)
        model = classifier()
        model['head']['num_classes'] = 10
        model['data_preprocessor'] = config.data_preprocessor
        config.merge_from_dict(
            dict(
                default_scope='mmpretrain',
                model=model,
                work_dir=str(work_dir),
                log_level='ERROR',
                experiment_name=str(work_dir).replace('/', '_'),
                randomness=dict(seed=0),
                train_cfg=dict(by_epoch=True, max_epochs=2),
                val_cfg=dict(),
                test_cfg=dict(),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
                default_hooks=dict(reseed=dict(type='kd_plugins.ReseedHook')),
            )
            | more
        )
        return config

    def test_a_resumed_run_equals_the_uninterrupted_one(self, tmp_path: Path, root: Path) -> None:
        runner = train(self.config(root, tmp_path / 'whole'))
        assert 'accuracy/top1' in ''.join(runner.message_hub.log_scalars)
        data = runner.train_dataloader.dataset
        assert torch.equal(data.__getitems__(range(20))['inputs'], drawn(data, 1, runner.seed))
        config = self.config(root, tmp_path / 'resumed')
        config.load_from, config.resume = str(tmp_path / 'whole/epoch_1.pth'), True
        resumed = train(config)
        assert equal(weights(resumed.model), weights(runner.model))
        first, last = (read_checkpoint(tmp_path / f'whole/epoch_{i}.pth')['state_dict'] for i in (1, 2))
        assert not equal(first, last)

    def test_distillation_accepts_it(self, tmp_path: Path, root: Path) -> None:
        config = self.config(root, tmp_path / 'run', train_cfg=dict(by_epoch=True, max_epochs=1))
        network = config.model.to_dict()
        network['backbone']['depth'] = 14
        terms = [
            dict(name='at', loss=dict(type='kd_plugins.ATLoss'), student='backbone', teacher='backbone'),
            dict(name='dkd', loss=dict(type='kd_plugins.DKDLoss'), student='head.fc', teacher='head.fc'),
        ]
        config.custom_hooks = [
            dict(
                type='kd_plugins.DistillationHook',
                teacher=[dict(config=network, checkpoint=None)] * 2,
                terms=terms,
            )
        ]
        found = ''.join(train(config).message_hub.log_scalars)
        assert 'loss_at' in found
        assert 'loss_dkd' in found

    def test_a_run_that_counts_iterations_is_refused(self, tmp_path: Path, root: Path) -> None:
        config = self.config(root, tmp_path / 'run')
        config.train_cfg = dict(by_epoch=False, max_iters=2)
        with pytest.raises(UserError, match='BatchedImages draws by epoch, but this run is by iterations'):
            train(config)


@pytest.mark.parametrize(('name', 'dataset'), [('cifar10', CIFAR10), ('cifar100', CIFAR100)])
def test_configs_hold_the_data_of_the_stock_ones(tmp_path: Path, name: str, dataset: type[CIFAR10]) -> None:
    write(tmp_path, dataset, 20)
    stock, own = (Config.fromfile(ROOT / f'configs/_base_/datasets/{name}{x}.py') for x in ('', '_batched'))
    assert own.data_preprocessor == stock.data_preprocessor
    assert (own.val_evaluator, own.test_evaluator) == (stock.val_evaluator, stock.test_evaluator)
    assert own.test_dataloader == own.val_dataloader
    crop, flip, _ = stock.train_dataloader.dataset.pipeline
    assert (crop.padding, flip.prob) == (own.train_dataloader.dataset.padding, own.train_dataloader.dataset.flip_prob)
    batches = {}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for config in (stock, own):
            for key in ('train_dataloader', 'val_dataloader'):
                record = config[key]
                record.num_workers = 0
                record.dataset.get('dataset', record.dataset).data_root = str(tmp_path)
                built = Runner.build_dataloader(record, seed=0)
                if hasattr(built.dataset, 'set_epoch'):
                    built.dataset.set_epoch(0, 0)
                assert built.dataset.metainfo['classes'] == dataset.METAINFO['classes']
                batches.setdefault(key, []).append(next(iter(built)))
    labels = [[x.gt_label.item() for x in batch['data_samples']] for batch in batches['train_dataloader']]
    assert labels[0] == labels[1]
    assert torch.equal(*(batch['inputs'] for batch in batches['val_dataloader']))
