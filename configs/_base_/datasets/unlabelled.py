# A folder of images without labels, for training with task='off'; images at any depth, of any usual format. In a leaf,
#
#     train_dataloader = dict(dataset=dict(data_root='data/photos'))
#
# names the folder; data_prefix=['a', 'b'] names several, ann_file='list.txt' a list, and dataset=dict(...) another data
# set, whose annotations are not used. A config with labels loses them by two lines:
#
#     images = dict(type='kd_plugins.UnlabelledImages', data_root='data/photos', pipeline=_base_.train_pipeline)
#     train_dataloader = dict(dataset=dict(_delete_=True, **images))
#
# Unreadable images end the run, or are left out by --skip-corrupt. Where decoding photographs is slower than training,
# kd_plugins.ResizedImages around the data set decodes each once. Mean and standard deviation are those of ImageNet.
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type='kd_plugins.LoadImage'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='kd_plugins.UnlabelledImages', data_root='data/unlabelled', pipeline=train_pipeline),
)
