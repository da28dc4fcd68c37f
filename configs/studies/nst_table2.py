# Table 2 of Huang and Wang 2017: combinations. NST is that with the polynomial kernel.
_base_ = './nst_table1.py'

methods = dict(
    _delete_=True,
    **{
        'Student': dict(),
        'KD + FitNet': dict(terms=['kd', 'fitnet']),
        'KD + NST': dict(terms=['kd', 'nst_poly']),
        'KD + FitNet + NST': dict(terms=['kd', 'fitnet', 'nst_poly']),
    },
)
title = 'Neuron selectivity transfer, combined'
references = [
    dict(
        corruption='clean',
        table="""
method             CIFAR-10  CIFAR-100
Student            5.80      25.63
KD + FitNet        4.54      22.29
KD + NST           4.21      21.48
KD + FitNet + NST  4.54      22.25
Teacher            4.04      20.50
""",
    )
]
notes = (
    'WRN-16-2 from WRN-40-2. Published values: Huang and Wang 2017, Table 2 (Student and Teacher: Table 1), of other '
    'networks, an Inception-BN from a ResNet-1001.'
)
