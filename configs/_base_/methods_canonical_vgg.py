# methods_canonical.py for networks of four stages.
_base_ = './methods_canonical.py'
stages = ['backbone.stage1', 'backbone.stage2', 'backbone.stage3', 'backbone.stage4']
flows = [['backbone.stem', stages[0]], stages[:2], stages[1:3], stages[2:]]
methods = _base_.methods
for name in ('at', 'nst_linear', 'nst_poly', 'nst_gaussian'):
    methods[name][0].update(student=stages, teacher=stages)
for name in ('cosine', 'sp', 'nst_gan'):
    methods[name][0].update(student=stages[-1], teacher=stages[-1])
methods.fsp = [dict(methods.fsp[0], name=f'fsp{i}', student=taps, teacher=taps) for i, taps in enumerate(flows, 1)]
