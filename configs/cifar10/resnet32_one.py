# The training of ONE's authors (Lan1991Xu/ONE_NeurIPS2018, scripts/ONE_ResNet32.sh): 300 epochs, a tenth of the rate
# after 151 and 225, no Nesterov momentum; the divergence rises over the first 80 of them, NativeEnsemble's default.
# Their ResNet-32 has projections on its shortcuts, ours none; they divide by other deviations of the pixels.
_base_ = './resnet32.py'
model = dict(_delete_=True, type='kd_plugins.NativeEnsemble', student=_base_.model)
optim_wrapper = dict(optimizer=dict(nesterov=False, weight_decay=1e-4))
param_scheduler = dict(milestones=[151, 225], gamma=0.1)
train_cfg = dict(max_epochs=300)
