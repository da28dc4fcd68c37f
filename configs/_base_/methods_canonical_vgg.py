# methods_canonical.py for networks of four stages: what compares the ends of all three, or of the last, compares those
# of four.
_base_ = './methods_canonical.py'
four = [*_base_.stages, 'backbone.stage4']
flows = [['backbone.stem', four[0]], four[:2], four[1:3], four[2:]]
methods = _base_.methods
for method in methods.values():
    for term in method:
        for side in ('student', 'teacher'):
            if term[side] == _base_.stages:
                term[side] = four
            elif term[side] == _base_.stages[-1]:
                term[side] = four[-1]
methods.fsp = [dict(methods.fsp[0], name=f'fsp{i}', student=taps, teacher=taps) for i, taps in enumerate(flows, 1)]
# The authors publish no weight for VGG: 1, their program's default.
methods.reviewkd[0].update(
    student=[*four, 'neck.gap'],
    teacher=[*(f'{tap}.4' for tap in four), 'neck.gap'],  # the last BatchNorm of two, those of VGG-13
)
