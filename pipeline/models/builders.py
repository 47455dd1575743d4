"""From a builder string to a network: torchvision:NAME, timm:NAME, python:module:function.

In: classifiers for teachers and feature backbones for students, all with random weights. Left
out: weights (weights.py); a builder never downloads any.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import InputConfig
from storage_schemas.errors import ConfigError

Builder = Callable[[str, int, Mapping[str, Any]], nn.Module]

# A count of outputs that no inner layer has by chance, to recognise the classification layer.
_PROBE_CLASSES = 7


def _check_name(builder: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"builder {builder!r}", [f"there is no network {name!r}{hint}"])


def _torchvision(name: str, num_classes: int, args: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    _check_name(f"torchvision:{name}", name, models.list_models(module=models))
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **args)
    return network


def _timm(name: str, num_classes: int, args: Mapping[str, Any]) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(
            f"builder 'timm:{name}'", ["timm is not installed; install `concentrate[timm]`"]
        )
    import timm

    _check_name(f"timm:{name}", name.partition(".")[0], timm.list_models())
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **args)
    return network


def _python(name: str, num_classes: int, args: Mapping[str, Any]) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    where = f"builder {name!r}"
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            where, [f"module {module_name!r} cannot be imported ({error}); is it on PYTHONPATH?"]
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(where, [f"{module_name!r} has no function {function_name!r}"])
    network = function(num_classes=num_classes, **args)
    if not isinstance(network, nn.Module):
        raise ConfigError(where, [f"must return a torch.nn.Module, got {type(network).__name__}"])
    return network


BUILDERS: dict[str, Builder] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "python": _python,
}


def build_classifier(builder: str, num_classes: int, args: Mapping[str, Any]) -> nn.Module:
    """Build a classifier with random weights from torch's global generator.

    Weights are in channels-last memory format, which convolutions run faster in.

    Args:
        builder: `torchvision:NAME`, `timm:NAME`, `python:module:function` or `module:function`.
        num_classes: Outputs.
        args: Further keyword arguments of the network's constructor.

    Raises:
        ConfigError: If there is no such network or it does not take the arguments.
    """
    where = f"builder {builder!r}"
    prefix, separator, name = builder.partition(":")
    if not separator or not name:
        raise ConfigError(where, ["must be torchvision:NAME, timm:NAME or python:module:function"])
    if prefix not in BUILDERS:
        prefix, name = "python", builder
    if prefix == "python" and name.count(":") != 1:
        raise ConfigError(where, [f"must be python:module:function, got {builder!r}"])
    fixed = sorted({"num_classes", "weights", "pretrained"} & set(args))
    if fixed:
        raise ConfigError(
            where,
            [
                f"builder_args must not hold {fixed}: the class list sets the outputs, and weights "
                "come from a file named by `weights`; nothing is downloaded"
            ],
        )
    try:
        network = BUILDERS[prefix](name, num_classes, args)
    except (TypeError, ValueError) as error:
        raise ConfigError(where, [f"does not build with {dict(args)}: {error}"]) from error
    return network.to(memory_format=torch.channels_last)


def build_backbone(builder: str, args: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Build a classifier and cut its last linear layer off.

    Returns:
        The network that returns (B, D) features, and D.

    Raises:
        ConfigError: As `build_classifier`, or if the network does not end in a linear layer.
    """
    network = build_classifier(builder, _PROBE_CLASSES, args)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    last = network.get_submodule(linear[-1]) if linear else None
    if not isinstance(last, nn.Linear) or last.out_features != _PROBE_CLASSES:
        raise ConfigError(
            f"builder {builder!r}",
            [
                "must end in a torch.nn.Linear with num_classes outputs, to be replaced by the "
                f"student's head, got {type(last).__name__} as the last linear layer; wrap the "
                "network in a python:module:function"
            ],
        )
    if linear[-1] == "":
        return nn.Identity(), last.in_features
    network.set_submodule(linear[-1], nn.Identity())
    return network, last.in_features


def probe(network: nn.Module, config: InputConfig, outputs: int, *, owner: str) -> None:
    """Run two blank images through a network and check the shape of the result.

    Args:
        network: Run in eval mode on its own device; its mode and buffers are left as they are.
        config: The size and channels of its input.
        outputs: Expected columns: features of a backbone, classes of a classifier.
        owner: Starts the error message, e.g. `student` or `teachers.birds`.

    Raises:
        ConfigError: If it does not take such images, or returns something else.
    """
    shape = (2, config.channels, config.size, config.size)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            output = network(torch.zeros(shape, device=device))
    except Exception as error:  # whatever a foreign network raises
        raise ConfigError(
            f"{owner}.builder",
            [f"does not take images of shape {shape} (set by {owner}.input): {error}"],
        ) from error
    finally:
        network.train(was_training)
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if got != (2, outputs):
        raise ConfigError(f"{owner}.builder", [f"must return shape {(2, outputs)}, got {got}"])
