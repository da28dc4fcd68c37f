# A detection set in VOC's layout that is drawn when first needed: 64 scenes to train on, 200 to test on.
_base_ = 'voc07.py'

data_root = 'data/drawn/VOCdevkit/'
prepare = [dict(type='kd_plugins.datasets.drawing.draw_voc', root=data_root)]
metainfo = dict(classes=('circle', 'square', 'triangle', 'star', 'cross', 'ring', 'crescent', 'arrow'))
scale = (96, 96)

train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = scale
train_set = dict(
    data_root=data_root, ann_file='VOC2007/ImageSets/Main/train.txt', metainfo=metainfo, pipeline=train_pipeline
)
train_dataloader = dict(batch_size=8, dataset=train_set)
val_dataloader = dict(batch_size=10, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
