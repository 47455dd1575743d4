"""Students whose arithmetic is exact: whole numbers in float64, so that no sum is rounded."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.compress.channel_groups import ChannelGroups
from pipeline.config import StudentConfig
from pipeline.models.student import Student, build_student
from pipeline.objectives.compact import student_groups
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=("a/0", "a/1", "b/0", "b/1"))
NETWORKS = {
    "resnet18": ("torchvision:resnet18", {}),
    "slim_resnet50": ("torchvision:resnet50", {"width_per_group": 8}),
    "mobilenet_v2": ("torchvision:mobilenet_v2", {"width_mult": 0.25}),
    "glyph_resnet": ("pipeline.models.backbones:glyph_resnet", {"width": 16}),
}


def _make_whole(weight: Tensor, generator: torch.Generator) -> None:
    """At most four places of each output -1 or 1, the rest 0: values grow slowly."""
    flat = torch.zeros(weight.shape[0], weight[0].numel(), dtype=weight.dtype)
    places = torch.randint(flat.shape[1], (len(flat), 4), generator=generator)
    signs = torch.randint(0, 2, places.shape, generator=generator).mul(2).sub(1).to(flat.dtype)
    weight.copy_(flat.scatter_(1, places, signs).view_as(weight))


@functools.cache
def _student(name: str) -> tuple[Student, StudentConfig, ChannelGroups]:
    builder, args = NETWORKS[name]
    channels = 3 if builder.startswith("torchvision") else 1
    config = StudentConfig(
        builder=builder, builder_args=args, input={"size": 32, "channels": channels}
    )
    student = build_student(config, SPACE)
    return student, config, student_groups(student, config.input)


@pytest.fixture(scope="session")
def whole_student() -> Iterator[Callable[[str, int], tuple[Student, StudentConfig, ChannelGroups]]]:
    """From a name of NETWORKS and a seed to a student of whole numbers, settings, groups."""

    def build(name: str, seed: int) -> tuple[Student, StudentConfig, ChannelGroups]:
        student, config, groups = _student(name)
        student = copy.deepcopy(student).double().eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in student.modules():
                if isinstance(module, _BatchNorm):
                    module.eps = 0.0
                    module.weight.fill_(1.0)
                    count = module.num_features
                    module.bias.copy_(torch.randint(1, 5, (count,), generator=generator))
                elif isinstance(module, nn.Conv2d | nn.Linear):
                    _make_whole(module.weight, generator)
                    if module.bias is not None:
                        module.bias.fill_(3.0)
        return student, config, groups

    yield build
    _student.cache_clear()
