# KD, AT, SP, RKD and NST alone, and KD with others, on the sample of Market-1501: mAP of a narrow ResNet-18.
#
#     python tools/study.py configs/studies/market1501_sample.py --jobs 2
title = 'Part of Market-1501, 400 identities'
metric = 'reid/mAP'
fraction = True
seeds = [0, 1, 2]
terms_from = 'configs/_base_/methods_imagenet.py'
teachers = {'ResNet-18, twice the width': dict(config='configs/market1501_sample/teacher.py')}
networks = {'ResNet-18': dict(config='configs/market1501_sample/student.py', teacher='ResNet-18, twice the width')}
methods = {
    'Student alone': dict(),
    'KD': dict(terms=['kd']),
    'AT': dict(terms=['at']),
    'SP': dict(terms=['sp']),
    'RKD-DA': dict(terms=['rkd_da']),
    'NST poly': dict(terms=['nst_poly']),
    'KD + RKD-DA': dict(terms=['kd', 'rkd_da']),
    'KD + NST poly': dict(terms=['kd', 'nst_poly']),
}
