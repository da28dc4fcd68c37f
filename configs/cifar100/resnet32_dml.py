# The training of DML's paper: batches of 64, a tenth of the rate every 60 epochs, a border of mirrored pixels. It
# states no weight decay and follows Wide Residual Networks, so it is theirs, 5e-4.
_base_ = './resnet32.py'
model = dict(_delete_=True, type='kd_plugins.MutualLearning', student=_base_.model)
pipeline = _base_.train_dataloader.dataset.pipeline
train_dataloader = dict(
    batch_size=64, dataset=dict(pipeline=[dict(pipeline[0], padding_mode='reflect'), *pipeline[1:]])
)
param_scheduler = dict(milestones=[60, 120, 180], gamma=0.1)
