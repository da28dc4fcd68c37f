# A linear probe on STL-10 of any checkpoint; for a network other than WRN-16-2 give its depth:
#
#     python tools/train.py configs/transfer/stl10/probe.py --work-dir work_dirs/probe \
#         --cfg-options model.backbone.init_cfg.checkpoint=student.pth model.backbone.depth=40
_base_ = ['../_base_/probe.py', '../../_base_/datasets/stl10.py']
