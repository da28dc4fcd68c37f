"""Samplers for losses that compare the images of a batch."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import get_dist_info, sync_random_seed

from kd_plugins.errors import UserError
from kd_plugins.registry import DATA_SAMPLERS


class _Deck:
    """Cards dealt in hands from one whole shuffle after another.

    A hand holds no card twice, or, where it is larger than the deck, none more often than another by more than one.
    """

    def __init__(self, cards: Sequence[int], rng: np.random.Generator) -> None:
        self.cards = cards
        self.rng = rng
        self.left: list[int] = []

    def deal(self, count: int) -> list[int]:
        while len(self.left) < count:
            # What the hand got since it last went through the deck comes last in the new shuffle.
            got = set(self.left[len(self.left) // len(self.cards) * len(self.cards) :])
            self.left += sorted(self.rng.permutation(self.cards).tolist(), key=got.__contains__)
        hand, self.left = self.left[:count], self.left[count:]
        return hand


@DATA_SAMPLERS.register_module()
class PKSampler:
    """Batches of ``identities`` labels with ``instances`` images each, for losses over triplets.

    The data loader's ``batch_size`` must be ``identities * instances``; a batch lists the images label by label. An
    epoch has as many batches as the images fill in all processes together, at least one. The labels of one batch
    differ, also between the processes. All labels are gone through in random order before one comes again, and so are
    the images of each label; a label with fewer images than ``instances`` repeats them evenly. The order follows
    from seed and epoch alone, so a resumed run draws what the whole run would have drawn.

    Args:
        dataset: Data set whose ``get_data_info(i)['gt_label']`` is the label of image i.
        identities: Labels in a batch of one process, at least 1.
        instances: Images of a label in a batch, at least 2 so that each has a partner.
        seed: Seed, the same in all processes; None draws one and shares it among them.

    Raises:
        UserError: A number is too small, the data set has no labels, or fewer than a batch needs.

    References:
        1. Hermans, Beyer and Leibe: In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.
    """

    def __init__(self, dataset: BaseDataset, identities: int = 16, instances: int = 4, seed: int | None = None) -> None:
        if identities < 1 or instances < 2:
            raise UserError(
                f'PKSampler: identities={identities}, instances={instances}; expected at least 1 identity '
                'and 2 instances: one image of a label makes no pair'
            )
        images = defaultdict(list)
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            if 'gt_label' not in info:
                raise UserError('PKSampler: the data set has no gt_label; sample the training split')
            if np.ndim(info['gt_label']):
                raise UserError('PKSampler: a gt_label is a list of labels; expected one label an image')
            images[int(info['gt_label'])].append(i)
        self.rank, self.world_size = get_dist_info()
        if len(images) < identities * self.world_size:
            raise UserError(
                f'PKSampler: a batch of {identities} identities in each of {self.world_size} processes '
                f'needs {identities * self.world_size}, the data set has {len(images)}; lower identities '
                'and batch_size, or use more data'
            )
        self.identities = identities
        self.instances = instances
        self.batch_size = identities * instances  # expected of the data loader
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self._images = [images[label] for label in sorted(images)]
        self._batches = max(1, len(dataset) // (identities * instances * self.world_size))

    def __iter__(self) -> Iterator[int]:
        """Yield this process's images of the epoch, batch after batch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        labels = _Deck(range(len(self._images)), rng)
        images = [_Deck(indices, rng) for indices in self._images]
        own = slice(self.rank * self.identities, (self.rank + 1) * self.identities)
        for _ in range(self._batches):
            # Every process draws for all of them: only so do their generators stay equal.
            hands = [images[label].deal(self.instances) for label in labels.deal(self.identities * self.world_size)]
            for hand in hands[own]:
                yield from hand

    def __len__(self) -> int:
        """Return the number of images that one process draws in an epoch."""
        return self._batches * self.identities * self.instances

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch
