# What a search for a term's weight costs and gains: ResNet-8 from a ResNet-14, half the images of quick.py, two
# methods with the weight of configs/_base_/methods.py and with the one that is found on 5,000 images held out of all
# training.
#
#     python tools/study.py configs/studies/search_quick.py --list
#     python tools/study.py configs/studies/search_quick.py
_base_ = ['./_base_/quick.py']

images = 4000
title = 'CIFAR-10, a short schedule, weights searched'
teachers = {'ResNet-14': dict(config='configs/cifar10/resnet14.py', overrides=_base_.teacher_few)}
networks = {
    'ResNet-8': dict(
        config='configs/cifar10/resnet8.py',
        teacher='ResNet-14',
        # Each image in two versions, so that the teacher's maps take a gigabyte.
        overrides=dict(train_dataloader=dict(dataset=dict(seed=0, replay=2, dataset=dict(indices=images)))),
    ),
}
methods = {
    'Baseline': dict(),
    'SP': dict(terms=['sp']),
    'SP, searched': dict(terms=['sp'], search=dict(weight=[300.0, 1000.0, 3000.0, 10000.0])),
    'NST poly': dict(terms=['nst_poly']),
    'NST poly, searched': dict(terms=['nst_poly'], search=dict(weight=[5.0, 15.0, 50.0, 150.0])),
}
teacher_cache = True
validation = dict(size=5000)
seeds = [0, 1, 2]
