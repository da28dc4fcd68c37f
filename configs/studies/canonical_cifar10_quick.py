# Every method of canonical_cifar100.py on a laptop: CIFAR-10, two of its pairs, a few epochs; an hour a seed.
#
#     python tools/study.py configs/studies/canonical_cifar10_quick.py --jobs 2 --only '*/seed0'
_base_ = ['./canonical_cifar100.py', './_base_/quick.py']
title = 'CIFAR-10, two canonical pairs, a short schedule'
ten = dict(model=dict(head=dict(num_classes=10)))
teachers = dict(
    _delete_=True,
    resnet56=dict(_base_.teachers.resnet56, overrides=dict(_base_.teacher_few, **ten)),
    vgg13=dict(_base_.teachers.vgg13, overrides=dict(_base_.teacher_few, **ten)),
)
# Each image in two versions, so that the maps of the teachers take about six gigabytes, for all methods and seeds.
few = dict(train_dataloader=dict(batch_size=64, dataset=dict(seed=0, replay=2, dataset=dict(indices=4000))), **ten)
networks = {
    '_delete_': True,
    **{name: dict(_base_.networks[name], overrides=few) for name in ('ResNet-56/20', 'VGG-13/8')},
}
teacher_cache = True
references = []
notes = 'Nothing here is trained to the end: the figures compare with each other alone.'
