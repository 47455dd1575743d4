"""What an operation between layers does to channels.

In: rules for activations, pooling, flattening, means, elementwise sums and products, and
concatenation, by the name of the operation; each tells which channel every output channel is, and
whether it is zero where that channel's scales are. Left out: layers with weights
(channel_groups.py), and any other operation: without a rule, channels are held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Channels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# One output for each input channel, and zero where the input is: cutting it changes nothing.
_ZERO_AT_ZERO = (
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish"),
    *("hardswish", "hardtanh", "tanh", "identity", "dropout", "dropout1d", "dropout2d"),
    *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
    *("avgpool2d", "maxpool2d", "adaptiveavgpool2d", "adaptivemaxpool2d", "leakyrelu"),
    *("contiguous", "clone", "float", "stochasticdepth", "stochastic_depth"),
)
# One output for each input channel, but not zero where the input is.
_SAME_CHANNELS = ("sigmoid", "hardsigmoid", "softplus", "exp")
_FLATTENINGS = ("flatten", "view", "reshape")
_MEANS = ("mean",)
_ADDITIONS = ("add", "iadd", "sub", "isub")
_PRODUCTS = ("mul", "imul")
_CONCATENATIONS = ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class ChannelTensor:
    """A tensor of the trace.

    Attributes:
        tensor: Its values on a blank image.
        channels: (C,) id of each place of its second dimension.
        governed: (C,) whether the place is zero where the scales of its channel's group are.
    """

    tensor: Tensor
    channels: Channels
    governed: Mask


_Tie = Callable[[Channels, Channels], None]
_Rule = Callable[[Any, Any, Tensor, _Tie], ChannelTensor | None]


def _elementwise(args: Any, kwargs: Any, output: Tensor, tie: _Tie) -> ChannelTensor | None:
    value = args[0] if args else None
    if not isinstance(value, ChannelTensor) or output.shape[:2] != value.tensor.shape[:2]:
        return None
    return ChannelTensor(output, value.channels, value.governed)


def _not_zero_at_zero(args: Any, kwargs: Any, output: Tensor, tie: _Tie) -> ChannelTensor | None:
    value = _elementwise(args, kwargs, output, tie)
    return value and ChannelTensor(output, value.channels, np.zeros_like(value.governed))


def _mean(args: Any, kwargs: Any, output: Tensor, tie: _Tie) -> ChannelTensor | None:
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dims = [dims] if isinstance(dims, int) else dims
    value = args[0] if args else None
    if not isinstance(value, ChannelTensor) or not isinstance(dims, tuple | list):
        return None
    if any(dim % value.tensor.ndim < 2 for dim in dims):
        return None
    return ChannelTensor(output, value.channels, value.governed)


def _flatten(args: Any, kwargs: Any, output: Tensor, tie: _Tie) -> ChannelTensor | None:
    value = args[0] if args else None
    if not isinstance(value, ChannelTensor) or output.ndim != 2 or value.tensor.ndim < 2:
        return None
    if output.shape[0] != value.tensor.shape[0]:
        return None
    each = output.shape[1] // max(1, value.tensor.shape[1])
    return ChannelTensor(output, value.channels.repeat(each), value.governed.repeat(each))


def _pair(args: Any) -> tuple[ChannelTensor, ChannelTensor] | None:
    if len(args) < 2 or not all(isinstance(value, ChannelTensor) for value in args[:2]):
        return None
    first, second = args[:2]
    if len(first.channels) != len(second.channels):
        return None
    return first, second


def _add(args: Any, kwargs: Any, output: Tensor, tie: _Tie) -> ChannelTensor | None:
    pair = _pair(args)
    if pair is None:
        return None
    tie(pair[0].channels, pair[1].channels)
    return ChannelTensor(output, pair[0].channels, pair[0].governed & pair[1].governed)


def _multiply(args: Any, kwargs: Any, output: Tensor, tie: _Tie) -> ChannelTensor | None:
    if len(args) > 1 and isinstance(args[1], int | float):
        return _elementwise(args, kwargs, output, tie)
    pair = _pair(args)
    if pair is None:
        return None
    tie(pair[0].channels, pair[1].channels)
    return ChannelTensor(output, pair[0].channels, pair[0].governed | pair[1].governed)


def _concatenate(args: Any, kwargs: Any, output: Tensor, tie: _Tie) -> ChannelTensor | None:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    parts = args[0] if args else ()
    if dim != 1 or not all(isinstance(part, ChannelTensor) for part in parts):
        return None
    return ChannelTensor(
        output,
        np.concatenate([part.channels for part in parts]),
        np.concatenate([part.governed for part in parts]),
    )


_RULES: dict[str, _Rule] = (
    dict.fromkeys(_ZERO_AT_ZERO, _elementwise)
    | dict.fromkeys(_SAME_CHANNELS, _not_zero_at_zero)
    | dict.fromkeys(_FLATTENINGS, _flatten)
    | dict.fromkeys(_MEANS, _mean)
    | dict.fromkeys(_ADDITIONS, _add)
    | dict.fromkeys(_PRODUCTS, _multiply)
    | dict.fromkeys(_CONCATENATIONS, _concatenate)
)


def apply_rule(
    name: str, args: Any, kwargs: Any, output: Tensor, tie: Callable[[Channels, Channels], None]
) -> ChannelTensor | None:
    """Return the channels of an operation's output, or None where no rule tells them.

    Args:
        name: Of the operation: of its module's class, function or method, in lower case.
        args: Its positional arguments, tensors as `ChannelTensor`.
        kwargs: Its other arguments.
        output: What it returned.
        tie: Makes channels of two tensors one group each.
    """
    rule = _RULES.get(name)
    found = rule(args, kwargs, output, tie) if rule is not None else None
    places = output.shape[1] if output.ndim > 1 else 0
    return found if found is not None and len(found.channels) == places else None
