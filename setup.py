import tempfile
from pathlib import Path

from setuptools import find_packages, setup

# Links to configs/ and tools/, where OpenMMLab's packages have theirs; archives hold the files.
PACKAGE = Path(__file__).parent / 'kd_plugins' / '.mim'
# Neither a build's files nor those of an earlier one stay in the working tree.
SCRATCH = tempfile.TemporaryDirectory()

setup(
    name='kd_plugins',
    version='0.2.0',
    description='Knowledge distillation for OpenMMLab: losses, hooks and models for mmpretrain, mmdet and mmseg',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['kd_plugins', 'kd_plugins.*']),
    package_data={
        'kd_plugins': [
            'py.typed',
            '.mim/model-index.yml',
            *(f'.mim/configs/**/*.{ending}' for ending in ('py', 'yml', 'md')),
            '.mim/tools/**/*.py',
        ]
    },
    entry_points={
        'console_scripts': [
            f'kd-{tool.stem.replace("_", "-")} = kd_plugins.commands:main'
            for tool in sorted(PACKAGE.glob('tools/*.py'))
        ],
    },
    python_requires='>=3.10',
    classifiers=['Operating System :: POSIX :: Linux'],
    install_requires=[
        'torch>=2.6,<3',
        'torchvision>=0.21,<1',
        'onedl-mmengine>=0.10.9,<0.11',
        'onedl-mmcv>=2.3,<3',
        'onedl-mmpretrain>=1.3,<2',
        'rich',
        'numpy>=2,<3',
        'scipy<2',
    ],
    extras_require={
        'detection': ['onedl-mmdetection>=3.5,<4'],
        'segmentation': ['onedl-mmsegmentation>=1.4,<2'],
        'reid': ['faiss-gpu>=1.8,<2'],
        'timm': ['timm>=1.0.9,<2'],
        'huggingface': ['transformers>=4.57,<5', 'safetensors'],
        'export': ['onnx>=1.18,<2', 'onnxscript>=0.5', 'onnxruntime>=1.20,<2'],
        'pictures': ['matplotlib', 'scikit-learn'],
        'race': ['torchdistill>=1.1.3,<2'],
        'study-cluster': ['ray'],
        'test': ['mypy>=2.4,<3', 'pytest', 'pytest-xdist', 'ruff', 'types-PyYAML'],
    },
    options={'build': {'build_base': SCRATCH.name}, 'egg_info': {'egg_base': SCRATCH.name}},
)
