"""Every number that a public function takes is checked, whatever it would have computed with a wrong one."""

import inspect
from math import inf, nan

import pytest
import torch

from kd_plugins import functional as F

LOGITS, MAPS, VECTORS = torch.eye(4), torch.ones(4, 3, 2, 2), torch.eye(4)
LABELS = torch.arange(4)
CALLS = {
    F.at_loss: (MAPS, MAPS),
    F.attention_map: (MAPS,),
    F.base_samples: (LOGITS, LOGITS, LABELS),
    F.batch_hard_triplet_loss: (VECTORS, LABELS),
    F.boundary_attack: (MAPS, LABELS, LABELS.flip(0), lambda x, indices: x.flatten(1)),
    F.box_distribution_loss: (torch.ones(4, 4, 3), torch.ones(4, 4, 3), torch.ones(4)),
    F.bss_loss: (LOGITS, LOGITS),
    F.cosine_loss: (VECTORS, VECTORS),
    F.cwd_loss: (MAPS, MAPS),
    F.draw_mask: (MAPS,),
    F.crd_loss: (VECTORS, VECTORS, VECTORS, LABELS, LABELS),
    F.dist_loss: (LOGITS, LOGITS),
    F.dkd_loss: (LOGITS, LOGITS, LABELS),
    F.kd_loss: (LOGITS, LOGITS),
    F.matched_attention: (MAPS, MAPS),
    F.nkd_loss: (LOGITS, LOGITS, LABELS),
    F.nst_loss: (MAPS, MAPS),
    F.rkd_loss: (VECTORS, VECTORS),
    F.soft_focal_loss: (LOGITS, LOGITS, torch.ones(4)),
}
ABOVE, NOT_BELOW = (0, -1, nan, inf, True), (-0.1, nan, inf, True)
WRONG = {
    **{(function, 'p'): (0.5, nan, None) for function in ('at_loss', 'attention_map', 'matched_attention')},
    ('base_samples', 'size'): (0, 1.5),
    ('batch_hard_triplet_loss', 'margin'): NOT_BELOW,
    ('boundary_attack', 'steps'): (0, 2.5),
    ('boundary_attack', 'step_size'): ABOVE,
    ('boundary_attack', 'clamp'): ABOVE,
    ('boundary_attack', 'scale'): (*ABOVE, [1.0, 0.0, 1.0], [1.0, 1.0]),
    ('box_distribution_loss', 'tau'): ABOVE,
    ('bss_loss', 'tau'): ABOVE,
    ('cosine_loss', 'smooth_l1'): (*NOT_BELOW, 1.5),
    ('cwd_loss', 'tau'): ABOVE,
    ('draw_mask', 'share'): (*NOT_BELOW, 1),
    ('crd_loss', 'negatives'): (0, 1.5, True),
    ('crd_loss', 'tau'): ABOVE,
    ('dist_loss', 'beta'): NOT_BELOW,
    ('dist_loss', 'gamma'): NOT_BELOW,
    ('dist_loss', 'tau'): ABOVE,
    ('dist_loss', 'eps'): ABOVE,
    ('dkd_loss', 'alpha'): NOT_BELOW,
    ('dkd_loss', 'beta'): NOT_BELOW,
    ('dkd_loss', 'tau'): ABOVE,
    ('kd_loss', 'tau'): (*ABOVE, '4', None),
    ('nkd_loss', 'gamma'): NOT_BELOW,
    ('nkd_loss', 'tau'): ABOVE,
    ('nst_loss', 'degree'): (0, 1.5),
    ('nst_loss', 'c'): NOT_BELOW,
    ('nst_loss', 'bandwidth'): (*ABOVE, None),
    ('rkd_loss', 'distance_weight'): NOT_BELOW,
    ('rkd_loss', 'angle_weight'): NOT_BELOW,
    ('soft_focal_loss', 'beta'): (0, 0.5, nan, inf, True),
}


@pytest.mark.parametrize(
    ('function', 'name', 'value'),
    [(function, name, value) for (function, name), values in WRONG.items() for value in values],
)
def test_a_number_out_of_range_is_refused(function, name, value):
    function = getattr(F, function)
    with pytest.raises(ValueError, match=f'^{name}: expected [^\n]*$'):
        function(*CALLS[function], **{name: value})


def test_no_number_is_left_out():
    numbers = {
        (function, name)
        for function in F.__all__
        for name, parameter in inspect.signature(getattr(F, function)).parameters.items()
        if any(kind in str(parameter.annotation) for kind in ('int', 'float'))
    }
    assert numbers == WRONG.keys()
