# About 15,600 images: ten classes of ImageNet at 128 pixels, forty of Tiny-ImageNet and 600 pictures of VOC 2007, all
# without their labels. Each has two augmentations, so that a teacher's cache can hold its features.
_base_ = './unlabelled.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=128, crop_ratio_range=(0.35, 1.0))
voc = dict(
    type='mmdet.VOCDataset',
    data_root='data/VOCdevkit/',
    ann_file='VOC2007/ImageSets/Main/trainval.txt',
    data_prefix=dict(sub_data_root='VOC2007/'),
)
images = dict(
    type='kd_plugins.UnlabelledImages',
    data_root='data',
    data_prefix=['imagenette-128/train', 'tiny-imagenet-40/train'],
    dataset=voc,
    pipeline=train_pipeline,
)
train_dataloader = dict(
    num_workers=1,
    dataset=dict(_delete_=True, type='kd_plugins.RepeatedViews', views=2, dataset=images),
)

# Progress, on a fifth of the ten classes' training images and their validation images.
labelled = dict(
    type='CustomDataset',
    data_root='data/imagenette-128',
    pipeline=[
        dict(type='kd_plugins.LoadImage'),
        dict(type='ResizeEdge', scale=128),
        dict(type='CenterCrop', crop_size=128),
        dict(type='PackInputs'),
    ],
)
knn = dict(
    type='kd_plugins.KNNHook',
    bank=dict(labelled, data_prefix='train', indices=[*range(0, 5000, 5)]),
    queries=dict(labelled, data_prefix='val'),
)
