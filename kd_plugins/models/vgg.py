"""VGG for 32 x 32 images."""

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from kd_plugins.errors import UserError
from kd_plugins.models.backbones import HE_INIT
from kd_plugins.registry import MODELS

# Convolutions of each group, by depth.
_BLOCKS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def _group(convolutions: int, in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        # Each has a bias, which the BatchNorm makes needless, as in the authors' code.
        layers += [
            nn.Conv2d(channels if i else in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


@MODELS.register_module()
class CifarVGG(BaseModule):
    """VGG with BatchNorm for 32 x 32 images: five groups of 3 x 3 convolutions; its head is one linear layer.

    The groups ``stem`` and ``stage1`` to ``stage4`` have 64, 128, 256, 512 and 512 channels, and maps of 32, 16, 8, 4
    and 4 pixels, halved by their maximum between the first four. Weights are initialised as in He et al. 2015.

    A tap on a group yields **post-ReLU** maps, before they are halved. The last BatchNorm of ``stage1`` is ``stage1.1``
    where the group has one convolution, ``stage1.4`` where it has two. No activation works in place, so a recorded map
    keeps its values.

    Args:
        depth: 8, 11, 13, 16 or 19: number of convolutions, and three, the linear layers of the paper's networks.
        init_cfg: mmengine's config dict for the initialisation.

    Shape: input (B, 3, H, W); output a tuple of one (B, 512, H/8, W/8).

    Raises:
        UserError: The depth is none of these.

    References:
        1. Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
        2. HobbitLong/RepDistiller, ``models/vgg.py`` (``vgg8_bn`` to ``vgg19_bn``).
    """

    def __init__(self, depth: int, init_cfg: dict | list[dict] | None = HE_INIT) -> None:
        super().__init__(init_cfg)
        if depth not in _BLOCKS:
            raise UserError(f'CifarVGG: depth must be one of {", ".join(map(str, _BLOCKS))}, got {depth}')
        blocks = _BLOCKS[depth]
        self.num_features = 512
        self.stem = _group(blocks[0], 3, 64)
        self.stage1 = _group(blocks[1], 64, 128)
        self.stage2 = _group(blocks[2], 128, 256)
        self.stage3 = _group(blocks[3], 256, 512)
        self.stage4 = _group(blocks[4], 512, 512)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the last group's map, in a tuple as mmpretrain's necks and heads expect."""
        for group in (self.stem, self.stage1, self.stage2):
            x = max_pool2d(group(x), 2)
        return (self.stage4(self.stage3(x)),)
