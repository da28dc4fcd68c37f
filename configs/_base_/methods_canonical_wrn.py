# methods_canonical.py for WideResNet: FitNet, FSP and NST behind a BatchNorm, as methods_wrn.py has them.
_base_ = './methods_wrn.py'
methods = dict(sp=[dict(_base_.methods.sp[0], **_base_.last)])
