# Scenes with a class for each pixel, in VOC's layout, drawn when first needed: 480 to train on, 200 to test on.
data_root = 'data/drawn/segmentation/VOCdevkit/'
prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc', root=data_root, train=320, val=160, masks=True)]
classes = ('background', 'circle', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow')
train_pipeline = [
    dict(type='kd_plugins.LoadImage'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='kd_plugins.LoadImage'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
scenes = dict(
    type='BaseSegDataset',
    data_root=data_root,
    data_prefix=dict(img_path='VOC2007/JPEGImages', seg_map_path='VOC2007/SegmentationClass'),
    img_suffix='.jpg',
    seg_map_suffix='.png',
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**scenes, ann_file='VOC2007/ImageSets/Main/trainval.txt', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=10,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**scenes, ann_file='VOC2007/ImageSets/Main/test.txt', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
