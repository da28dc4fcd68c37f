"""The mathematics of the losses: tensors in, scalar out.

A distillation loss takes the student first, the teacher second; ``batch_hard_triplet_loss`` is a task's loss.
``soft_focal_loss``, ``giou_loss`` and ``box_distribution_loss`` compare the predictions of dense detectors, with a
weight for each; ``matched_attention`` gives the two attention maps of one size.
``base_samples``, ``draw_targets`` and ``boundary_attack`` make the inputs that ``bss_loss`` compares on, and
``draw_mask`` chooses what ``mgd_loss`` hides; ``attention_map`` and ``similarity_matrix`` are what ``at_loss`` and
``sp_loss`` compare.
"""

from .at import at_loss, attention_map, matched_attention
from .bss import base_samples, boundary_attack, bss_loss, draw_targets
from .cosine import cosine_loss
from .crd import crd_loss
from .crosskd import box_distribution_loss, giou_loss, soft_focal_loss
from .cwd import cwd_loss
from .dist import dist_loss
from .dkd import dkd_loss
from .fitnet import fitnet_loss
from .fsp import fsp_loss
from .kd import kd_loss
from .mgd import draw_mask, mgd_loss
from .nkd import nkd_loss
from .nst import nst_loss
from .nst_gan import nst_gan_loss
from .pkd import pkd_loss
from .pkt import pkt_loss
from .reviewkd import reviewkd_loss
from .rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from .sp import similarity_matrix, sp_loss
from .triplet import batch_hard_triplet_loss
from .vid import vid_loss

__all__ = [
    'at_loss',
    'attention_map',
    'base_samples',
    'batch_hard_triplet_loss',
    'boundary_attack',
    'box_distribution_loss',
    'bss_loss',
    'cosine_loss',
    'crd_loss',
    'cwd_loss',
    'dist_loss',
    'dkd_loss',
    'draw_mask',
    'draw_targets',
    'fitnet_loss',
    'fsp_loss',
    'giou_loss',
    'kd_loss',
    'matched_attention',
    'mgd_loss',
    'nkd_loss',
    'nst_gan_loss',
    'nst_loss',
    'pkd_loss',
    'pkt_loss',
    'reviewkd_loss',
    'rkd_angle_loss',
    'rkd_distance_loss',
    'rkd_loss',
    'similarity_matrix',
    'soft_focal_loss',
    'sp_loss',
    'vid_loss',
]
