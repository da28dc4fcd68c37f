# A small PSPNet on drawn scenes, without any data, alone and from one of twice the width, by each method.
#
#     python tools/study.py configs/studies/segmentation_mini.py
title = 'Drawn scenes, mIoU of a small PSPNet'
metric = 'mIoU'
seeds = [0, 1, 2]
terms_from = 'configs/_base_/methods_segmentation.py'
teachers = {'PSPNet, ResNet-18': dict(config='configs/segmentation/drawn/teacher.py')}
networks = {
    'PSPNet, narrow ResNet-18': dict(config='configs/segmentation/drawn/student.py', teacher='PSPNet, ResNet-18')
}
methods = {
    'Student alone': dict(),
    'CWD': dict(terms=['cwd']),
    'CWD, as its authors': dict(terms=['cwd_authors']),
    'KD': dict(terms=['kd']),
    'AT': dict(terms=['at']),
    'NST': dict(terms=['nst_poly']),
    'SP': dict(terms=['sp']),
    'PKD': dict(terms=['pkd']),
    'CWD + PKD': dict(terms=['cwd', 'pkd']),
}
