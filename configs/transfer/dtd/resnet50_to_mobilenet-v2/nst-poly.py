_base_ = ['../_base_/pair.py', '../../../_base_/methods_mobilenet.py']
work_dir = f'work_dirs/transfer/dtd/split{_base_.split}/resnet50_to_mobilenet-v2/nst-poly'
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=_base_.teacher, terms=_base_.methods.nst_poly)]
