# Zagoruyko and Komodakis, Wide Residual Networks, section 3. The poster's studies leave Nesterov's momentum out
# (configs/studies/_base_/poster.py), and ONE's and DML's own training is in resnet32_one.py and resnet32_dml.py.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[60, 120, 160], gamma=0.2)

train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=5)
val_cfg = dict()
test_cfg = dict()
