from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='kd_plugins',
    version='0.1.0',
    description='Knowledge distillation for OpenMMLab: losses, hooks and models for mmengine, mmdet and mmpretrain',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['kd_plugins', 'kd_plugins.*']),
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.6',
        'torchvision>=0.21',
        'onedl-mmengine>=0.10.9',
        'onedl-mmcv>=2.3',
        'onedl-mmpretrain>=1.3',
        'rich',
        'numpy>=2',
        'scipy',
    ],
    extras_require={
        'detection': ['onedl-mmdetection>=3.5'],
        'reid': ['faiss-gpu>=1.8'],
        'pictures': ['matplotlib', 'scikit-learn'],
        'study-cluster': ['ray'],
        'test': ['pytest', 'pytest-xdist', 'ruff'],
    },
)
