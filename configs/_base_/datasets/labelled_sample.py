# The images of unlabelled_sample.py that have classes, fifty of them, with their labels.
_base_ = './unlabelled_sample.py'

data_preprocessor = dict(num_classes=50)
images = dict(
    _delete_=True,
    type='CustomDataset',
    data_root='data/labelled',
    data_prefix='train',
    pipeline=_base_.train_pipeline,
)
train_dataloader = dict(dataset=dict(dataset=images))
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(_base_.labelled, data_root='data/labelled', data_prefix='val'),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
