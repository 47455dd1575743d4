"""Channels that are zero can be cut and nothing changes; what is cut can be built again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.compress.channel_groups import ChannelGroups, channel_groups
from pipeline.compress.cost import cost
from pipeline.compress.surgery import cut_channels, first_channels, kept_channels
from pipeline.config import StudentConfig
from pipeline.models.student import Student, build_student
from storage_schemas.errors import ConfigError
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=("a/0", "a/1", "b/0", "b/1"))
NAMES = ("resnet18", "slim_resnet50", "mobilenet_v2", "glyph_resnet")
Build = Callable[[str, int], tuple[Student, StudentConfig, ChannelGroups]]


def random_mask(groups: ChannelGroups, seed: int, share: float) -> np.ndarray:
    """Groups to keep: those that are held, one of each side of a layer, and a share of the rest."""
    rng = np.random.default_rng(seed)
    keep = groups.held | (rng.random(groups.count) < share)
    for layer in groups.layers:
        keep[layer.writes[0]] = True
        if layer.reads is not None:
            keep[layer.reads[0]] = True
    return keep


def zero(student: Student, groups: ChannelGroups, keep: np.ndarray) -> None:
    """Set scale and shift of each channel that is not kept to 0."""
    modules = dict(student.named_modules())
    with torch.no_grad():
        for name, owners in groups.scales.items():
            gone = torch.from_numpy(~keep[owners])
            modules[name].weight[gone] = 0
            modules[name].bias[gone] = 0


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**16), share=st.floats(0.3, 0.95))
def test_cutting_zero_channels_changes_no_bit(
    whole_student: Build, name: str, seed: int, share: float
) -> None:
    """In whole numbers, where no sum is rounded, the outputs are equal, and the network smaller.

    Rounded sums would differ in the last place: fewer terms are added in another order.
    """
    student, config, groups = whole_student(name, seed)
    keep = random_mask(groups, seed, share)
    zero(student, groups, keep)
    generator = torch.Generator().manual_seed(seed)
    shape = (2, config.input.channels, 32, 32)
    images = torch.randint(-8, 9, shape, generator=generator).double()
    cut = copy.deepcopy(student)
    cut.cut(kept_channels(groups, keep))
    with torch.no_grad():
        before, after = student(images), cut(images)
    assert torch.equal(before.logits, after.logits)
    assert before.logits.abs().max() < 2**52  # all sums were whole numbers
    assert before.features.any()
    widths = [sum(p.numel() for p in network.parameters()) for network in (student, cut)]
    assert keep.all() or widths[1] < widths[0]


@pytest.mark.parametrize("name", ["mobilenet_v2", "glyph_resnet"])
def test_a_cut_student_is_built_again(whole_student: Build, name: str) -> None:
    """Settings and structure give a network that takes the weights and says the same."""
    cut, config, groups = whole_student(name, 0)
    cut.float().cut(kept_channels(groups, random_mask(groups, 3, 0.4)))
    structure = json.loads(json.dumps(cut.structure))
    again = build_student(config, SPACE, structure).eval()
    for module, other in zip(again.modules(), cut.modules(), strict=True):
        if isinstance(other, nn.BatchNorm2d):
            module.eps = other.eps
    again.load_state_dict(cut.state_dict())
    images = torch.randn(2, config.input.channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images).logits, cut(images).logits)
    assert again.feature_dim == cut.feature_dim == cut(images).features.shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_costs_by_channels_are_those_of_the_network(whole_student: Build, name: str) -> None:
    """Summed over the groups that are kept, parameters and operations are what torch counts."""
    student, config, groups = whole_student(name, 0)
    keep = random_mask(groups, 1, 0.5)
    student.float().cut(kept_channels(groups, keep))
    found = cost(student, config.input)
    flops = parameters = 0
    for layer in groups.layers:
        inputs = 1 if layer.reads is None else int(keep[layer.reads].sum())
        outputs = int(keep[layer.writes].sum())
        flops += layer.flops * inputs * outputs
        parameters += (layer.parameters * inputs + layer.parameters_per_output) * outputs
    assert (found.flops, found.parameters) == (flops, parameters)


class Squeezed(nn.Module):
    """A gate of its own channels, a concatenation, and a convolution without normalisation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.gate = nn.Conv2d(6, 6, 1)
        self.bare = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(10, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = torch.cat([x, self.bare(x)], 1)
        return self.fc(x.mean((2, 3)))


def test_what_is_not_governed_by_a_scale_is_held() -> None:
    """A convolution that is read without normalisation keeps its channels; gated ones can go."""
    network = Squeezed(3)
    reader, network.fc = network.fc, nn.Identity()
    groups = channel_groups(network, reader, torch.zeros(1, 1, 8, 8), names=("b", "h"))
    by_name = {layer.name: layer for layer in groups.layers}
    assert groups.held[by_name["b.bare"].writes].all()
    assert not groups.held[by_name["b.first"].writes].any()
    assert np.array_equal(by_name["b.first"].writes, by_name["b.gate"].writes)
    keep = np.ones(groups.count, bool)
    keep[by_name["b.bare"].writes[0]] = False
    with pytest.raises(ValueError, match="held"):
        kept_channels(groups, keep)


class Branching(nn.Module):
    """A forward pass that depends on values."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    """The message says what the network must not do."""
    with pytest.raises(ConfigError, match=r"Branching cannot be traced .* must not branch"):
        channel_groups(Branching(2), nn.Linear(2, 2), torch.zeros(1, 1, 8, 8), names=("b", "h"))


class Twice(nn.Module):
    """One convolution that runs twice, by a view whose size is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x)).view(x.shape[0], -1)


def test_a_layer_that_runs_twice_is_refused() -> None:
    """The error names it."""
    with pytest.raises(ConfigError, match="'conv' runs twice"):
        channel_groups(Twice(), nn.Linear(64, 2), torch.zeros(1, 1, 8, 8), names=("b", "h"))


@pytest.mark.parametrize(
    ("structure", "match"),
    [
        ({"backbone.stem.0": (1, 99)}, "not so many channels"),
        ({"backbone.stem.0": (1, 0)}, "cannot have"),
        ({"backbone.stem.0": (1, 10**13)}, "cannot have"),
        ({"backbone.nowhere": (1, 1)}, "must be a convolution"),
    ],
)
def test_a_damaged_structure_is_refused(
    whole_student: Build, structure: dict[str, tuple[int, int]], match: str
) -> None:
    """Widths that the network cannot have are an error that names the module."""
    student, _, _ = whole_student("glyph_resnet", 0)
    with pytest.raises(ValueError, match=match):
        cut_channels(student, first_channels(structure))
