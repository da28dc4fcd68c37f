import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from kd_plugins.utils.random import preserved_rng


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize('error', [None, KeyError])
def test_states_are_restored_after_the_block(error):
    with suppress(KeyError), preserved_rng():
        inside = draw()
        if error:
            raise error
    assert draw() == inside
