# The student at the 256 x 128 pixels of configs/market1501, to which its pictures are enlarged.
_base_ = './student.py'
resize = dict(type='Resize', scale=(128, 256))
train_pipeline = _base_.train_pipeline
train_pipeline.insert(1, resize)
train_pipeline[3].update(crop_size=(256, 128), padding=10)
test_pipeline = _base_.test_pipeline
test_pipeline.insert(1, resize)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
