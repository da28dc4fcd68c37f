_base_ = ['../../market1501/resnet18.py', '../methods_imagenet.py']
from kd_plugins.config import trained

teacher = trained('configs/market1501/resnet50.py')
requires = [teacher]
