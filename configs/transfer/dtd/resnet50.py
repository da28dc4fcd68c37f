# A ResNet-50 from ImageNet, all of it fine-tuned on one split of Describable Textures, DTD_SPLIT=1 to 10. The median of
# all ten, for all networks and methods:
#
#     python tools/study.py configs/studies/sp_dtd.py
#
# Tung and Mori fine-tune MobileNets of several widths on the ten splits. Their schedule, augmentation and whether the
# validation part trains could not be found: those here are a common choice. Of their networks, only MobileNetV2 at
# width 1 has public weights in mmpretrain; its teacher here is a ResNet-50.
_base_ = ['../../_base_/datasets/dtd.py', '../../_base_/default_runtime.py']
variant = f'split{_base_.split}'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet',
        depth=50,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=47, in_channels=2048, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[30, 45], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=10)
val_cfg = dict()
test_cfg = dict()
