"""Cutting channels out of a network: the layers that read or write them become smaller.

In: convolutions, depthwise convolutions, batch normalisations and linear layers, changed in place;
their weights are those of the kept channels. Left out: which channels to keep (budget.py) and
folding the constant of a cut channel, `relu(shift)`, into its readers: fine-tuning follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.compress.channel_groups import ChannelGroups
from pipeline.compress.channel_rules import Mask

Structure = Mapping[str, tuple[int, int]]
"""By module, its input and output channels after the cut; both are equal where it has one width."""


_LARGEST = 1 << 20  # a record that asks for more is damaged


@dataclass(frozen=True, kw_only=True)
class KeptChannels:
    """What stays of one module.

    Attributes:
        reads: Ascending input channels.
        writes: Ascending output channels; the same as `reads` where a module has one width.
    """

    reads: npt.NDArray[np.int64]
    writes: npt.NDArray[np.int64]


def kept_channels(groups: ChannelGroups, keep: Mask) -> dict[str, KeptChannels]:
    """Return what stays of each layer that loses channels.

    Args:
        groups: Of the network.
        keep: (groups.count,) which groups stay; held groups must.
    """
    if not keep[groups.held].all():
        raise ValueError("a group that is held cannot be cut")
    found = {}
    for layer in groups.layers:
        writes = np.flatnonzero(keep[layer.writes])
        reads = writes if layer.reads is None else np.flatnonzero(keep[layer.reads])
        sources = layer.writes if layer.reads is None else layer.reads
        if len(writes) < len(layer.writes) or len(reads) < len(sources):
            found[layer.name] = KeptChannels(reads=reads, writes=writes)
    return found


def first_channels(structure: Structure) -> dict[str, KeptChannels]:
    """Return the kept channels that give a fresh network the widths of a cut one.

    Raises:
        ValueError: If a width is none.
    """
    for name, widths in structure.items():
        if any(not 1 <= width <= _LARGEST for width in widths):
            raise ValueError(f"module {name!r} cannot have {widths} channels")
    return {
        name: KeptChannels(reads=np.arange(reads), writes=np.arange(writes))
        for name, (reads, writes) in structure.items()
    }


def cut_channels(network: nn.Module, kept: Mapping[str, KeptChannels]) -> None:
    """Keep only some channels of some modules, in place.

    Raises:
        ValueError: If there is no such module, or it has not these channels.
    """
    modules = dict(network.named_modules())
    for name, channels in kept.items():
        module = modules.get(name)
        reads, writes = torch.from_numpy(channels.reads), torch.from_numpy(channels.writes)
        if not len(reads) or not len(writes):
            raise ValueError(f"module {name!r} must keep a channel")
        try:
            if isinstance(module, _BatchNorm):
                _cut_normalisation(module, writes)
            elif isinstance(module, nn.Conv2d):
                _cut_convolution(module, reads, writes)
            elif isinstance(module, nn.Linear):
                _keep(module, "weight", writes, reads)
                _keep(module, "bias", writes)
                module.in_features, module.out_features = len(reads), len(writes)
            else:
                raise ValueError(  # noqa: TRY004
                    f"module {name!r} must be a convolution, a batch normalisation or a linear "
                    f"layer, got {type(module).__name__}"
                )
        except IndexError as error:
            raise ValueError(f"module {name!r} has not so many channels: {error}") from error


def _cut_normalisation(module: _BatchNorm, kept: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _keep(module, name, kept)
    module.num_features = len(kept)


def _cut_convolution(module: nn.Conv2d, reads: Tensor, writes: Tensor) -> None:
    if module.groups == 1:
        _keep(module, "weight", writes, reads)
    elif module.groups == module.in_channels == module.out_channels:
        _keep(module, "weight", writes)
        module.groups = len(writes)
    else:
        raise ValueError("a grouped convolution that is not depthwise cannot be cut")
    _keep(module, "bias", writes)
    module.in_channels, module.out_channels = len(reads), len(writes)


def _keep(module: nn.Module, name: str, first: Tensor, second: Tensor | None = None) -> None:
    """Keep rows, and columns where given, of a parameter or buffer that may be None."""
    value = getattr(module, name)
    if value is None:
        return
    cut = value.detach()[first.to(value.device)]
    if second is not None:
        cut = cut[:, second.to(value.device)]
    if cut.ndim == 4:
        cut = cut.contiguous(memory_format=torch.channels_last)
    if isinstance(value, nn.Parameter):
        cut = nn.Parameter(cut, requires_grad=value.requires_grad)
    setattr(module, name, cut)
