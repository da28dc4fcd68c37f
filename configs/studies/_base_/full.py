# All images of CIFAR-10 on a schedule that two cores train in days: images from memory, bfloat16, channels-last,
# one warm-up epoch and one cosine. Augmentations repeat after `replay` epochs, so that a teacher's outputs can be
# cached; all seeds draw the same ones, in other orders.
epochs, epochs_first, epochs_imbalanced, replay = 30, 10, 80, 10
lr = 0.3  # the best of 0.03, 0.1, 0.3 and 1 for the baseline, in cifar10_search.py

replace = ['configs/_base_/datasets/cifar10_batched.py', 'configs/_base_/schedules/cifar_quick.py']
warm_up = dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True)
cosine = dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True)
common = dict(
    # Without Nesterov's momentum, as the library that the authors published later.
    optim_wrapper=dict(optimizer=dict(lr=lr, nesterov=False)),
    # Not to be pickled one by one: the images go into one tensor.
    train_dataloader=dict(dataset=dict(dataset=dict(serialize_data=False))),
    val_dataloader=dict(dataset=dict(dataset=dict(serialize_data=False))),
    param_scheduler=[warm_up, cosine],
    train_cfg=dict(max_epochs=epochs, val_interval=1),
    val_cfg=dict(fp16=True),  # mmengine's name for autocast: bfloat16 on a CPU
    default_hooks=dict(layout=dict(type='kd_plugins.ChannelsLastHook'), checkpoint=dict(max_keep_ckpts=1)),
)
draws = dict(train_dataloader=dict(dataset=dict(seed=0, replay=replay)))
# The first of two stages. FSP's would diverge with the rate above.
first_stage = dict(
    optim_wrapper=dict(optimizer=dict(lr=0.1)),
    param_scheduler=[warm_up, dict(cosine, end=epochs_first)],
    train_cfg=dict(max_epochs=epochs_first),
)
