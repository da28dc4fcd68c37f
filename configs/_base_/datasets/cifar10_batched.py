# The images and augmentations of cifar10.py, from memory, a whole batch at once: other draws, of the same distribution.
_base_ = 'cifar10.py'

train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='kd_plugins.whole_batch'),
    dataset=dict(
        _delete_=True,
        type='kd_plugins.BatchedImages',
        padding=4,
        flip_prob=0.5,
        dataset=dict(type='kd_plugins.CIFAR10', data_root='data/cifar10', split='train'),
    ),
)

val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='kd_plugins.whole_batch'),
    dataset=dict(
        _delete_=True,
        type='kd_plugins.BatchedImages',
        dataset=dict(type='kd_plugins.CIFAR10', data_root='data/cifar10', split='test'),
    ),
)

test_dataloader = val_dataloader
