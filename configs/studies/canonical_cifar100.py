# The CIFAR-100 tables of RepDistiller and its successors: nine pairs of networks, the published values beside.
#
#     python tools/study.py configs/studies/canonical_cifar100.py --only '*/kd/seed0' '*/student/seed0'
#
# A run is 240 epochs. What a pair's terms weigh is in its file of configs/cifar100/canonical. The released teachers are
# converted by tools/prepare_data.py and used as dict(given=dict(config=..., checkpoint=...)) in teachers.
title = 'CIFAR-100, the canonical pairs'
files = 'configs/cifar100/canonical'
pairs = {
    'ResNet-56/20': ('resnet20', 'resnet56'),
    'ResNet-110/32': ('resnet32', 'resnet110'),
    'ResNet-32x4/8x4': ('resnet8x4', 'resnet32x4'),
    'WRN-40-2/16-2': ('wrn-16-2', 'wrn-40-2'),
    'WRN-40-2/40-1': ('wrn-40-1', 'wrn-40-2'),
    'VGG-13/8': ('vgg8', 'vgg13'),
    'ResNet-32x4/ShuffleNetV1': ('shufflenet-v1', 'resnet32x4'),
    'ResNet-32x4/ShuffleNetV2': ('shufflenet-v2', 'resnet32x4'),
    'ResNet-50/MobileNetV2': ('mobilenet-v2', 'resnet50'),
}
teachers = {teacher: dict(config=f'{files}/{teacher}.py') for _, teacher in pairs.values()}
networks = {
    name: dict(config=f'{files}/{student}.py', teacher=teacher, terms_from=f'{files}/{student}_from_{teacher}.py')
    for name, (student, teacher) in pairs.items()
}
a_tenth = dict(model=dict(head=dict(loss=dict(loss_weight=0.1))))
methods = {
    'Student': dict(),
    'KD': dict(terms=['kd_alpha'], overrides=a_tenth),
    'FitNet': dict(terms=['fitnet']),
    'AT': dict(terms=['at']),
    'SP': dict(terms=['sp']),
    'VID': dict(terms=['vid']),
    'RKD': dict(terms=['rkd_da']),
    'PKT': dict(terms=['pkt']),
    'NST': dict(terms=['nst_poly']),
    'CRD': dict(terms=['crd']),
    'ReviewKD': dict(terms=['reviewkd']),
    'DKD': dict(terms=['dkd']),
    'NKD': dict(terms=['nkd']),
    'DIST': dict(terms=['dist']),
    'LSKD': dict(terms=['lskd'], overrides=a_tenth),
}
seeds = [0, 1, 2]
columns = 'network'
# The rows Teacher to CRD are RepDistiller's, DKD's is mdistiller's, DIST's and LSKD's are their authors', ReviewKD's as
# github.com/WangYZ1608/Knowledge-Distillation-via-ND and Papers with Code (VGG-13/8) give it.
published = """
method    ResNet-56/20  ResNet-110/32  ResNet-32x4/8x4  WRN-40-2/16-2  WRN-40-2/40-1  VGG-13/8
Teacher   72.34         74.31          79.42            75.61          75.61          74.64
Student   69.06         71.14          72.50            73.26          71.98          70.36
KD        70.66         73.08          73.33            74.92          73.54          72.98
FitNet    69.21         71.06          73.50            73.58          72.24          71.02
AT        70.55         72.31          73.44            74.08          72.77          71.43
SP        69.67         72.69          72.94            73.83          72.43          72.68
VID       70.38         72.61          73.09            74.11          73.30          71.23
RKD       69.61         71.82          71.90            73.35          72.22          71.48
PKT       70.34         72.61          73.64            74.54          73.45          72.88
NST       69.60         71.96          73.30            73.68          72.24          71.53
CRD       71.16         73.48          75.51            75.48          74.14          73.94
ReviewKD  71.89         -              75.63            -              75.09          74.84
DKD       71.97         74.11          76.32            76.23          74.81          74.68
DIST      71.75±0.30    -              76.31±0.19       -              74.43±0.24     -
LSKD      71.43         74.17          76.62            76.11          74.37          74.36
"""
published_across = """
method    ResNet-32x4/ShuffleNetV1  ResNet-32x4/ShuffleNetV2  ResNet-50/MobileNetV2
Teacher   79.42                     79.42                     79.34
Student   70.50                     71.82                     64.60
KD        74.07                     74.45                     67.35
FitNet    73.59                     73.54                     63.16
AT        71.73                     72.73                     58.58
SP        73.48                     74.56                     68.08
VID       73.38                     73.40                     67.57
RKD       72.28                     73.21                     64.43
PKT       74.10                     74.69                     66.52
NST       74.12                     74.68                     64.96
CRD       75.11                     75.65                     69.11
ReviewKD  77.45                     77.78                     69.89
DKD       76.45                     77.07                     70.35
DIST      76.34±0.18                77.35±0.25                68.66±0.23
LSKD      -                         75.56                     69.02
"""
references = [dict(corruption='clean', table=table) for table in (published, published_across)]
notes = (
    'Published values: RepDistiller (to CRD), mdistiller (DKD), the authors of DIST and LSKD; ReviewKD as others quote '
    "it. RepDistiller's code prints the accuracy of the best epoch; this table has that of the last."
)
