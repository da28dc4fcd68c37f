# methods.py as HobbitLong/RepDistiller and megvii-research/mdistiller apply it to the pairs of cifar100/canonical, for
# networks of three stages; a pair changes what its authors changed. The row KD of their tables is kd_alpha. SP compares
# the last maps alone there, and NST those of all stages.
_base_ = './methods.py'
methods = dict(
    # From the start, at the authors' learning rate.
    lskd=[dict(_base_.methods.lskd[0], weight=9.0)],
    dist=[dict(_base_.methods.dist[0], weight=1.0)],
    sp=[dict(_base_.methods.sp[0], **_base_.last)],
    nst_linear=[dict(_base_.methods.nst_linear[0], **_base_.ends)],
    nst_poly=[dict(_base_.methods.nst_poly[0], **_base_.ends)],
    nst_gaussian=[dict(_base_.methods.nst_gaussian[0], **_base_.ends)],
)
