# The sample of VOC 2007, at a fifth of the usual size.
_base_ = './voc07.py'

scale = (240, 160)
train_pipeline = _base_.train_pipeline
train_pipeline[2]['scale'] = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = scale
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=20, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
