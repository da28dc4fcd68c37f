# Table 1 of Huang and Wang 2017 (arXiv 1707.01219): NST beside other methods, CIFAR-10 and CIFAR-100, error in percent.
# The paper's student is an Inception-BN and its teacher a ResNet-1001; WRN-16-2 and WRN-40-2 take their places.
teachers = {
    'WRN-40-2, CIFAR-10': dict(config='configs/cifar10/wrn-40-2.py'),
    'WRN-40-2, CIFAR-100': dict(config='configs/cifar100/wrn-40-2.py'),
}
terms_from = 'configs/_base_/methods_wrn.py'
networks = {
    'CIFAR-10': dict(config='configs/cifar10/wrn-16-2.py', teacher='WRN-40-2, CIFAR-10'),
    'CIFAR-100': dict(config='configs/cifar100/wrn-16-2.py', teacher='WRN-40-2, CIFAR-100'),
}
methods = {
    'Student': dict(),
    'KD': dict(terms=['kd']),
    'FitNet': dict(terms=['fitnet']),
    'AT': dict(terms=['at']),
    'NST linear': dict(terms=['nst_linear']),
    'NST poly': dict(terms=['nst_poly']),
    'NST Gaussian': dict(terms=['nst_gaussian']),
}
title = 'Neuron selectivity transfer'
error = True
seeds = [0, 1, 2, 3, 4]
references = [
    dict(
        corruption='clean',
        table="""
method        CIFAR-10  CIFAR-100
Student       5.80      25.63
KD            4.47      22.18
FitNet        4.75      23.48
AT            4.64      24.31
NST linear    4.87      24.28
NST poly      4.39      23.46
NST Gaussian  4.48      23.85
Teacher       4.04      20.50
""",
    )
]
notes = (
    'WRN-16-2 from WRN-40-2. Published values: Huang and Wang 2017, Table 1, of other networks, an Inception-BN from a '
    'ResNet-1001.'
)
