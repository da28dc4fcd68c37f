from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from kd_plugins.datasets import samplers
from kd_plugins.datasets.samplers import PKSampler
from kd_plugins.errors import UserError


class Labelled:
    """A data set of labels: of label i as many pictures as ``counts[i]``, mingled; each picture is its index."""

    def __init__(self, *counts: int) -> None:
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        self.labels = np.random.default_rng(1).permutation(labels).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def get_data_info(self, i: int) -> dict:
        return {'gt_label': self.labels[i]}

    def __getitem__(self, i: int) -> int:
        return i


def batches(sampler: PKSampler) -> np.ndarray:
    """Return an epoch's pictures, (batches, identities, instances)."""
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return np.array(drawn).reshape(-1, sampler.identities, sampler.instances)


def hands(data: Labelled, drawn: np.ndarray) -> dict[int, list[list[int]]]:
    """Return the groups of pictures that each label was drawn with; check that a group is of one label."""
    found = {}
    for group in drawn.reshape(-1, drawn.shape[-1]).tolist():
        (label,) = {data.labels[i] for i in group}
        found.setdefault(label, []).append(group)
    return found


def spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


def ranks(monkeypatch: pytest.MonkeyPatch, world: int, *args: object, **kwargs: object) -> list[PKSampler]:
    made = []
    for rank in range(world):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda rank=rank: (rank, world))
        made.append(PKSampler(*args, **kwargs))
    return made


def test_a_batch_holds_p_labels_with_k_different_pictures_each() -> None:
    data = Labelled(9, 4, 13, 6, 5, 7, 8)
    sampler = PKSampler(data, 3, 4, seed=0)
    assert len(sampler) == 52 // 12 * 12
    for epoch in range(30):
        sampler.set_epoch(epoch)
        for batch in batches(sampler):
            assert len({data.labels[i] for i in batch[:, 0]}) == 3
            assert len(set(batch.ravel().tolist())) == 12
            assert len(hands(data, batch)) == 3


@pytest.mark.parametrize('seed', range(5))
def test_labels_and_their_pictures_are_drawn_equally_often(seed: int) -> None:
    counts = (50, 41, 33, 60, 17, 30, 26)
    data = Labelled(*counts)
    drawn = batches(PKSampler(data, 3, 4, seed=seed))
    assert len(drawn) == 257 // 12 == 21
    labels = [data.labels[i] for i in drawn[:, :, 0].ravel()]
    for start in range(0, len(labels), 7):  # one whole shuffle after another, across the ends of batches
        assert sorted(labels[start : start + 7]) == list(range(7))
    for label, groups in hands(data, drawn).items():
        times = Counter(i for group in groups for i in group)
        assert len(times) == min(counts[label], 9 * 4)  # 63 places are 9 for each
        assert spread([times[i] for i in range(len(data)) if data.labels[i] == label]) <= 1


@pytest.mark.parametrize('count', range(1, 12))
@pytest.mark.parametrize('instances', [2, 4, 5])
def test_pictures_are_repeated_only_as_far_as_needed(count: int, instances: int) -> None:
    data = Labelled(count, 200)
    sampler = PKSampler(data, 2, instances, seed=3)
    (groups,) = (groups for label, groups in hands(data, batches(sampler)).items() if label == 0)
    assert len(groups) == len(data) // (2 * instances)
    own = [i for i in range(len(data)) if data.labels[i] == 0]
    for group in groups:
        times = [Counter(group)[i] for i in own]
        assert spread(times) <= 1
        assert max(times) == -(-instances // count)
    for end in range(len(groups)):  # evenly at any time, not only at the end
        assert spread([sum(group.count(i) for group in groups[: end + 1]) for i in own]) <= 1


def test_an_epoch_has_at_least_one_batch() -> None:
    data = Labelled(1, 2, 1)
    assert batches(PKSampler(data, 3, 4, seed=0)).shape == (1, 3, 4)


def test_the_draw_follows_from_seed_and_epoch_alone() -> None:
    data = Labelled(9, 4, 13, 6, 5, 7, 8)

    def draw(seed: int, epoch: int, after: tuple[int, ...] = ()) -> list[int]:
        sampler = PKSampler(data, 3, 4, seed=seed)
        for earlier in after:
            sampler.set_epoch(earlier)
            next(it := iter(sampler))
            next(it)
        sampler.set_epoch(epoch)
        return list(sampler)

    whole = draw(5, 2, after=(0, 1, 2))
    np.random.seed(9)
    torch.manual_seed(9)
    state = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert draw(5, 2) == whole  # as after a resume
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state
    others = [draw(5, 2), draw(5, 1), draw(5, 3), draw(2, 5), draw(4, 3), draw(6, 1)]
    assert len({tuple(x) for x in others}) == 6
    assert len({tuple(data.labels[i] for i in x) for x in others}) == 6  # not the pictures of a label alone


def test_two_processes_share_out_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Labelled(9, 4, 13, 6, 5, 2, 8, 3, 11)
    whole = PKSampler(data, 4, 4, seed=7)
    halves = ranks(monkeypatch, 2, data, 2, 4, seed=7)
    for epoch in range(5):
        for sampler in (whole, *halves):
            sampler.set_epoch(epoch)
        first, second = map(batches, halves)
        assert len(first) == len(second) == 61 // 16
        assert np.concatenate([first, second], axis=1).tolist() == batches(whole).tolist()
        for a, b in zip(first, second, strict=True):
            assert not {data.labels[i] for i in a.ravel()} & {data.labels[i] for i in b.ravel()}


def test_without_a_seed_the_processes_agree_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Labelled(4, 4, 4)
    monkeypatch.setattr(samplers, 'sync_random_seed', lambda: 123)
    assert list(PKSampler(data, 2, 2)) == list(PKSampler(data, 2, 2, seed=123))
    assert list(PKSampler(data, 2, 2)) != list(PKSampler(data, 2, 2, seed=0))


def test_a_runners_loader_gets_whole_batches_from_it() -> None:
    data = Labelled(*[4] * 10)
    loader = Runner.build_dataloader(
        dict(
            dataset=data,
            batch_size=6,
            num_workers=0,
            sampler=dict(type='kd_plugins.PKSampler', identities=3, instances=2),
        ),
        seed=11,
    )
    assert len(loader) == 40 // 6
    assert [batch if isinstance(batch, list) else batch.tolist() for batch in loader] == [
        batch.ravel().tolist() for batch in batches(PKSampler(data, 3, 2, seed=11))
    ]


@pytest.mark.parametrize(('identities', 'instances'), [(0, 4), (-1, 4), (2, 1), (2, 0)])
def test_a_batch_without_pairs_is_refused(identities: int, instances: int) -> None:
    with pytest.raises(UserError, match=f'identities={identities}, instances={instances}; expected at least 1'):
        PKSampler(Labelled(4, 4, 4), identities, instances, seed=0)


def test_several_labels_of_an_image_are_refused() -> None:
    data = Labelled(4, 4)
    data.get_data_info = lambda index: dict(gt_label=[0, 1])  # type: ignore[method-assign]
    with pytest.raises(UserError, match='expected one label an image'):
        PKSampler(data, 2, 2, seed=0)


def test_too_few_labels_for_all_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Labelled(4, 4, 4)
    assert len(PKSampler(data, 3, 2, seed=0)) == 12
    with pytest.raises(UserError, match=r'4 identities in each of 1 processes needs 4, the data set has 3; lower'):
        PKSampler(data, 4, 2, seed=0)
    with pytest.raises(UserError, match=r'2 identities in each of 2 processes needs 4, the data set has 3; lower'):
        ranks(monkeypatch, 2, data, 2, 2, seed=0)
