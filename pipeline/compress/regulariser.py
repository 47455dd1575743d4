"""Sparsity of the scales of batch normalisation, weighed by what their channels cost, per block.

After MorphNet (Gordon et al. 2018, arXiv 1711.06798), whose regulariser is, for each layer,

    cost * (sum |gamma_in| * alive_out + sum |gamma_out| * alive_in)

with the counts of channels that are alive taken as constants. Here it is summed over the layers of
a block. Channels that are tied have one strength, the root mean square of their scales (a group
lasso), and are alive while it is above a threshold: a residual chain keeps what any member needs.

In: strengths, costs and regularisers of all blocks, as tensors. Left out: the weights of the
blocks (controller.py) and which channels are cut (budget.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compress.channel_groups import ChannelGroups, Layer
from pipeline.compress.channel_rules import Channels

Resource = Literal["flops", "parameters"]

# Keeps the gradient of the root mean square finite where all scales are 0.
_SQUARE = 1e-12


def block_of(name: str, named: Sequence[str]) -> str:
    """Return the block of a layer: the longest given name that holds it, or that of its parent.

    Names are those of the backbone's modules; the layer that reads the features is `head`. Of a
    parent's name the first two parts count, so each residual block of torchvision's networks is a
    block. A layer without a parent is a block of its own.
    """
    if not name.startswith("backbone."):
        return "head"
    inner = name.removeprefix("backbone.")
    holding = [block for block in named if f"{inner}.".startswith(f"{block}.")]
    if holding:
        return max(holding, key=len)
    return ".".join(inner.split(".")[:-1][:2]) or inner


class _Incidence:
    """Which groups one side of each layer has, repeats counted; sums over them."""

    def __init__(self, sides: Sequence[Channels | None]) -> None:
        counts = [0 if side is None else len(side) for side in sides]
        layers = np.repeat(np.arange(len(sides)), counts)
        self._layers = torch.from_numpy(layers)
        self._groups = torch.from_numpy(
            np.concatenate([side for side in sides if side is not None])
        )
        self._absent = torch.tensor([float(side is None) for side in sides])

    def to(self, device: torch.device) -> None:
        self._layers, self._groups = self._layers.to(device), self._groups.to(device)
        self._absent = self._absent.to(device)

    def sums(self, values: Tensor, *, absent: float) -> Tensor:
        """Return (layers,) sums of (groups,) values; `absent` where a layer has no such side."""
        start = self._absent.to(values.dtype) * absent
        return start.index_add(0, self._layers, values[self._groups])


class BlockSparsity:
    """Costs and regularisers of a network's blocks.

    Not a module: it owns nothing, and looks the scales up in the network that is given.

    Args:
        groups: Of the network.
        block: The block of each layer's module.
        resource: What a budget is of.
        threshold: Strength above which a channel is alive.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        block: Mapping[str, str],
        *,
        resource: Resource,
        threshold: float,
    ) -> None:
        self.groups, self.resource, self.threshold = groups, resource, threshold
        costly = [layer for layer in groups.layers if self.cost(layer, 1, 1)]
        self.blocks = tuple(dict.fromkeys(block[layer.name] for layer in costly))
        self.layers = tuple((self.blocks.index(block[layer.name]), layer) for layer in costly)
        self._reads = _Incidence([layer.reads for layer in costly])
        self._writes = _Incidence([layer.writes for layer in costly])
        # The cost of a layer is bilinear: of a pair of channels, and of an output.
        outputs = [self.cost(layer, 0, 1) for layer in costly]
        self._per_output = torch.tensor(outputs, dtype=torch.float64)
        pairs = [self.cost(layer, 1, 1) for layer in costly]
        self._per_pair = torch.tensor(pairs, dtype=torch.float64) - self._per_output
        self._block = torch.tensor([index for index, _ in self.layers])
        self._held = torch.from_numpy(groups.held)
        self._owners = torch.cat([torch.from_numpy(found) for found in groups.scales.values()])
        self._members = torch.bincount(self._owners, minlength=groups.count).clamp(min=1)

    def cost(self, layer: Layer, inputs: int, outputs: int) -> int:
        """Return the cost of a layer of this many channels."""
        if self.resource == "flops":
            return layer.flops * inputs * outputs
        return (layer.parameters * inputs + layer.parameters_per_output) * outputs

    def _to(self, device: torch.device) -> None:
        if self._held.device == device:
            return
        self._reads.to(device)
        self._writes.to(device)
        for name in ("_per_output", "_per_pair", "_block", "_held", "_owners", "_members"):
            setattr(self, name, getattr(self, name).to(device))

    def strengths(self, network: nn.Module) -> Tensor:
        """Return the (groups,) root mean square of the scales of each group."""
        modules = dict(network.named_modules())
        scales = torch.cat([modules[name].weight for name in self.groups.scales])
        self._to(scales.device)
        squares = scales.new_zeros(self.groups.count).index_add(0, self._owners, scales.square())
        return (squares / self._members + _SQUARE).sqrt()

    def alive(self, strengths: Tensor) -> Tensor:
        """Return the (groups,) mask of what counts as kept."""
        return self._held | (strengths.detach() > self.threshold)

    def _by_block(self, of_layers: Tensor) -> Tensor:
        return of_layers.new_zeros(len(self.blocks)).index_add(0, self._block, of_layers)

    def costs(self, alive: Tensor) -> Tensor:
        """Return the (blocks,) float64 cost of the channels that are alive."""
        inputs = self._reads.sums(alive.double(), absent=1)
        outputs = self._writes.sums(alive.double(), absent=0)
        return self._by_block((self._per_pair * inputs + self._per_output) * outputs)

    def penalties(self, strengths: Tensor) -> Tensor:
        """Return the (blocks,) float64 regularisers, differentiable in the strengths."""
        alive = self.alive(strengths).double()
        pressed = (strengths * ~self._held).double()
        inputs, outputs = self._reads.sums(alive, absent=1), self._writes.sums(alive, absent=0)
        pressure = self._writes.sums(pressed, absent=0) * inputs
        pressure = pressure + self._reads.sums(pressed, absent=0) * outputs
        return self._by_block(self._per_pair * pressure)
