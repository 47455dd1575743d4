"""Where a block answers: maps of its mean over channels, and how far two of them are apart.

In: the alignment and the similarity losses of MEAL (Shen et al. 2019, arXiv 1812.02425). Left
out: which block of whom (objectives/meal.py). Nothing is learned here, so that two networks whose
blocks have other widths and grids can be compared as they are.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

Similarity = Literal["cross_entropy", "l1", "l2"]


def channel_mean_map(block: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean over channels, averaged or repeated onto another grid.

    Args:
        block: (B, channels, H, W).
        grid: Height and width of the result.

    Returns:
        (B, height * width) float32, or float64 for a float64 block.
    """
    block = block.float() if block.itemsize < 4 else block
    mean = block.mean(dim=1, keepdim=True)
    return functional.adaptive_avg_pool2d(mean, grid).flatten(1)


def comparable(maps: Tensor, similarity: Similarity) -> Tensor:
    """Return (B, P) maps as a similarity looks at them.

    Under cross-entropy the positions are classes, and what counts is their softmax.
    """
    return maps.softmax(dim=1) if similarity == "cross_entropy" else maps


def map_distance(maps: Tensor, target: Tensor, similarity: Similarity) -> Tensor:
    """Return how far each map is from its target.

    Args:
        maps: (B, P).
        target: (B, P), `comparable`, or a mean of such.
        similarity: `cross_entropy` over positions, or the mean over them of `l1` absolute or `l2`
            squared differences.

    Returns:
        (B,).
    """
    if similarity == "cross_entropy":
        return -(target * maps.log_softmax(dim=1)).sum(dim=1)
    difference = maps - target
    return (difference.abs() if similarity == "l1" else difference.square()).mean(dim=1)
