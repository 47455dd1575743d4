"""Adapters: linear maps behind a student's blocks, and how they vanish again.

In: `AdaptedStudent`, a student whose blocks speak in the codes of an amalgamated feature space;
and the exact folding of its adapters into the layers that read them. Left out: what the codes are
(pipeline.objectives.amalgamation).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from storage_schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.models.student import Student
    from pipeline.objectives.base import StudentOutput


def fold_into(reader: nn.Conv2d | nn.Linear, matrix: Tensor) -> None:
    """Change a layer so that it does at once what it did behind a 1x1 convolution without bias.

    Nothing non-linear is between the two, so it is exact: W'[o, i] = sum_m W[o, m] matrix[m, i] at
    each place of the kernel. Averaging over places in between does not matter. A bias would not
    fold where the layer pads with zeros.

    Args:
        reader: A convolution of one group, or a linear layer over flattened (channel, place) maps.
        matrix: (M, I) weight of the 1x1 convolution.
    """
    with torch.no_grad():
        weight = reader.weight
        places = weight.reshape(len(weight), len(matrix), -1)
        folded = torch.einsum("omp,mi->oip", places.double(), matrix.double())
        shape = (len(weight), matrix.shape[1], *weight.shape[2:])
        folded = folded.reshape(shape) if weight.ndim == 4 else folded.flatten(1)
        reader.weight = nn.Parameter(folded.to(weight.dtype))


class AdaptedStudent(nn.Module):
    """A student with a 1x1 convolution behind some of its blocks.

    The output of an adapted block, as the network goes on with it and as `StudentOutput.blocks`
    has it, is that of its adapter. Where `forced` has a value for the block, the network goes on
    with that instead (teacher forcing, Williams & Zipser 1989), so that each part of the network
    between two adapted blocks is trained on what the part before it should say, all parts at once.

    Args:
        student: Changed in place when the adapters are folded.
        readers: Adapted block of the backbone -> names of all layers that read its output, as
            `Student.named_modules` calls them, with or without "backbone.".
        shapes: (channels, height, width) of each adapted block's output.

    Raises:
        ConfigError: If a name is not that of a convolution of one group or a linear layer.
    """

    def __init__(
        self,
        student: Student,
        readers: Mapping[str, Sequence[str]],
        shapes: Mapping[str, tuple[int, int, int]],
    ) -> None:
        super().__init__()
        self.student = student
        self._readers = {block: tuple(names) for block, names in readers.items()}
        for block in readers:
            for name in readers[block]:
                _reader(student, block, name, shapes[block][0])
        self.adapters = nn.ParameterList(torch.eye(shapes[block][0]) for block in readers)
        self._forced: Mapping[str, Tensor] = {}
        self._blocks: dict[str, Tensor] = {}
        self._hooks = [
            student.backbone.get_submodule(block).register_forward_hook(
                functools.partial(self._adapt, index, block)
            )
            for index, block in enumerate(readers)
        ]

    def forward(self, images: Tensor, forced: Mapping[str, Tensor] | None = None) -> StudentOutput:
        """Return logits, features and adapted blocks of (B, channels, S, S) images.

        Args:
            images: What the student takes.
            forced: (B, channels, height, width) by block: what the network goes on with there.
        """
        self._forced = forced or {}
        output: StudentOutput = self.student(images)
        blocks, self._blocks, self._forced = self._blocks, {}, {}
        return replace(output, blocks=blocks)

    def _adapt(self, index: int, block: str, module: nn.Module, inputs: Any, found: Tensor) -> Any:
        matrix = self.adapters[index][:, :, None, None]
        self._blocks[block] = functional.conv2d(found, matrix)
        return self._forced.get(block, self._blocks[block])

    def folded(self) -> Student:
        """Return the student that computes the same without adapters; this network is done with."""
        for hook in self._hooks:
            hook.remove()
        for (block, names), adapter in zip(self._readers.items(), self.adapters, strict=True):
            for name in names:
                fold_into(_reader(self.student, block, name, len(adapter)), adapter)
        return self.student

    def metrics(self) -> dict[str, float]:
        """Return what is worth logging about the student's weights."""
        return self.student.metrics()


def check_readers(network: AdaptedStudent, images: Tensor) -> None:
    """Refuse readers that are not all layers that read the adapted blocks.

    A copy with random adapters must, when they are folded, say what it said before.

    Args:
        network: Unchanged.
        images: (B, channels, S, S) to try it on.

    Raises:
        ConfigError: If the two differ.
    """
    trial = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in trial.adapters:
            adapter.copy_(torch.randn(adapter.shape, generator=generator))
        before = trial(images).logits
        after = trial.folded()(images).logits
    # What the images change, since biases alone would hide a block that is not read.
    spread = (before - before.mean(dim=0)).abs().max().clamp(min=1e-9)
    if float((before - after).abs().max() / spread) > 1e-2:
        raise ConfigError(
            "student.objective.layers",
            ["into must name every layer that reads the output of its block, and no other"],
        )


def _reader(student: Student, block: str, name: str, channels: int) -> nn.Conv2d | nn.Linear:
    modules = dict(student.named_modules())
    found = modules.get(f"backbone.{name}", modules.get(name))
    fits = isinstance(found, nn.Conv2d) and found.groups == 1 and found.in_channels == channels
    if isinstance(found, nn.Linear):
        fits = found.in_features % channels == 0
    if not isinstance(found, nn.Conv2d | nn.Linear) or not fits:
        raise ConfigError(
            "student.objective.layers",
            [
                f"into of block {block!r} must name convolutions of one group or linear layers "
                f"that take its {channels} channels, got {name!r}: "
                f"{'no such module' if found is None else found}"
            ],
        )
    return found
