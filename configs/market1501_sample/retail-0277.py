# The student from a network that is no OpenMMLab model, person-reidentification-retail-0277 of the Open Model Zoo: a
# file of your own returns it, see the README of this folder. Scores of identities do not fit, since it knows others;
# what compares embeddings or maps does:
#
#     METHOD=cosine python tools/train.py configs/market1501_sample/retail-0277.py
_base_ = ['./student.py', '../_base_/methods_embedding.py']
from kd_plugins.config import terms_of

variant = '{{$METHOD:cosine}}'
name = variant
# Two augmentations of each picture, whose embeddings and maps the cache keeps.
train_dataloader = dict(
    dataset=dict(_delete_=True, type='kd_plugins.RepeatedViews', views=2, dataset=_base_.train_dataloader['dataset'])
)
teacher = dict(
    build='data/reid/retail.py:retail_0277',
    size=(256, 128),
    data_preprocessor=dict(mean=None, std=None),  # blue first, 0 to 255
    bf16=True,
    cache='data/teacher_cache',
)
custom_hooks = [dict(type='kd_plugins.DistillationHook', teacher=teacher, terms=terms_of(_base_.methods, variant))]
