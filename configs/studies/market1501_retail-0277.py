# From a re-identification network of another library: mAP of a narrow ResNet-18 on the sample of Market-1501.
#
#     python tools/study.py configs/studies/market1501_retail-0277.py
title = 'Part of Market-1501, from person-reidentification-retail-0277'
metric = 'reid/mAP'
fraction = True
seeds = [0, 1, 2]
terms_from = 'configs/_base_/methods_embedding.py'
teachers = {
    'retail-0277': dict(
        given=dict(
            build='data/reid/retail.py:retail_0277',
            size=(256, 128),
            data_preprocessor=dict(mean=None, std=None),
            bf16=True,
        )
    )
}
teacher_cache = True
networks = {
    'ResNet-18': dict(
        config='configs/market1501_sample/retail-0277.py',
        teacher='retail-0277',
        overrides=dict(custom_hooks=[]),  # the study's own, of each method
    )
}
methods = {
    'Student alone, every crop new': dict(overrides=dict(train_dataloader=dict(dataset=dict(views=20)))),
    'Student alone': dict(),
    'RKD-DA': dict(terms=['rkd_da']),
    'SP': dict(terms=['sp']),
    'NST poly': dict(terms=['nst']),
    'Cosine': dict(terms=['cosine']),
}
