default_scope = 'mmpretrain'
custom_imports = dict(imports=['kd_plugins'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # Under data-parallel: all processes score with the same BatchNorm statistics, those of the checkpoint.
    sync_buffers=dict(type='SyncBuffersHook'),
    # In default_hooks, which merges: a leaf's custom_hooks replaces the whole list.
    export=dict(type='kd_plugins.ExportHook'),
    reseed=dict(type='kd_plugins.ReseedHook'),
    pretrained_check=dict(type='kd_plugins.PretrainedCheckHook'),
    corruption=dict(type='kd_plugins.CorruptionHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
