"""Every loss of two features, as functions of maps (B, C, H, W), and what each precision may cost."""

import torch

from kd_plugins import functional as F
from kd_plugins.functional.gram import as_float, unit


def with_labels(loss):
    """Return a loss of logits and labels as one of maps: the classes in order, one an image."""
    return lambda s, t: loss(s.flatten(1), t.flatten(1), torch.arange(len(s), device=s.device))


def contrast(student, teacher):
    """Compare all samples, each of a class of its own, with those of the batch before."""
    student, teacher = (unit(as_float(x).flatten(1)) for x in (student, teacher))
    classes = torch.arange(len(student), device=student.device)
    return F.crd_loss(student, teacher, teacher.roll(1, 0), classes, classes.roll(1), 100)


LOSSES = {
    'fitnet': F.fitnet_loss,
    'cosine': F.cosine_loss,
    'cosine-alone': lambda s, t: F.cosine_loss(s, t, 0.0),
    'at': F.at_loss,
    'at-code': lambda s, t: F.at_loss(s, t, 'code'),
    'at-1': lambda s, t: F.at_loss(s, t, p=1),
    'sp': F.sp_loss,
    'pkt': lambda s, t: 3e4 * F.pkt_loss(s, t),  # the authors' weight, without which float16 has no such gradients
    'vid': lambda s, t: F.vid_loss(s, t, torch.linspace(2, 5, s.shape[1], device=s.device)),
    'crd': contrast,
    'rkd': F.rkd_loss,
    'rkd-distance': F.rkd_distance_loss,
    'rkd-angle': F.rkd_angle_loss,
    'rkd-code': lambda s, t: F.rkd_loss(s, t, convention='code', normalize=True),
    'nst': F.nst_loss,
    'nst-cubic': lambda s, t: F.nst_loss(s, t, degree=3, c=0.5),
    'nst-linear': lambda s, t: F.nst_loss(s, t, 'linear'),
    'nst-gaussian': lambda s, t: F.nst_loss(s, t, 'gaussian'),
    'pkd': F.pkd_loss,
    'cwd': F.cwd_loss,
    'mgd': F.mgd_loss,
    'reviewkd': F.reviewkd_loss,
    'cwd-4': lambda s, t: F.cwd_loss(s, t, 4.0),
    'fsp': lambda s, t: F.fsp_loss((s, s.roll(1, 1)), (t, t.roll(1, 1))),
    'kd': lambda s, t: F.kd_loss(s.flatten(1), t.flatten(1)),
    'kd-standardized': lambda s, t: F.kd_loss(s.flatten(1), t.flatten(1), 2.0, standardize=True),
    'kd-sigmoid': lambda s, t: F.kd_loss(s.flatten(1), t.flatten(1), use_sigmoid=True),
    'dist': lambda s, t: F.dist_loss(s.flatten(1), t.flatten(1)),
    'nkd': with_labels(F.nkd_loss),
    'dkd': with_labels(F.dkd_loss),
    'bss': lambda s, t: F.bss_loss(s.flatten(1), t.flatten(1)),
    'nst-gan': lambda s, t: F.nst_gan_loss(s, t, lambda x: x.pow(3).sum(-1, keepdim=True)),
}

# Relative: of the value, and of the gradient's norm. The features are rounded to the type before; value and sums are
# float32's, and a gradient of half precision is rounded once or twice on its way.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (1e-5, 2 * torch.finfo(torch.bfloat16).eps),
    torch.float16: (1e-5, 2 * torch.finfo(torch.float16).eps),
}
