# Stage 1 by NST alone: the narrow backbone learns from the teacher, on 600 scenes without labels.
_base_ = 'student.py'
from kd_plugins.config import trained

teacher = trained('configs/voc_mini/teacher.py', _base_.variant)
requires = [teacher]
model = dict(neck=None, head=None)
taps = ['backbone.layer2', 'backbone.layer3', 'backbone.layer4']
nst = dict(type='kd_plugins.NSTLoss', kernel='poly')
terms = [dict(name='nst', loss=nst, student=taps, teacher=taps, weight=25.0)]
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms, task='off')]

data_root = 'data/drawn/VOCdevkit/'
prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc', root=data_root)]
scenes = dict(
    type='kd_plugins.VOCDataset',
    data_root=data_root,
    ann_file='VOC2007/ImageSets/Main/val.txt',
    data_prefix=dict(sub_data_root='VOC2007/'),
    metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow')),
)
pipeline = [
    dict(type='kd_plugins.LoadImage'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomCrop', crop_size=96, padding=6),
    dict(type='PackInputs'),
]
images = dict(_delete_=True, type='kd_plugins.UnlabelledImages', dataset=scenes, pipeline=pipeline)
train_dataloader = dict(batch_size=8, dataset=images)

max_epochs = 4  # 300 iterations
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=max_epochs)
val_dataloader = None
val_cfg = None
val_evaluator = None
test_dataloader = None
test_cfg = None
test_evaluator = None
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=60),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
