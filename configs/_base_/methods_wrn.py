# methods.py for WideResNet. Two losses compare sizes, not only directions: they get the maps after BN-ReLU, as the next
# stage sees them. On the raw residual sums, which a BatchNorm has yet to scale, either diverges within ten iterations
# with the weights of methods.py (WRN-16-2 from WRN-28-2, learning rate 0.1).
# NST taps the last BatchNorm, before its ReLU, as its authors' code does.
_base_ = './methods.py'
hint = dict(student='backbone.stage3.0.relu1', teacher='backbone.stage3.0.relu1')
flows = [
    ['backbone.stage1.0.relu1', 'backbone.stage2.0.relu1'],
    ['backbone.stage2.0.relu1', 'backbone.stage3.0.relu1'],
    ['backbone.stage3.0.relu1', 'backbone.relu'],
]
norm = dict(student='backbone.norm', teacher='backbone.norm')
methods = dict(
    # Beta is that of WRN-40-2 to WRN-16-2.
    dkd=[dict(_base_.methods.dkd[0], loss=dict(_base_.methods.dkd[0].loss, beta=6.0))],
    fitnet=[dict(name='fitnet', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', **hint, weight=20.0)],
    fsp=[
        dict(name=f'fsp{i}', loss=dict(type='kd_plugins.FSPLoss'), weight=1e-3, student=taps, teacher=taps)
        for i, taps in enumerate(flows, 1)
    ],
    # The teacher before BN-ReLU's activation, the student's sums, and the weight: as in dvlab-research/ReviewKD.
    reviewkd=[
        dict(
            _base_.methods.reviewkd[0],
            teacher=['backbone.stage2.0.norm1', 'backbone.stage3.0.norm1', 'backbone.norm', 'neck.gap'],
            weight=dict(_base_.methods.reviewkd[0].weight, value=[0.0, 5.0]),
        )
    ],
    nst_linear=[dict(_base_.methods.nst_linear[0], **norm)],
    nst_poly=[dict(_base_.methods.nst_poly[0], **norm)],
    nst_gaussian=[dict(_base_.methods.nst_gaussian[0], **norm)],
    nst_gan=[dict(_base_.methods.nst_gan[0], **norm)],
)
