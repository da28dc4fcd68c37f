# Networks that teach each other, without a teacher, on a schedule five times as long as that of quick.py, where what
# they learn from each other has hardly any weight yet.
_base_ = './quick.py'
epochs = 20

title = 'CIFAR-10, without a teacher, 20 epochs'
networks = dict(
    _delete_=True,
    **{
        'ResNet-8': dict(
            config='configs/cifar10/resnet8.py',
            overrides=dict(_base_.curves, train_cfg=dict(max_epochs=epochs, val_interval=4), **_base_.draws),
        ),
    },
)
teachers = dict(_delete_=True)
teacher_cache = False
methods = dict(_delete_=True, **{name: _base_.methods[name] for name in ('Baseline', 'ONE', 'DML')})
corruptions = dict(_delete_=True, **{name: _base_.corruptions[name] for name in ('clean', 'sigma=0.4')})
common = dict(param_scheduler=[_base_.warm_up, dict(_base_.cosine, end=epochs)], train_cfg=dict(max_epochs=epochs))
references = [
    dict(corruption='clean', table=_base_.poster_table3),
]
notes = 'Published values: Sarfraz et al. 2020.'
