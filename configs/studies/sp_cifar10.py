# The CIFAR-10 table of Tung and Mori 2019 (arXiv 1907.09682): five pairs of WRNs, median error of five runs in percent.
# Its values are recalled; the Student, SP and Teacher of the first and the last pair are confirmed by a survey.
teachers = {
    'WRN-40-1': dict(config='configs/cifar10/wrn-40-1.py'),
    'WRN-16-2': dict(config='configs/cifar10/wrn-16-2.py'),
    'WRN-40-2': dict(config='configs/cifar10/wrn-40-2.py'),
    'WRN-16-8': dict(config='configs/cifar10/wrn-16-8.py'),
}
networks = {
    '16-1 < 40-1': dict(config='configs/cifar10/wrn-16-1.py', teacher='WRN-40-1'),
    '16-1 < 16-2': dict(config='configs/cifar10/wrn-16-1.py', teacher='WRN-16-2'),
    '16-2 < 40-2': dict(config='configs/cifar10/wrn-16-2.py', teacher='WRN-40-2'),
    '16-2 < 16-8': dict(config='configs/cifar10/wrn-16-2.py', teacher='WRN-16-8'),
    '40-2 < 16-8': dict(config='configs/cifar10/wrn-40-2.py', teacher='WRN-16-8'),
}
methods = {
    'Student': dict(),
    'KD': dict(terms=['kd_alpha'], overrides=dict(model=dict(head=dict(loss=dict(loss_weight=0.1))))),
    'AT': dict(terms=['at']),
    'SP': dict(terms=['sp']),
}
title = 'Similarity preserving distillation, CIFAR-10, WRN student < teacher'
error = True
average = 'median'
seeds = [0, 1, 2, 3, 4]
references = [
    dict(
        corruption='clean',
        table="""
method   16-1 < 40-1  16-1 < 16-2  16-2 < 40-2  16-2 < 16-8  40-2 < 16-8
Student  8.74         8.74         6.07         6.07         5.18
KD       8.48         7.94         6.00         5.62         4.86
AT       8.30         8.28         5.89         5.47         4.47
SP       8.13         7.52         5.52         5.34         4.55
Teacher  6.51         6.07         5.18         4.24         4.24
""",
    )
]
notes = (
    'Published values: Tung and Mori 2019, recalled; only Student, SP and Teacher of the first and the last pair are '
    'confirmed.'
)
