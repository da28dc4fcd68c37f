# The methods' own weights that scored best in cifar10_search.py (its page has the figures), where those are not
# configs/_base_/methods.py's.
_base_ = ['../../_base_/methods.py']
methods = dict(
    kd_alpha=[dict(_base_.methods.kd_alpha[0], weight=0.6)],
    at=[dict(_base_.methods.at[0], weight=300.0)],
    nst_gaussian=[dict(_base_.methods.nst_gaussian[0], weight=30.0)],
)
