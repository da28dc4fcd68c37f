# KD, FitNet, FSP, AT, SP, RKD and NST alone, and KD + NST: ResNet-8 from ResNet-20, as in configs/cifar10_quick.
#
#     python tools/study.py configs/studies/resnet8_from_resnet20.py --jobs 2
title = 'CIFAR-10, 20,000 images, two epochs'
teachers = {'ResNet-20': dict(config='configs/cifar10_quick/teacher.py')}
networks = {'ResNet-8': dict(config='configs/cifar10_quick/student.py', teacher='ResNet-20')}
methods = {
    'Student alone': dict(),
    'KD': dict(terms=['kd_alpha'], overrides=dict(model=dict(head=dict(loss=dict(loss_weight=0.1))))),
    'FitNet': dict(terms=['fitnet']),
    'AT': dict(terms=['at']),
    'FSP': dict(terms=['fsp']),
    'SP': dict(terms=['sp']),
    'RKD-D': dict(terms=['rkd_d']),
    'RKD-A': dict(terms=['rkd_a']),
    'RKD-DA': dict(terms=['rkd_da']),
    'NST linear': dict(terms=['nst_linear']),
    'NST poly': dict(terms=['nst_poly']),
    'NST Gaussian': dict(terms=['nst_gaussian']),
    'KD + NST poly': dict(terms=['kd', 'nst_poly']),
}
