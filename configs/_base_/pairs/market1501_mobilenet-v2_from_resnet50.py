_base_ = ['../../market1501/mobilenet-v2.py', '../methods_mobilenet.py']
from kd_plugins.config import trained

teacher = trained('configs/market1501/resnet50.py')
requires = [teacher]
