# A small GFL on 600 pictures of VOC 2007, alone and from the same detector with a MobileNetV2 that has learnt ImageNet,
# by each method.
#
#     python tools/study.py configs/studies/detection_voc_sample.py
title = 'Part of VOC 2007, mAP of a small GFL'
metric = 'pascal_voc/mAP'
fraction = True
seeds = [0, 1, 2]
terms_from = 'configs/_base_/methods_gfl_narrow.py'
teachers = {'GFL, MobileNetV2': dict(config='configs/detection/voc_sample/teacher.py')}
networks = {'GFL, narrow ResNet-18': dict(config='configs/detection/voc_sample/student.py', teacher='GFL, MobileNetV2')}
methods = {
    'Student alone': dict(),
    'PKD': dict(terms=['pkd']),
    'CWD': dict(terms=['cwd']),
    'MGD': dict(terms=['mgd']),
    'NST': dict(terms=['nst_poly']),
    'NST + PKD': dict(terms=['nst_poly', 'pkd']),
    'CrossKD': dict(terms=['crosskd']),
    'CWD on the head': dict(terms=['cwd_head']),
}
