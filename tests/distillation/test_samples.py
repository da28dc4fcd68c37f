"""What losses read in the data samples of a batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from kd_plugins.distillation.samples import indices_of
from kd_plugins.errors import UserError


def test_indices_are_places_in_the_training_set() -> None:
    samples = [SimpleNamespace(sample_idx=4), SimpleNamespace(sample_idx=np.int64(0))]
    assert indices_of(samples, 5, 'CRDLoss') == [4, 0]


@pytest.mark.parametrize('index', [-1, 5])
def test_an_index_beyond_the_training_set_is_named(index: int) -> None:
    samples = [SimpleNamespace(sample_idx=0), SimpleNamespace(sample_idx=index)]
    with pytest.raises(UserError, match=f'CRDLoss, for num_samples=5: .* is {index}, expected 0 to 4'):
        indices_of(samples, 5, 'CRDLoss')
