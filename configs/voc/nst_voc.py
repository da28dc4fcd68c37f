_base_ = '../nst_voc.py'
