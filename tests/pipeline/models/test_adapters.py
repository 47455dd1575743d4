"""Adapters behind a student's blocks: they vanish exactly, and they cut the network into parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipeline.config import StudentConfig
from pipeline.models.adapters import AdaptedStudent, check_readers, fold_into
from pipeline.models.student import build_student
from storage_schemas.errors import ConfigError
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=("a/0", "a/1", "b/0", "b/1"))
GLYPH_READERS = {
    "blocks.0": ("blocks.1.conv1", "blocks.1.shortcut.1"),
    "blocks.1": ("blocks.2.conv1", "blocks.2.shortcut.1"),
    "blocks.2": ("head.fc",),
}
GLYPH_SHAPES = {"blocks.0": (3, 16, 16), "blocks.1": (8, 8, 8), "blocks.2": (16, 4, 4)}
RESNET_READERS = {
    "layer1": ("layer2.0.conv1", "layer2.0.downsample.0"),
    "layer3": ("layer4.0.conv1", "layer4.0.downsample.0"),
    "layer4": ("head.fc",),
}
RESNET_SHAPES = {"layer1": (64, 8, 8), "layer3": (256, 2, 2), "layer4": (512, 1, 1)}


def glyph_student(head: dict[str, object]) -> AdaptedStudent:
    """A small student with random adapters behind all its blocks."""
    reads_last = "head.fc" if head["name"] == "linear" else "head.hidden_layer.dense"
    readers = GLYPH_READERS | {"blocks.2": (reads_last,)}
    torch.manual_seed(0)
    config = StudentConfig(
        builder="pipeline.models.backbones:glyph_resnet",
        builder_args={"width": 8},
        input={"size": 32, "channels": 1},
        head=head,
    )
    return with_random_adapters(AdaptedStudent(build_student(config, SPACE), readers, GLYPH_SHAPES))


def with_random_adapters(network: AdaptedStudent) -> AdaptedStudent:
    """The same network with adapters and batch statistics that are not trivial."""
    for adapter in network.adapters:
        nn.init.normal_(adapter, std=len(adapter) ** -0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


@pytest.mark.parametrize(
    "head",
    [
        {"name": "linear"},
        {"name": "structurally_connected", "hidden": 8, "block": 4, "self_paced": "vertical"},
    ],
    ids=["linear", "connected"],
)
def test_folded_student_says_the_same(head: dict[str, object]) -> None:
    """The student without adapters has the outputs of the one with them, and its own shapes."""
    network = glyph_student(head).double()
    shapes = {name: value.shape for name, value in network.student.state_dict().items()}
    images = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = network(images)
        assert before.logits.std(dim=0).min() > 1e-6
        student = network.folded()
        after = student(images)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-11, rtol=0)
    assert not after.blocks
    assert {name: value.shape for name, value in student.state_dict().items()} == shapes


def test_adapters_of_a_torchvision_network_fold() -> None:
    """The stages of a ResNet are read by the first convolutions of the next one alone."""
    torch.manual_seed(0)
    config = StudentConfig(builder="torchvision:resnet18", input={"size": 32})
    network = with_random_adapters(
        AdaptedStudent(build_student(config, SPACE), RESNET_READERS, RESNET_SHAPES)
    )
    images = torch.randn(2, 3, 32, 32)
    check_readers(network, images)
    with torch.no_grad():
        before = network(images).logits
        after = network.folded()(images).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_folding_a_convolution_with_padding_and_stride_is_exact() -> None:
    """In float64 the folded layer differs by rounding alone."""
    conv = nn.Conv2d(5, 4, 3, stride=2, padding=1, dtype=torch.float64)
    matrix = torch.randn(5, 7, dtype=torch.float64)
    images = torch.randn(2, 7, 9, 9, dtype=torch.float64)
    wanted = conv(torch.nn.functional.conv2d(images, matrix[:, :, None, None]))
    fold_into(conv, matrix)
    torch.testing.assert_close(conv(images), wanted, atol=1e-12, rtol=1e-12)


def test_forced_blocks_cut_the_network_into_parts() -> None:
    """Each part answers to what is forced before it, and its loss reaches no other part."""
    network = glyph_student({"name": "linear"}).train()
    images = torch.randn(4, 1, 32, 32)
    forced = {name: torch.randn(4, *shape) for name, shape in GLYPH_SHAPES.items()}
    output = network(images, forced)
    output.blocks["blocks.1"].square().sum().backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None}
    blocks = "student.backbone.blocks"
    assert f"{blocks}.1.conv1.weight" in reached
    assert "adapters.1" in reached
    assert all(name.startswith((f"{blocks}.1.", "adapters.1")) for name in reached)

    network.eval()
    with torch.no_grad():
        same = network(torch.zeros_like(images), forced)
        other = network(images)
    with torch.no_grad():
        again = network(images, forced)
    torch.testing.assert_close(same.logits, again.logits)
    assert not torch.equal(other.logits, again.logits)


def test_a_copy_has_hooks_of_its_own() -> None:
    """Weight averaging copies the network; folding the copy leaves the first as it was."""
    network = glyph_student({"name": "linear"})
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        wanted = network(images).logits
        copied = copy.deepcopy(network).folded()
        torch.testing.assert_close(copied(images).logits, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network(images).logits, wanted)


def test_readers_that_are_not_all_readers_are_refused() -> None:
    """A forgotten reader is found by trying; a layer that cannot read the block is named."""
    student = glyph_student({"name": "linear"}).folded()
    forgotten = AdaptedStudent(student, {"blocks.1": ("blocks.2.conv1",)}, {"blocks.1": (8, 8, 8)})
    with pytest.raises(ConfigError, match="into must name every layer"):
        check_readers(forgotten, torch.randn(2, 1, 32, 32))
    for name in ("blocks.9.conv1", "blocks.2.bn1", "stem.0"):
        with pytest.raises(ConfigError, match=rf"take its 8 channels, got '{name}'"):
            AdaptedStudent(student, {"blocks.1": (name,)}, {"blocks.1": (8, 8, 8)})
