"""Traces of networks, and what is known of the operations in them.

In: a torch.fx trace with a clear error, one name for an operation whether it is written as a
module, a function or a method, and the tables of names. Left out: what an operation does to
channels (channel_groups.py). An operation of our own or of another library can be added here.
"""

from __future__ import annotations

from torch import fx, nn

from storage_schemas.errors import ConfigError

# One output for each input channel, and zero where the input is: cutting it changes nothing.
ZERO_AT_ZERO = (
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish"),
    *("hardswish", "hardtanh", "tanh", "identity", "dropout", "dropout1d", "dropout2d"),
    *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
    *("avgpool2d", "maxpool2d", "adaptiveavgpool2d", "adaptivemaxpool2d", "leakyrelu"),
    *("contiguous", "clone", "float", "stochasticdepth", "stochastic_depth"),
)
# One output for each input channel, but not zero where the input is.
SAME_CHANNELS = ("sigmoid", "hardsigmoid", "softplus", "exp")
FLATTENINGS = ("flatten", "view", "reshape")
MEANS = ("mean",)
ADDITIONS = ("add", "iadd", "sub", "isub")
PRODUCTS = ("mul", "imul")
CONCATENATIONS = ("cat", "concat", "concatenate")


def operation(node: fx.Node, module: nn.Module | None) -> str:
    """Return the name of what a node does, the same for a module, a function and a method."""
    if module is not None:
        return type(module).__name__.lower()
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).rstrip("_").removeprefix("_").lower()


def trace(network: nn.Module) -> fx.GraphModule:
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
