# methods_pretrain.py beside a loss of labels, with weights that an eye on the VOC sample chose, in three epochs.
_base_ = './methods_pretrain.py'
nst = [dict(_base_.methods['nst'][0], weight=50.0)]
cosine = [dict(_base_.methods['cosine'][0], weight=3.0)]
methods = dict(nst=nst, cosine=cosine)
