"""Networks of our own for 32 x 32 glyphs: a small residual one, and a plain one.

In: the teachers and students of the built-in data set. Left out: anything torchvision has, whose
networks halve such images too often.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, arXiv 1512.03385).

    Where the block halves the side, the shortcut averages 2x2 pixels before its 1x1 convolution
    instead of dropping three of four (He et al. 2019, arXiv 1812.01187, ResNet-D).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride != 1 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return functional.relu(y, inplace=True)


class _GlyphNetwork(nn.Module):
    """A stem and blocks, the last block's 4x4 grid, flattened, and a linear layer."""

    def __init__(
        self, stem: nn.Module, blocks: nn.Module, channels: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.stem, self.blocks = stem, blocks
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(16 * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, num_classes) logits of (B, in_channels, S, S) images."""
        images = images.contiguous(memory_format=torch.channels_last)
        grid = self.pool(self.blocks(self.stem(images)))
        logits: Tensor = self.fc(self.dropout(grid.flatten(1)))
        return logits


class GlyphResNet(_GlyphNetwork):
    """Stem of stride 2, then residual blocks of 3/8, 1 and 2 times the width.

    The first block, on the largest grid, is the narrowest: it takes the most time a channel.

    The features are the last block's 4x4 grid, flattened, not its mean: where a stroke lies tells
    glyphs apart. README.md of this package has the measurements.

    Args:
        num_classes: Outputs of `fc`.
        in_channels: 1 for gray images.
        width: Channels of the second block, a multiple of 8; there are 32 times as many features.
        dropout: Share of the features dropped in training.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int, dropout: float) -> None:
        if width < 8 or width % 8:
            raise ValueError(f"width must be a positive multiple of 8, got {width}")
        narrow = 3 * width // 8
        stem = nn.Sequential(
            nn.Conv2d(in_channels, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(inplace=True),
        )
        blocks = nn.Sequential(
            _Block(narrow, narrow, 1), _Block(narrow, width, 2), _Block(width, 2 * width, 2)
        )
        super().__init__(stem, blocks, 2 * width, num_classes, dropout)


def glyph_resnet(
    num_classes: int, in_channels: int = 1, width: int = 64, dropout: float = 0.2
) -> GlyphResNet:
    """Return the network of the built-in data set; a narrower one makes a quick specialist."""
    return GlyphResNet(num_classes, in_channels, width, dropout)


def _plain_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class GlyphVGG(_GlyphNetwork):
    """Convolutions and maxima without shortcuts (Simonyan & Zisserman 2015, arXiv 1409.1556).

    A stem of stride 2 and three blocks of 1/2, 1 and 2 times the width, with maxima between them.
    The features are the last block's 4x4 grid, flattened, as in `GlyphResNet`.

    Args:
        num_classes: Outputs of `fc`.
        in_channels: 1 for gray images.
        width: Channels of the second block, an even number; there are 32 times as many features.
        dropout: Share of the features dropped in training.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int, dropout: float) -> None:
        if width < 2 or width % 2:
            raise ValueError(f"width must be a positive even number, got {width}")
        stem = nn.Sequential(
            nn.Conv2d(in_channels, width // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.ReLU(inplace=True),
        )
        blocks = nn.Sequential(
            _plain_block(width // 2, width // 2),
            nn.MaxPool2d(2, ceil_mode=True),
            _plain_block(width // 2, width),
            nn.MaxPool2d(2, ceil_mode=True),
            _plain_block(width, 2 * width),
        )
        super().__init__(stem, blocks, 2 * width, num_classes, dropout)


def glyph_vgg(
    num_classes: int, in_channels: int = 1, width: int = 64, dropout: float = 0.2
) -> GlyphVGG:
    """Return a plain network for the built-in data set, of another architecture than its own."""
    return GlyphVGG(num_classes, in_channels, width, dropout)
