# A small GFL on 600 pictures of VOC 2007, alone and from the same detector with a MobileNetV2 that has learnt ImageNet,
# by each method.
#
#     python tools/study.py configs/studies/detection_voc_sample.py
_base_ = './detection_mini.py'

title = 'Part of VOC 2007, mAP of a small GFL'
teachers = {'_delete_': True, 'GFL, MobileNetV2': dict(config='configs/detection/voc_sample/teacher.py')}
networks = {'GFL, narrow ResNet-18': dict(config='configs/detection/voc_sample/student.py', teacher='GFL, MobileNetV2')}
