# methods_canonical.py for WideResNet: FitNet and FSP behind BN-ReLU, as in methods_wrn.py, the others on the sums
# before it.
_base_ = './methods_wrn.py'
methods = dict(
    # From the start, at the authors' learning rate.
    lskd=[dict(_base_.methods.lskd[0], weight=9.0)],
    dist=[dict(_base_.methods.dist[0], weight=1.0)],
    sp=[dict(_base_.methods.sp[0], **_base_.last)],
    nst_linear=[dict(_base_.methods.nst_linear[0], **_base_.ends)],
    nst_poly=[dict(_base_.methods.nst_poly[0], **_base_.ends)],
    nst_gaussian=[dict(_base_.methods.nst_gaussian[0], **_base_.ends)],
)
