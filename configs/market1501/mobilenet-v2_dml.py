# Two MobileNets trained as in DML's paper: Adam with beta_1 = 0.5, 100,000 iterations (its code: 200,000) on 16 images
# drawn from all, flips alone; its code's weight decay and label smoothing; no triplet loss. MobileNetV2, at 256 x 128
# pixels and behind a BNNeck, takes the place of the paper's MobileNet, and starts from ImageNet weights.
_base_ = './mobilenet-v2.py'
model = dict(
    _delete_=True,
    type='kd_plugins.MutualLearning',
    student=dict(_base_.model, head=dict(_base_.model.head, triplet_weight=0.0)),
)
train_dataloader = dict(
    batch_size=16,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=[step for step in _base_.train_pipeline if step.type not in ('RandomCrop', 'RandomErasing')]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, betas=(0.5, 0.999), weight_decay=4e-5))
param_scheduler = None
train_cfg = dict(max_epochs=124)  # of 809 iterations
