# A schedule for a laptop, of every *_quick.py and of quick.py: images from memory, bfloat16, channels-last, one warm-up
# epoch and one cosine, scored at the end alone. Its numbers, all of them:
images, epochs = 8000, 4  # of a student
teacher_images, teacher_epochs = 30000, 4
few_images, few_teacher_images = 1600, 12000  # of a WideResNet, which needs many times the arithmetic
lr = 0.1

replace = ['configs/_base_/datasets/cifar10_batched.py', 'configs/_base_/schedules/cifar_quick.py']
warm_up = dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True)
cosine = dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True)
common = dict(
    optim_wrapper=dict(optimizer=dict(lr=lr)),
    # Not to be pickled one by one: the images go into one tensor.
    train_dataloader=dict(dataset=dict(dataset=dict(indices=images, serialize_data=False))),
    val_dataloader=dict(dataset=dict(dataset=dict(serialize_data=False))),
    param_scheduler=[warm_up, cosine],
    train_cfg=dict(max_epochs=epochs, val_interval=epochs),
    val_cfg=dict(fp16=True),  # mmengine's name for autocast: bfloat16 on a CPU
    default_hooks=dict(layout=dict(type='kd_plugins.ChannelsLastHook'), checkpoint=dict(max_keep_ckpts=1)),
)
# For students, with teacher_cache: all seeds see the same crops and flips, in other orders; so a teacher runs once.
draws = dict(train_dataloader=dict(dataset=dict(seed=0)))
few = dict(train_dataloader=dict(batch_size=64, dataset=dict(seed=0, dataset=dict(indices=few_images))))
teacher_few = dict(train_dataloader=dict(dataset=dict(dataset=dict(indices=few_teacher_images))))
teacher_common = dict(
    train_dataloader=dict(dataset=dict(dataset=dict(indices=teacher_images))),
    param_scheduler=[warm_up, dict(cosine, end=teacher_epochs)],
    train_cfg=dict(max_epochs=teacher_epochs, val_interval=teacher_epochs),
)
