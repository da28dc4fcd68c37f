# The learning rate and each method's own weight for cifar10.py, chosen on 5,000 images held out of all training: an
# eight-epoch form of its schedule, clean labels, one seed.
#
#     python tools/study.py configs/studies/cifar10_search.py --jobs 2
#
# search.csv has the scores of the weights, runs.csv those of rates and alphas. First --only '*/lr-*/*': the rate that
# is best for the baseline is all methods'.
_base_ = ['../_base_/methods.py', './_base_/full.py']
epochs = 8
named = _base_.methods

title = 'CIFAR-10: what the schedule and the weights of cifar10.py rest on'
teachers = {'ResNet-26': dict(config='configs/cifar10/resnet26.py')}
networks = {
    'ResNet-8': dict(
        config='configs/cifar10/resnet8.py',
        teacher='ResNet-26',
        overrides=dict(train_dataloader=dict(dataset=dict(seed=0, replay=4))),
    ),
}
common = dict(
    param_scheduler=[_base_.warm_up, dict(_base_.cosine, end=epochs)],
    train_cfg=dict(max_epochs=epochs, val_interval=epochs),
)
teacher_data = 'same'
teacher_cache = True
validation = dict(size=5000)
seeds = [0]
columns = 'network'
rates = (0.03, 0.1, 0.3, 1.0)
# Times the weight that the authors of a method gave it.
factors = (0.03, 0.1, 0.3, 1)
methods = dict(
    _delete_=True,
    **{f'lr {rate}': dict(overrides=dict(optim_wrapper=dict(optimizer=dict(lr=rate)))) for rate in rates},
    **{
        name: dict(
            terms=[key],
            search=dict(weight=[factor * named[key][0].get('weight', 1.0) for factor in factors]),
            teacher_cache=key not in ('at', 'sp'),
        )
        for name, key in (
            ('NST poly', 'nst_poly'),
            ('AT', 'at'),
            ('SP', 'sp'),
            ('RKD-DA', 'rkd_da_unit'),
            ('RKD-A', 'rkd_a_unit'),
            ('RKD-D', 'rkd_d_unit'),
            ('NST linear', 'nst_linear'),
            ('NST Gaussian', 'nst_gaussian'),
        )
    },
    **{
        f'Hinton alpha {alpha}': dict(
            terms=[dict(named.kd[0], weight=alpha)],
            overrides=dict(model=dict(head=dict(loss=dict(loss_weight=round(1 - alpha, 3))))),
        )
        for alpha in (0.3, 0.6, 0.9)
    },
)
