"""Builder strings, backbones, and the probe."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from pipeline.config import InputConfig
from pipeline.models.builders import build_backbone, build_classifier, probe
from storage_schemas.errors import ConfigError

GRAY = InputConfig(size=32, channels=1)


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the user, `own_networks`."""
    module = types.ModuleType("own_networks")

    def convolutional(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, num_classes, 1), nn.AdaptiveAvgPool2d(1))

    def flat(num_classes: int, hidden: int = 5) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(1024, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    module.convolutional, module.flat = convolutional, flat
    module.number = lambda num_classes: num_classes
    monkeypatch.setitem(sys.modules, "own_networks", module)
    return module


@pytest.mark.parametrize(
    ("builder", "args", "features"),
    [
        ("torchvision:resnet18", {}, 512),
        ("torchvision:mobilenet_v3_small", {}, 1024),
        ("torchvision:squeezenet1_0", {}, None),
        ("pipeline.models.backbones:glyph_resnet", {"width": 16}, 512),
        ("python:pipeline.models.backbones:glyph_resnet", {"width": 8, "dropout": 0.0}, 256),
    ],
)
def test_classifiers_and_backbones(builder: str, args: dict, features: int | None) -> None:
    """A backbone is the classifier without its last linear layer."""
    classifier = build_classifier(builder, 11, args)
    channels = 1 if "glyph" in builder else 3
    size = 64 if "torchvision" in builder else 32
    taken = InputConfig(size=size, channels=channels)
    probe(classifier, taken, 11, owner="student")
    if features is None:
        with pytest.raises(ConfigError, match=r"must end in a torch\.nn\.Linear"):
            build_backbone(builder, args)
        return
    backbone, dim = build_backbone(builder, args)
    assert dim == features
    probe(backbone, taken, features, owner="student")


def test_timm_networks() -> None:
    """A timm name builds, and its backbone is cut the same way."""
    pytest.importorskip("timm")
    backbone, dim = build_backbone("timm:resnet10t", {"in_chans": 1})
    probe(backbone, GRAY, dim, owner="student")


def test_own_functions(own_module: types.ModuleType) -> None:
    """A function of the user builds; one without a last linear layer has no backbone."""
    backbone, dim = build_backbone("own_networks:flat", {"hidden": 6})
    assert dim == 6
    probe(backbone, GRAY, 6, owner="student")
    with pytest.raises(ConfigError, match=r"must end in a torch\.nn\.Linear"):
        build_backbone("own_networks:convolutional", {})


@pytest.mark.parametrize(
    ("builder", "args", "message"),
    [
        ("torchvision:resnt18", {}, "did you mean .*resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "there is no network"),
        ("timm:resnt18", {}, "did you mean"),
        ("resnet18", {}, "must be torchvision:NAME"),
        ("torchvision:", {}, "must be torchvision:NAME"),
        ("python:resnet18", {}, "must be python:module:function"),
        ("no_such_module:f", {}, "cannot be imported"),
        ("own_networks:absent", {}, "has no function 'absent'"),
        ("own_networks:number", {}, r"must return a torch\.nn\.Module, got int"),
        ("own_networks:flat", {"widht": 3}, "does not build with"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "nothing is downloaded"),
        ("torchvision:resnet18", {"num_classes": 3}, "the class list sets the outputs"),
    ],
)
def test_errors_say_what_to_write(
    own_module: types.ModuleType, builder: str, args: dict, message: str
) -> None:
    """Every wrong builder is an error that names the remedy."""
    with pytest.raises(ConfigError, match=message):
        build_classifier(builder, 5, args)


def test_probe_finds_wrong_inputs_and_outputs() -> None:
    """Wrong channels and wrong outputs are found before training; the mode is restored."""
    network = build_classifier("torchvision:resnet18", 5, {}).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match=r"does not take images of shape \(2, 1, 32, 32\)"):
        probe(network, GRAY, 5, owner="student")
    with pytest.raises(ConfigError, match=r"must return shape \(2, 6\), got \(2, 5\)"):
        probe(network, InputConfig(size=32), 6, owner="teachers.birds")
    assert network.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_networks_follow_the_global_seed() -> None:
    """The same seed gives the same weights."""
    networks = []
    for _ in range(2):
        torch.manual_seed(4)
        networks.append(build_classifier("pipeline.models.backbones:glyph_resnet", 3, {"width": 8}))
    for mine, theirs in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(mine, theirs)
