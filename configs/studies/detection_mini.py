# A small GFL on drawn scenes, without any data, alone and from the same detector with a backbone of twice the
# width, by each method.
#
#     python tools/study.py configs/studies/detection_mini.py
title = 'Drawn scenes, mAP of a small GFL'
metric = 'pascal_voc/mAP'
fraction = True
seeds = [0, 1, 2]
terms_from = 'configs/_base_/methods_gfl_narrow.py'
teachers = {'GFL, ResNet-18': dict(config='configs/detection/voc_mini/teacher.py')}
networks = {'GFL, narrow ResNet-18': dict(config='configs/detection/voc_mini/student.py', teacher='GFL, ResNet-18')}
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
