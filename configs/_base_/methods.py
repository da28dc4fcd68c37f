# Lists of terms to put into a DistillationHook, for backbones with stages stage1 to stage3. A term adds to the task's
# loss, whose own weight is head.loss.loss_weight: 1 unless task_weights, which a leaf reads, says otherwise.
#
# A stage of CifarResNet yields post-ReLU maps, one of WideResNet the signed residual sum before BN-ReLU. Each pair here
# is of one family, so that the two sides of a term are alike. WideResNet has methods_wrn.py.
logits = dict(student='head.fc', teacher='head.fc')
embeddings = dict(student='neck', teacher='neck')
hint = dict(student='backbone.stage2', teacher='backbone.stage2')
last = dict(student='backbone.stage3', teacher='backbone.stage3')
stages = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3']
ends = dict(student=stages, teacher=stages)
pooled = 'neck.gap'  # a map of one pixel
flows = [['backbone.stem', stages[0]], stages[:2], stages[1:]]
methods = dict(
    # CE + tau^2 KL, as in TuSimple/neuron-selectivity-transfer (weight 16 = tau^2 there; tau^2 is in the loss here).
    kd=[dict(name='kd', loss=dict(type='kd_plugins.KDLoss', tau=4.0), **logits, weight=1.0)],
    # (1 - alpha) CE + alpha tau^2 KL with alpha = 0.9, as in szagoruyko/attention-transfer.
    kd_alpha=[dict(name='kd', loss=dict(type='kd_plugins.KDLoss', tau=4.0), **logits, weight=0.9)],
    # 0.1 CE + 9 tau^2 KL of standardised logits, as in sunshangquan/logit-standardization-KD, whose learning rate is
    # 0.05, and 9 from the start. Small logits get large gradients: at 0.1, five steps made those of a new ResNet-8
    # hundreds of times as large. It was at 28 and 16 % after four epochs, against 39 and 38 % with a weight that rises
    # over a twelfth of them (5,000 images of CIFAR-10 in batches of 128, two seeds, a teacher of made-up logits).
    lskd=[
        dict(
            name='lskd',
            loss=dict(type='kd_plugins.KDLoss', tau=2.0, standardize=True),
            **logits,
            weight=dict(at=[0.0, 20 / 240], value=[0.0, 9.0], by='progress'),
        )
    ],
    # CE + DKD, whose weight rises over 20 of 240 epochs: epoch by epoch in megvii-research/mdistiller, in a straight
    # line here. Beta depends on the pair; this is that of ResNet-56 to ResNet-20.
    dkd=[
        dict(
            name='dkd',
            loss=dict(type='kd_plugins.DKDLoss', alpha=1.0, beta=2.0, tau=4.0),
            **logits,
            weight=dict(at=[0.0, 20 / 240], value=[0.0, 1.0], by='progress'),
        )
    ],
    # CE + NKD, as in yzd-v/cls_KD for ResNet-18 from ResNet-34 on CIFAR-100.
    nkd=[dict(name='nkd', loss=dict(type='kd_plugins.NKDLoss', gamma=3.5, tau=3.0), **logits, weight=1.0)],
    # CE + DIST. Beta and gamma are those of hunto/DIST_KD on ImageNet; that its author advises tau 4 for CIFAR-100 is
    # recalled, unverified. The weight rises for the reason of LSKD: 43 % after those four epochs, against 29 %.
    dist=[
        dict(
            name='dist',
            loss=dict(type='kd_plugins.DISTLoss', tau=4.0),
            **logits,
            weight=dict(at=[0.0, 20 / 240], value=[0.0, 1.0], by='progress'),
        )
    ],
    # CE + w_KD KL + w_BSS KL on boundary samples, both at tau 3 without tau^2, as in bhheo/BSS_distillation: w_KD falls
    # from 4 to 1 over training (here a ninth of that, tau^2 being in the loss), w_BSS from 2 to 0 at three quarters of
    # it. That code's batch is 256 and its training 80 epochs long; here both are the pair's. Its step and clamp are for
    # CIFAR-10 divided by 51.6, 50.8 and 51.3; cifar10.py divides by 63.0, 62.1 and 66.7, and scale is the ratio. On
    # CIFAR-100, where it trains nothing, the attack keeps the same numbers.
    bss=[
        dict(
            name='kd',
            loss=dict(type='kd_plugins.KDLoss', tau=3.0),
            **logits,
            weight=dict(at=[0.0, 1.0], value=[4.0 / 9, 1.0 / 9], by='progress'),
        ),
        dict(
            name='bss',
            loss=dict(type='kd_plugins.BSSLoss', tau=3.0, attack_size=64, scale=[0.819, 0.819, 0.768]),
            **logits,
            weight=dict(at=[0.0, 0.75], value=[2.0, 0.0], by='progress'),
        ),
    ],
    # One joint stage; *_stage1.py has the same alone, as the first of the paper's two stages. RepDistiller weighs the
    # mean square with 100, behind a BatchNorm; the loss halves it. Behind the convolution alone that (200), and 50 too,
    # diverge at the first step of a learning rate of 0.1 (ResNet-8 from ResNet-26).
    fitnet=[dict(name='fitnet', loss=dict(type='kd_plugins.FitNetLoss'), adapter='auto', **hint, weight=20.0)],
    # beta = 1000, summed over the ends of the three groups, as in szagoruyko/attention-transfer.
    at=[dict(name='at', loss=dict(type='kd_plugins.ATLoss', convention='code'), **ends, weight=1000.0)],
    # AM-RADIO's 0.9 and 0.1 are in the loss, and its adapter is of this form.
    cosine=[dict(name='cosine', loss=dict(type='kd_plugins.CosineLoss'), adapter='mlp', **last, weight=1.0)],
    # One matrix a stage, from what enters to what leaves it; with the task, or, in *_stage1.py, alone before it as in
    # the paper, whose weight and learning rate for that stage we do not know. The loss sums over 256 to 2048 entries of
    # a matrix; at a learning rate of 0.1 a weight of 0.1 diverges within five iterations. Alone, in 70 iterations with
    # that rate, a weight of 0.001 lowers it to an eighth, 0.01 to two fifths, and 0.03 diverges (ResNet-8 from
    # ResNet-20).
    fsp=[
        dict(name=f'fsp{i}', loss=dict(type='kd_plugins.FSPLoss'), weight=1e-3, student=taps, teacher=taps)
        for i, taps in enumerate(flows, 1)
    ],
    # gamma = 3000, summed over the ends of the three groups.
    sp=[dict(name='sp', loss=dict(type='kd_plugins.SPLoss'), **ends, weight=3000.0)],
    # The divergence over the batch, weighed with 30000 on the pooled features in HobbitLong/RepDistiller.
    pkt=[dict(name='pkt', loss=dict(type='kd_plugins.PKTLoss'), **embeddings, weight=30000.0)],
    # The contrast with 16384 negatives, weighed with 0.8 on the pooled features in HobbitLong/RepDistiller.
    crd=[dict(name='crd', loss=dict(type='kd_plugins.CRDLoss'), **embeddings, weight=0.8)],
    # At the ends of the three groups with weight 1 each, as in HobbitLong/RepDistiller.
    vid=[dict(name='vid', loss=dict(type='kd_plugins.VIDLoss'), **ends, weight=1.0)],
    # 25 and 50 on the pooled features, weights that belong to the means of lenscloth/RKD.
    rkd_d=[
        dict(
            name='rkd_d',
            loss=dict(type='kd_plugins.RKDLoss', distance_weight=25.0, angle_weight=0.0, convention='code'),
            **embeddings,
        )
    ],
    rkd_a=[
        dict(
            name='rkd_a',
            loss=dict(type='kd_plugins.RKDLoss', distance_weight=0.0, angle_weight=50.0, convention='code'),
            **embeddings,
        )
    ],
    rkd_da=[
        dict(
            name='rkd_da',
            loss=dict(type='kd_plugins.RKDLoss', distance_weight=25.0, angle_weight=50.0, convention='code'),
            **embeddings,
        )
    ],
    # The setting of a level of an FPN; no published one for a classifier's maps.
    cwd=[dict(name='cwd', loss=dict(type='kd_plugins.CWDLoss', tau=1.0), adapter='auto', **last, weight=10.0)],
    # Made for FPNs, where the authors weigh a level with 6 or 10; no published weight for a classifier's maps.
    pkd=[dict(name='pkd', loss=dict(type='kd_plugins.PKDLoss'), adapter='auto', **last, weight=6.0)],
    # yzd-v/MGD's setting for the last maps of a classifier (ResNet-18 from ResNet-34 on ImageNet); the loss is a sum. A
    # config of its authors for CIFAR-100, where it is switched off, has 1.2e-3, which not every pair here survives.
    mgd=[dict(name='mgd', loss=dict(type='kd_plugins.MGDLoss', share=0.15, mask='channels'), **last, weight=7e-5)],
    # The ends of all stages and the pooled features, the teacher's before the activation (sum1 to sum3 of CifarResNet),
    # as in dvlab-research/ReviewKD; its weight rises over 20 of 240 epochs, to 0.6 to 8 by the pair, 1 by default.
    reviewkd=[
        dict(
            name='reviewkd',
            loss=dict(type='kd_plugins.ReviewKDLoss'),
            adapter='abf',
            student=[*stages, pooled],
            teacher=['backbone.sum1', 'backbone.sum2', 'backbone.sum3', pooled],
            weight=dict(at=[0.0, 20 / 240], value=[0.0, 1.0], by='progress'),
        )
    ],
    # On the last maps. TuSimple/neuron-selectivity-transfer weighs MMD^2 with 50, without the paper's 1/2; that the
    # Gaussian has twice the weight of the others is recalled from the paper, unverified.
    nst_linear=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='linear'), **last, weight=50.0)],
    nst_poly=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='poly'), **last, weight=50.0)],
    nst_gaussian=[dict(name='nst', loss=dict(type='kd_plugins.NSTLoss', kernel='gaussian'), **last, weight=100.0)],
    # Experimental: NST's authors name it without an experiment, so the weight is a guess.
    nst_gan=[dict(name='nst_gan', loss=dict(type='kd_plugins.NSTGANLoss', hidden=128), **last, weight=1.0)],
)
# Weight of the task's loss beside a method, where it is not 1.
task_weights = dict(kd_alpha=0.1, lskd=0.1)
# A quarter of the images attacked: an attack is ten passes of the teacher, forward and back, most of BSS's time.
methods['bss_quick'] = [
    methods['bss'][0],
    methods['bss'][1] | dict(loss=methods['bss'][1]['loss'] | dict(attack_size=16)),
]
# RKD on embeddings of length 1, as lenscloth/RKD's run_distill_classification.py has them, beside KD with weight 1, and
# the poster's authors' later library; not its paper.
methods |= {
    f'{name}_unit': [methods[name][0] | dict(loss=methods[name][0]['loss'] | dict(normalize=True))]
    for name in ('rkd_d', 'rkd_a', 'rkd_da')
}
