"""The student as it is built from its settings."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.config import StudentConfig
from pipeline.models.backbones import glyph_resnet, glyph_vgg
from pipeline.models.student import build_student
from storage_schemas.errors import ConfigError
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=tuple(f"{v}/{i}" for v, n in (("a", 4), ("b", 9)) for i in range(n)))
GLYPH = {
    "builder": "pipeline.models.backbones:glyph_resnet",
    "builder_args": {"width": 8},
    "input": {"size": 32, "channels": 1},
}
HEADS = (
    {"name": "linear"},
    {"name": "structurally_connected", "hidden": 16, "block": 8, "self_paced": "vertical"},
)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["name"])
def test_logits_cover_the_label_space(head: dict) -> None:
    """Both heads give logits over all classes, and a copy with the same state gives the same."""
    config = StudentConfig(**GLYPH, head=head)
    student, other = build_student(config, SPACE).eval(), build_student(config, SPACE).eval()
    images = torch.randn(2, 1, 32, 32)
    output = student(images)
    assert output.logits.shape == (2, len(SPACE))
    assert output.features.shape == (2, 256)
    other.load_state_dict(student.state_dict())
    assert torch.equal(other(images).logits, output.logits)
    assert torch.equal(copy.deepcopy(student)(images).logits, output.logits)


def test_every_parameter_gets_a_gradient() -> None:
    """No part of the student is cut off from the loss."""
    student = build_student(StudentConfig(**GLYPH, head=HEADS[1]), SPACE)
    student(torch.randn(4, 1, 32, 32)).logits.square().sum().backward()
    assert [n for n, p in student.named_parameters() if p.grad is None] == []
    assert "gamma_over_sqrt_classes" in student.metrics()


def test_input_that_does_not_fit_is_found_at_once() -> None:
    """Settings that name the wrong channels are refused before training."""
    wrong = GLYPH | {"input": {"size": 32, "channels": 3}}
    with pytest.raises(ConfigError, match=r"student\.builder"):
        build_student(StudentConfig(**wrong), SPACE)


@pytest.mark.parametrize("network", [glyph_resnet, glyph_vgg])
@pytest.mark.parametrize("size", [24, 32, 33, 64])
def test_glyph_networks_take_other_sizes(network: Callable[..., nn.Module], size: int) -> None:
    """The last grid is reached from any image of at least 24 pixels."""
    assert network(5, width=8)(torch.randn(2, 1, size, size)).shape == (2, 5)


def test_glyph_resnet_refuses_odd_widths() -> None:
    """The width must give whole channels in every block."""
    with pytest.raises(ValueError, match="multiple of 8"):
        glyph_resnet(5, width=12)


def test_tapped_blocks_are_handed_over_and_a_copy_taps_nothing() -> None:
    """Blocks of the latest batch are in the output, none is kept, and the state is the same."""
    student = build_student(StudentConfig(**GLYPH), SPACE).eval()
    names = [name for name, _ in student.backbone.named_children()][:2]
    keys = set(student.state_dict())
    student.tap(names)
    other = copy.deepcopy(student)
    output = student(torch.randn(2, 1, 32, 32))
    assert list(output.blocks) == names
    assert all(block.shape[0] == 2 for block in output.blocks.values())
    assert set(student.state_dict()) == keys
    assert other(torch.randn(3, 1, 32, 32)).blocks == {}
    assert all(block.shape[0] == 3 for block in student(torch.randn(3, 1, 32, 32)).blocks.values())
    student.tap(())
    assert student(torch.randn(2, 1, 32, 32)).blocks == {}


def test_a_block_that_is_not_there_is_named() -> None:
    """The error lists what the backbone has."""
    with pytest.raises(
        ConfigError, match=r"must be a module of the network: .*'blocks', .*, got 'layer9'"
    ):
        build_student(StudentConfig(**GLYPH), SPACE).tap(["layer9"])
