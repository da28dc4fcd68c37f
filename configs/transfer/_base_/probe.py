# A linear probe of a WRN-16-2 that learned CIFAR-100: its backbone is frozen, BatchNorm statistics too, and a new
# linear classifier trains on its pooled features. The recipe is that of winycg/HSAKD, eval_rep.py, which however
# reports the best epoch on the test set; here the last one counts.
_base_ = ['../../_base_/models/wide_resnet.py', '../../_base_/default_runtime.py']

model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/cifar100/wrn-16-2/student.pth', prefix='backbone.')
    )
)
default_hooks = dict(frozen=dict(type='kd_plugins.FreezeHook', modules=['backbone']))

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.0))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)
val_cfg = dict()
test_cfg = dict()
