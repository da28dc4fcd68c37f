import json
import pickle
import random
import subprocess
import sys
from decimal import Decimal, getcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from tiny import classification_config, classifier, image_folder, train

from kd_plugins.datasets.cifar import CIFAR10, CIFAR100
from kd_plugins.datasets.corruption import class_sizes, corrupt, held_out, kept_samples, noisy_labels
from kd_plugins.errors import UserError
from kd_plugins.hooks.corruption_hook import CorruptionHook

PER_FILE = 60


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """CIFAR-10's layout, 300 pictures to train on, as many of each class; a picture's first byte is its number."""
    root = tmp_path_factory.mktemp('cifar')
    folder = root / CIFAR10.base_folder
    folder.mkdir()
    for k, (name, _) in enumerate(CIFAR10.train_list + CIFAR10.test_list):
        data = np.zeros((PER_FILE, 3072), np.uint8)
        numbers = k * PER_FILE + np.arange(PER_FILE)
        data[:, 0], data[:, 1] = numbers % 256, numbers // 256
        entry = {'data': data, 'labels': ((numbers * 7) % 10).tolist()}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    return root


def cifar(root: Path, **options) -> CIFAR10:
    return CIFAR10(data_root=str(root), split='train', download=False, **options)


def contents(data: CIFAR10) -> list[tuple[int, int]]:
    """Return number and label of every picture."""
    infos = [data.get_data_info(i) for i in range(len(data))]
    return [(int(x['img'][0, 0, 0]) + 256 * int(x['img'][0, 1, 0]), x['gt_label']) for x in infos]


TRUE = [(number, number * 7 % 10) for number in range(5 * PER_FILE)]


# Label noise


@pytest.mark.parametrize('labels', [[0, 1, 2], [0, -1, 1]])
@pytest.mark.parametrize('options', [dict(label_noise=dict(rate=0.4)), dict(imbalance=dict(gamma=1.0))])
def test_a_label_that_is_no_class_is_reported(labels, options):
    with pytest.raises(UserError, match=f'{next(iter(options))}: labels from {min(labels)} to .* 2 classes'):
        corrupt(labels, 2, **options)
    assert corrupt([0, 1, 2, 2], 2, validation=dict(size=1)).given.tolist()  # needs no classes


@pytest.mark.parametrize('rate', [0.2, 0.4, 0.6, 1.0])
@pytest.mark.parametrize('include_true', [True, False])
def test_noise_is_symmetric_and_flips_at_its_rate(rate, include_true):
    classes, each = 5, 40_000
    labels = np.repeat(np.arange(classes), each)
    given = noisy_labels(labels, classes, rate, include_true, seed=3)
    other = rate / classes if include_true else rate / (classes - 1)
    for true in range(classes):
        found = np.bincount(given[labels == true], minlength=classes) / each
        for label in range(classes):
            expected = other if label != true else 1 - other * (classes - 1)
            deviation = (expected * (1 - expected) / each) ** 0.5  # of a binomial share
            assert abs(found[label] - expected) <= 5 * deviation, (true, label, found[label], expected)
    wrong = (given != labels).mean()
    expected = rate * (classes - 1) / classes if include_true else rate
    assert abs(wrong - expected) <= 5 * (expected * (1 - expected) / labels.size) ** 0.5


def test_noise_of_rate_0_changes_nothing_and_draws_of_other_seeds_differ():
    labels = np.arange(1000) % 10
    assert (noisy_labels(labels, 10, 0.0) == labels).all()
    assert not (noisy_labels(labels, 10, 1.0, include_true=False) == labels).any()
    one, two = (noisy_labels(labels, 10, 0.5, seed=seed) for seed in (1, 2))
    both = ((one != labels) & (two != labels)).mean()
    assert abs(both - 0.45**2) < 0.06  # independent of each other


def test_corruption_follows_from_its_seed_alone():
    labels = np.arange(500) % 10

    def draws() -> list:
        return [
            noisy_labels(labels, 10, 0.4, seed=5).tolist(),
            kept_samples(labels, 10, 0.5, seed=5).tolist(),
            held_out(labels, 50, seed=5).tolist(),
        ]

    first = draws()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    assert draws() == first
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == states
    code = (
        'import json, numpy as np; from kd_plugins.datasets.corruption import *; labels = np.arange(500) % 10; '
        'print(json.dumps([noisy_labels(labels, 10, 0.4, seed=5).tolist(), kept_samples(labels, 10, 0.5, seed=5)'
        '.tolist(), held_out(labels, 50, seed=5).tolist()]))'
    )
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert json.loads(answer.splitlines()[-1]) == first


# Imbalance


@pytest.mark.parametrize(('classes', 'most', 'least'), [(10, 5000, 250), (100, 500, 25), (7, 91, 3)])
@pytest.mark.parametrize('gamma', ['1e-6', '0.2', '0.6', '1', '2', '50'])
def test_class_sizes_are_the_power_law_s(classes, most, least, gamma):
    getcontext().prec = 60
    exponent = Decimal(gamma)
    b = (least * Decimal(classes) ** exponent - most) / (most - least)
    a = most * (b + 1)
    expected = [round(a / (b + Decimal(c) ** exponent)) for c in range(1, classes + 1)]
    sizes = class_sizes(classes, float(gamma), most, least)
    assert sizes == expected
    assert (sizes[0], sizes[-1]) == (most, least)
    assert sizes == sorted(sizes, reverse=True)


def test_class_sizes_of_cifar_10():
    assert class_sizes(10, 0.2, 5000, 250) == [5000, 858, 557, 439, 375, 333, 304, 282, 264, 250]
    totals = [sum(class_sizes(10, gamma, 5000, 250)) for gamma in (0.2, 0.6, 1.0, 2.0)]
    assert totals == [8662, 9390, 10421, 14402]  # a larger gamma leaves more


def test_exactly_so_many_of_each_class_are_kept_drawn_by_the_seed():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(4), 100))
    kept = kept_samples(labels, 4, 0.5, most=80, least=10, seed=1)
    assert np.bincount(labels[kept]).tolist() == class_sizes(4, 0.5, 80, 10)
    assert (np.diff(kept) > 0).all()
    assert kept_samples(labels, 4, 0.5, most=80, least=10, seed=2).tolist() != kept.tolist()
    # Every sample of a class has the same chance.
    counts = np.zeros(400)
    for seed in range(400):
        counts[kept_samples(labels, 4, 0.5, most=80, least=10, seed=seed)] += 1
    share = counts[labels == 3] / 400
    assert abs(share - 0.1).max() < 5 * (0.1 * 0.9 / 400) ** 0.5
    by_default = np.bincount(labels[kept_samples(labels, 4, 0.5)])
    assert (by_default[0], by_default[-1]) == (100, 5)


# A validation part


def test_the_held_out_part_has_the_classes_shares():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), [500, 300, 200]))
    out = held_out(labels, 101, seed=0)
    assert np.bincount(labels[out]).tolist() == [51, 30, 20]  # 50.5, 30.3, 20.2: the largest remainder is 0.5
    assert (np.diff(out) > 0).all()
    assert held_out(labels, 101, seed=1).tolist() != out.tolist()


def test_parts_are_disjoint_and_complete_and_the_held_out_one_stays_clean(root):
    parts = [
        cifar(root, validation=dict(size=50, part=part), **options)
        for part, options in (('val', {}), ('train', dict(label_noise=dict(rate=1.0, include_true=False))))
    ]
    val, rest = map(contents, parts)
    assert len(val) == 50
    assert sorted(x for x, _ in val + rest) == [x for x, _ in TRUE]
    assert set(val) <= set(TRUE)
    assert not set(rest) & set(TRUE)
    assert parts[0].corruption is None
    assert contents(cifar(root, validation=dict(size=50))) == [x for x in TRUE if x not in set(val)]
    with pytest.raises(UserError, match='the held-out part stays clean'):
        cifar(root, validation=dict(size=50, part='val'), label_noise=dict(rate=0.1))


# On data sets


def test_a_sample_s_label_depends_on_nothing_but_seed_and_place(root):
    noise = dict(rate=0.5, seed=1)
    given = dict(contents(cifar(root, label_noise=noise)))
    assert list(given.values()) == noisy_labels([label for _, label in TRUE], 10, 0.5, seed=1).tolist()
    for options in (
        dict(indices=70),
        dict(indices=[3, 250, 9]),
        dict(imbalance=dict(gamma=0.5)),
        dict(validation=dict(size=100)),
        dict(imbalance=dict(gamma=1), indices=20),
    ):
        part = contents(cifar(root, label_noise=noise, **options))
        assert part
        assert all(given[number] == label for number, label in part)


def test_imbalance_comes_before_noise_and_indices_last(root):
    both = cifar(root, imbalance=dict(gamma=1.0), label_noise=dict(rate=0.5))
    kept = contents(cifar(root, imbalance=dict(gamma=1.0)))
    assert [x for x, _ in contents(both)] == [x for x, _ in kept]
    sizes = class_sizes(10, 1.0, 30, 1)
    assert np.bincount([label for _, label in kept]).tolist() == sizes
    assert both.corruption['samples_per_class'] == sizes  # of the true labels
    assert contents(cifar(root, imbalance=dict(gamma=1.0), indices=9)) == kept[:9]
    assert contents(cifar(root, imbalance=dict(gamma=1.0), indices=20000)) == kept


def test_the_record_holds_options_sizes_and_every_change(root):
    data = cifar(root, label_noise=dict(rate=0.4), indices=100)
    record = data.corruption
    true = dict(TRUE)
    changed = [[number, true[number], label] for number, label in contents(data) if label != true[number]]
    assert len(changed) > 20
    assert record['changed'] == changed
    assert record['label_noise'] == dict(rate=0.4, include_true=True, seed=0)
    assert 'imbalance' not in record
    assert record['samples'] == sum(record['samples_per_class']) == 100
    assert cifar(root).corruption is None


def test_fewer_files_are_read_where_few_pictures_are_asked_for(root, monkeypatch):
    read = []
    unpickled = CIFAR10._unpickled
    monkeypatch.setattr(
        CIFAR10, '_unpickled', lambda self, path, content: read.append(path) or unpickled(self, path, content)
    )
    assert contents(cifar(root, indices=PER_FILE)) == TRUE[:PER_FILE]
    assert len(read) == 1
    assert contents(cifar(root, indices=PER_FILE + 1)) == TRUE[: PER_FILE + 1]
    assert len(read) == 3
    assert contents(cifar(root, indices=-1)) == TRUE[-1:]
    assert contents(cifar(root, indices=[299])) == TRUE[299:]
    assert len(read) == 13


@pytest.mark.parametrize(
    'options',
    [
        dict(label_noise=dict(rate=0.5)),
        dict(imbalance=dict(gamma=0.3)),
        dict(validation=dict(size=40)),
        dict(label_noise=dict(rate=0.5, seed=4), imbalance=dict(gamma=2, most=20, least=2)),
    ],
)
@pytest.mark.parametrize('serialize', [True, False])
def test_the_wrapper_does_to_any_data_set_what_cifar_does_itself(root, options, serialize):
    record = dict(type='kd_plugins.CIFAR10', data_root=str(root), split='train', download=False)
    wrapped = DATASETS.build(
        dict(type='kd_plugins.Corrupted', dataset=dict(record, serialize_data=serialize), **options)
    )
    own = DATASETS.build(dict(record, **options))
    assert contents(wrapped) == contents(own)
    assert wrapped.corruption == own.corruption
    assert wrapped.get_gt_labels().tolist() == [label for _, label in contents(own)]


@pytest.mark.parametrize('workers', [0, 2])
def test_a_pipeline_and_loader_workers_see_the_given_labels(tmp_path, workers):
    record = dict(
        type='CustomDataset',
        _scope_='mmpretrain',
        data_root=str(image_folder(tmp_path, 40)),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    clean = DATASETS.build(record).get_gt_labels()
    loader = Runner.build_dataloader(
        dict(
            batch_size=8,
            num_workers=workers,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='kd_plugins.Corrupted', dataset=record, label_noise=dict(rate=0.7, seed=2)),
        )
    )
    seen = [sample.gt_label.item() for batch in loader for sample in batch['data_samples']]
    assert seen == noisy_labels(clean, 4, 0.7, seed=2).tolist()
    assert seen != clean.tolist()


def test_batches_from_memory_have_the_given_labels(root):
    record = dict(type='kd_plugins.CIFAR10', data_root=str(root), split='train', download=False)
    options = dict(label_noise=dict(rate=0.6), imbalance=dict(gamma=1))
    inner = dict(record, **options)
    for dataset in (inner, dict(type='kd_plugins.Corrupted', dataset=record, **options)):
        batched = DATASETS.build(dict(type='kd_plugins.BatchedImages', dataset=dataset))
        batch = batched.__getitems__(range(len(batched)))
        numbers = batch['inputs'][:, 0, 0, 0].long() + 256 * batch['inputs'][:, 0, 0, 1].long()
        labels = [sample.gt_label.item() for sample in batch['data_samples']]
        assert list(zip(numbers.tolist(), labels, strict=True)) == contents(DATASETS.build(inner))
        assert batched.corruption_reports[0]['changed']


# What a user can get wrong


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (dict(label_noise=dict(rate=1.5)), 'rate=1.5'),
        (dict(label_noise=dict(rate=0.5, seed=-1)), 'seed=-1'),
        (dict(label_noise=dict(rat=0.5)), "no option 'rat'; options are rate, include_true, seed"),
        (dict(label_noise={}), "'rate' is missing"),
        (dict(imbalance=dict(gamma=0)), 'gamma=0'),
        (dict(imbalance=dict(gamma=1, most=10, least=10)), '0 < least < most'),
        (dict(imbalance=dict(gamma=1, most=31, least=2)), 'class 0 is to keep 31 samples, but has 30'),
        (dict(label_noise=0.4), r'label_noise is 0.4; expected a dict of rate, .* as label_noise=dict\(rate=...\)'),
        (dict(label_noise=dict(rate='0.4')), "label_noise: rate is '0.4'; expected a number"),
        (dict(label_noise=dict(rate=True)), 'rate is True; expected a number'),
        (dict(label_noise=dict(rate=0.4, include_true=1)), 'include_true is 1; expected True or False'),
        (dict(imbalance=0.2), r'imbalance is 0.2; expected a dict .*imbalance=dict\(gamma=...\)'),
        (dict(imbalance=dict(gamma=1, most=20.5)), 'most is 20.5; expected a whole number'),
        (dict(validation=dict(size=2.5)), 'size is 2.5; expected a whole number'),
        (dict(validation=dict(size=3, part=1)), 'part is 1; expected a text'),
        (dict(validation=dict(size=300)), 'size=300'),
        (dict(validation=dict(size=3, part='test')), "part='test'"),
    ],
)
def test_wrong_options_are_told_in_one_line(root, options, told):
    with pytest.raises(UserError, match=told) as error:
        cifar(root, **options)
    assert '\n' not in str(error.value)


def test_a_test_split_is_refused(root):
    record = dict(type='kd_plugins.CIFAR10', data_root=str(root), split='test', download=False)
    noise = dict(label_noise=dict(rate=0.1))
    for dataset in (dict(record, **noise), dict(type='kd_plugins.Corrupted', dataset=record, **noise)):
        with pytest.raises(UserError, match='for the training split'):
            DATASETS.build(dataset)


@pytest.mark.parametrize('part', ['val', 'test'])
def test_scored_data_that_are_corrupted_are_refused_even_where_they_do_not_say_that_they_are_scored(tmp_path, part):
    images = image_folder(tmp_path / 'images', 32)
    config = classification_config(
        images, tmp_path / 'run', classifier(), 1, default_hooks=dict(corruption=dict(type='kd_plugins.CorruptionHook'))
    )
    clean = dict(config.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    noisy = dict(clean, dataset=dict(type='kd_plugins.Corrupted', dataset=clean['dataset'], label_noise=dict(rate=0.5)))
    held_out = dict(
        clean, dataset=dict(type='kd_plugins.Corrupted', dataset=clean['dataset'], validation=dict(size=8, part='val'))
    )
    for name, loader in ((part, noisy), ('val' if part == 'test' else 'test', held_out)):
        config.merge_from_dict(
            {f'{name}_dataloader': loader, f'{name}_cfg': {}, f'{name}_evaluator': dict(type='Accuracy')}
        )
    runner = Runner.from_cfg(config)
    with pytest.raises(UserError, match=f'{part}_dataloader: its data have label_noise or imbalance'):
        runner.train() if part == 'val' else runner.test()
    if part == 'test':
        runner.train()  # scored on a held-out part, which is clean
        hook = dict(type='kd_plugins.HeldOutHook', dataloader=noisy, evaluator=dict(type='Accuracy', prefix='held'))
        config.custom_hooks = [hook]
        with pytest.raises(UserError, match='HeldOutHook: its data have label_noise or imbalance'):
            Runner.from_cfg(config).train()


def test_what_is_no_mmengine_data_set_goes_outside(root):
    record = dict(type='kd_plugins.CIFAR10', data_root=str(root), split='train', download=False)
    with pytest.raises(UserError, match='put Corrupted inside it'):
        DATASETS.build(
            dict(
                type='kd_plugins.Corrupted',
                label_noise=dict(rate=0.1),
                dataset=dict(type='kd_plugins.BatchedImages', dataset=record),
            )
        )


def test_what_is_corrupted_already_is_refused(root):
    record = dict(type='kd_plugins.CIFAR10', data_root=str(root), split='train', download=False)
    noise = dict(label_noise=dict(rate=0.4))
    for inner in (dict(record, **noise), dict(type='kd_plugins.Corrupted', dataset=record, **noise)):
        with pytest.raises(UserError, match=r'is corrupted already, .* give all options in one place'):
            DATASETS.build(dict(type='kd_plugins.Corrupted', dataset=inner, **noise))


def test_cifar100_has_a_hundred_classes_to_draw_from(tmp_path):
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    entry = {'data': np.zeros((2000, 3072), np.uint8), 'fine_labels': (np.arange(2000) % 100).tolist()}
    for name in ('train', 'test'):
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    data = CIFAR100(data_root=str(tmp_path), split='train', download=False, label_noise=dict(rate=1.0))
    assert len(set(data.get_gt_labels().tolist())) == 100
    assert len(data.corruption['changed']) == pytest.approx(2000 * 0.99, abs=25)


# In a run


def test_a_run_writes_what_was_done_and_a_resumed_one_the_same(tmp_path):
    images = image_folder(tmp_path / 'images', 32)

    def config(folder: str, epochs: int, **options):
        hooks = dict(reseed=dict(type='kd_plugins.ReseedHook'), corruption=dict(type='kd_plugins.CorruptionHook'))
        config = classification_config(images, tmp_path / folder, classifier(), epochs, default_hooks=hooks)
        if options:
            config.train_dataloader.dataset = dict(
                type='kd_plugins.Corrupted', dataset=config.train_dataloader.dataset, **options
            )
        return config

    train(config('clean', 1))
    assert not (tmp_path / 'clean/corruption.json').exists()
    options = dict(label_noise=dict(rate=0.5, seed=3))
    runner = train(config('run', 1, **options))
    text = (tmp_path / 'run/corruption.json').read_text()
    record = json.loads(text)
    assert record['label_noise'] == dict(rate=0.5, include_true=True, seed=3)
    assert record['samples_per_class'] == [8, 8, 8, 8]
    given = runner.train_dataloader.dataset.get_gt_labels()
    assert len(record['changed']) > 5
    for index, true, label in record['changed']:
        assert (index // 8, given[index]) == (true, label)  # the folders' pictures, class after class

    (tmp_path / 'run/corruption.json').unlink()
    resumed = config('run', 2, **options)
    resumed.resume = True
    runner = train(resumed)
    assert runner.epoch == 2
    assert (tmp_path / 'run/corruption.json').read_text() == text
    assert runner.train_dataloader.dataset.get_gt_labels().tolist() == given.tolist()


def test_labels_that_are_wrong_anywhere_inside_a_batched_set_are_reported_and_refused(root, tmp_path):
    def noisy(rate: float) -> dict:
        return dict(
            type='kd_plugins.CIFAR10', data_root=str(root), split='train', download=False, label_noise=dict(rate=rate)
        )

    repeated = dict(type='RepeatDataset', times=2, dataset=noisy(0.9))
    batched = dict(type='kd_plugins.BatchedImages', dataset=dict(type='ConcatDataset', datasets=[noisy(0.5), repeated]))
    loader = SimpleNamespace(dataset=DATASETS.build(batched))
    hook = CorruptionHook()
    hook.before_train(SimpleNamespace(val_loop=None, hooks=[], train_dataloader=loader, work_dir=tmp_path))
    record = json.loads((tmp_path / 'corruption.json').read_text())
    assert [part['label_noise']['rate'] for part in record] == [0.5, 0.9]
    with pytest.raises(UserError, match='test_dataloader: its data have label_noise'):
        hook.before_test(SimpleNamespace(test_dataloader=loader))


def test_what_a_set_of_ones_own_calls_corruption_is_no_report():
    robust = SimpleNamespace(corruption='fog', corruptions=['fog', 'snow'])
    CorruptionHook().before_test(SimpleNamespace(test_dataloader=SimpleNamespace(dataset=robust)))


def test_without_options_nothing_changes():
    labels = np.arange(100) % 10
    result = corrupt(labels, 10)
    assert (result.kept.tolist(), result.given.tolist(), result.options) == (list(range(100)), labels.tolist(), None)
