_base_ = ['mmpretrain::resnet/resnet18_8xb32_in1k.py', '../methods_imagenet.py']
custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)
default_hooks = dict(export=dict(type='kd_plugins.ExportHook'), reseed=dict(type='kd_plugins.ReseedHook'))
teacher = dict(
    config='mmpretrain::resnet/resnet34_8xb32_in1k.py',
    checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth',
)
