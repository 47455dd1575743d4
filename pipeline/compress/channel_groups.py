"""Which channels of a network live and die together, and what each layer costs by them.

A channel is followed from the layer that makes it to those that read it. Channels that are added
or multiplied elementwise are one group, a depthwise convolution hands its channels on, and a
flattened grid repeats each of them. All of this is read from a torch.fx trace that is run once on
a blank image, so no network is named here.

In: any network of convolutions, batch normalisation, pooling, activations, residual additions,
concatenations and linear layers. A channel can be cut if it is exactly zero for every reader once
the batch normalisations of its group have scale and shift 0; all others are held. Left out:
channels that pass through an operation without a rule in channel_rules.py; they are held too,
which is safe and cuts less. Grouped convolutions that are not depthwise hold their channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.compress.channel_rules import Channels, ChannelTensor, Mask, apply_rule
from storage_schemas.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer that costs something, and the groups of its channels.

    Attributes:
        name: Of the module.
        reads: (in,) group of each input channel; None where cost depends on the output alone.
        writes: (out,) group of each output channel.
        flops: Operations of one (input, output) pair of channels, or of one output.
        parameters: Learned values of the same.
        parameters_per_output: Learned values of one output whatever is read: its bias.
    """

    name: str
    reads: Channels | None
    writes: Channels
    flops: int
    parameters: int
    parameters_per_output: int = 0


@dataclass(frozen=True, kw_only=True)
class ChannelGroups:
    """The groups of a network.

    Attributes:
        count: Number of groups.
        held: (count,) which can not be cut.
        layers: Convolutions, linear layers and batch normalisations, in the order they run.
        scales: By batch normalisation, the group of each of its scales.
    """

    count: int
    held: Mask
    layers: tuple[Layer, ...]
    scales: Mapping[str, Channels]


@dataclass(frozen=True)
class _Made:
    name: str
    reads: Channels | None
    writes: Channels
    flops: int
    parameters: int
    bias: int


class _Walk(fx.Interpreter):
    """Runs the trace on a blank image and follows the channels of every tensor."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.parent: list[int] = []
        self.held: set[int] = set()
        self.made: list[_Made] = []
        self.scales: dict[str, Channels] = {}

    def fresh(self, count: int) -> Channels:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def tie(self, first: Channels, second: Channels) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self.parent[self.root(other)] = self.root(one)

    def hold(self, *values: Any) -> None:
        def visit(value: Any) -> Any:
            if isinstance(value, ChannelTensor):
                self.held.update(value.channels.tolist())
            return value

        fx.node.map_aggregate(values, visit)

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "get_attr"):
            found = super().run_node(n)
            return self._unknown(found, ()) if isinstance(found, Tensor) else found
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "output":
            return args[0]
        plain_args, plain_kwargs = fx.node.map_aggregate(
            (args, dict(kwargs)),
            lambda value: value.tensor if isinstance(value, ChannelTensor) else value,
        )
        # Run first: an in-place operation changes its input, whose channels stay what they are.
        output = getattr(self, n.op)(n.target, plain_args, plain_kwargs)
        if not isinstance(output, Tensor):
            # Shapes are tuples too, and hold nothing.
            if isinstance(output, tuple | list) and any(isinstance(p, Tensor) for p in output):
                self.hold(args, kwargs)
                return type(output)(self._unknown(part, ()) for part in output)
            return output
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm) and isinstance(
            args[0], ChannelTensor
        ):
            return self._layer(str(n.target), module, args[0], output)
        found = apply_rule(_operation(n, module), args, kwargs, output, self.tie)
        return self._unknown(output, (args, kwargs)) if found is None else found

    def _unknown(self, output: Any, inputs: Any) -> Any:
        self.hold(inputs)
        if not isinstance(output, Tensor):
            return output
        channels = self.fresh(output.shape[1] if output.ndim > 1 else 0)
        self.held.update(channels.tolist())
        return ChannelTensor(output, channels, np.zeros(len(channels), np.bool_))

    def _layer(
        self, name: str, module: nn.Module, value: ChannelTensor, output: Tensor
    ) -> ChannelTensor:
        if any(made.name == name for made in self.made):
            raise ConfigError(
                "student.builder", [f"module {name!r} runs twice in one pass; it must run once"]
            )
        if isinstance(module, _BatchNorm):
            if not module.affine:
                return ChannelTensor(output, value.channels, np.zeros_like(value.governed))
            self.scales[name] = value.channels
            self.made.append(_Made(name, None, value.channels, 0, 2, 0))
            return ChannelTensor(output, value.channels, np.ones_like(value.governed))
        # What is not zero when its scales are must stay where it is read.
        self.held.update(value.channels[~value.governed].tolist())
        bias = int(getattr(module, "bias", None) is not None)
        if isinstance(module, nn.Linear):
            if output.ndim != 2:
                found: ChannelTensor = self._unknown(output, value)
                return found
            made = self.fresh(module.out_features)
            self.made.append(_Made(name, value.channels, made, 2, 1, bias))
            return ChannelTensor(output, made, np.zeros(len(made), np.bool_))
        assert isinstance(module, nn.Conv2d)
        kernel, places = module.weight[0, 0].numel(), output[0, 0].numel()
        if module.groups == 1:
            made = self.fresh(module.out_channels)
            self.made.append(_Made(name, value.channels, made, 2 * kernel * places, kernel, bias))
        elif module.groups == module.in_channels == module.out_channels:
            made = value.channels
            self.made.append(_Made(name, None, made, 2 * kernel * places, kernel + bias, 0))
        else:
            made = self.fresh(module.out_channels)
            self.hold(value)
            self.held.update(made.tolist())
            each = module.weight.shape[1] * kernel
            self.made.append(_Made(name, None, made, 2 * each * places, each + bias, 0))
        return ChannelTensor(output, made, np.zeros(len(made), np.bool_))


def _operation(node: fx.Node, module: nn.Module | None) -> str:
    """Return the name of what a node does, the same for a module, a function and a method."""
    if module is not None:
        return type(module).__name__.lower()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).rstrip("_").removeprefix("_").lower()


def _trace(network: nn.Module) -> fx.GraphModule:
    """Return the graph of a network; its modules are those of the network.

    Raises:
        ConfigError: If its forward pass cannot be written as a graph.
    """
    try:
        return fx.symbolic_trace(network)
    except Exception as error:  # whatever a foreign network raises when it sees a proxy
        raise ConfigError(
            "student.builder",
            [
                f"{type(network).__name__} cannot be traced by torch.fx, so its channels cannot be "
                f"cut: {error}. Its forward pass must not branch on values or shapes of tensors; "
                "choose another network, or another objective"
            ],
        ) from error


def channel_groups(
    backbone: nn.Module, reader: nn.Linear, image: Tensor, *, names: tuple[str, str]
) -> ChannelGroups:
    """Follow the channels of a backbone, and of the linear layer that reads its features.

    Args:
        backbone: (1, channels, S, S) images to (1, D) features; its mode is restored.
        reader: Reads the features.
        image: (1, channels, S, S) on the device of the backbone.
        names: Of backbone and reader in the network that holds them both.

    Raises:
        ConfigError: If the backbone cannot be traced, or a layer runs twice in a pass.
    """
    was_training = backbone.training
    backbone.eval()
    walk = _Walk(_trace(backbone))
    try:
        with torch.no_grad():
            features = walk.run(image)
            if not isinstance(features, ChannelTensor) or features.tensor.ndim != 2:
                raise ConfigError("student.builder", ["must return (B, D) features"])
            output = torch.empty(1, reader.out_features)
            logits = walk._layer("", reader, features, output)
    finally:
        backbone.train(was_training)
    walk.hold(logits)
    roots = np.array([walk.root(channel) for channel in range(len(walk.parent))], np.int64)
    kept, group = np.unique(roots, return_inverse=True)
    held = np.zeros(len(kept), np.bool_)
    held[group[sorted(walk.held)]] = True
    prefix, last = names
    layers = tuple(
        Layer(
            name=f"{prefix}.{made.name}" if made.name else last,
            reads=None if made.reads is None else group[made.reads],
            writes=group[made.writes],
            flops=made.flops,
            parameters=made.parameters,
            parameters_per_output=made.bias,
        )
        for made in walk.made
    )
    scales = {f"{prefix}.{name}": group[channels] for name, channels in walk.scales.items()}
    return ChannelGroups(count=len(kept), held=held, layers=layers, scales=scales)
