# The methods of quick.py on imbalanced training data. At gamma = 0.2 CIFAR-10 keeps 7,621 images, 5,000 of them of one
# class: ResNet-8 sees all of them, WRN-16-2 the first 2,000, in more epochs, since four would teach that class alone.
_base_ = './quick.py'
epochs, teacher_epochs = 5, 10

title = 'CIFAR-10, imbalanced, a short schedule'
corruptions = {'_delete_': True, 'gamma=0.2': dict(imbalance=dict(gamma=0.2))}
common = dict(
    train_dataloader=dict(dataset=dict(dataset=dict(indices=None))),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
    ],
    train_cfg=dict(max_epochs=epochs, val_interval=epochs))
teacher_common = dict(
    train_dataloader=dict(dataset=dict(dataset=dict(indices=None))),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=teacher_epochs, convert_to_iter_based=True),
    ],
    train_cfg=dict(max_epochs=teacher_epochs, val_interval=teacher_epochs))
references = [dict(network='WRN-16-2', table=_base_.poster_imbalance)]
notes = (
    'WRN-16-2 learns from the first 2,000 of the 7,621 images that are left, a quarter of each class. '
    'Published values: Sarfraz et al. 2020; the network of the imbalance table is not stated there, WRN-16-2 is '
    'assumed.')
