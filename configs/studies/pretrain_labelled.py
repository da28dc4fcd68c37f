# The same backbone from labels, alone and beside a term, on the part of the images that has labels.
#
#     python tools/study.py configs/studies/pretrain_labelled.py
_base_ = './pretrain.py'

title = 'A narrow ResNet-18 from labels, alone and with a MobileNetV2'
metric = 'accuracy/top1'
seeds = [0, 1, 2, 3, 4]
networks = {'ResNet-18': dict(config='configs/pretrain/resnet18-narrow.py')}
terms_from = 'configs/_base_/methods_pretrain_labelled.py'
# The students of the teacher see two augmentations of an image, as its cache needs; labels alone need no such limit.
every_crop_new = dict(train_dataloader=dict(dataset=dict(views=8)))
methods = dict(
    _delete_=True,
    **{
        'Labels, every crop new': dict(overrides=every_crop_new),
        'Labels': dict(),
        'Labels + NST': dict(terms=['nst']),
        'Labels + Cosine': dict(terms=['cosine']),
    },
)
