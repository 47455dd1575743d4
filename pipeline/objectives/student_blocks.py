"""What a method asks of the student's blocks before it trains.

In: the grids of their outputs, and which parameters these depend on. Left out: what is stored of
teachers' blocks (teacher_survey.py), and the taps themselves (pipeline.models.taps).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.objectives.method import MethodInputs
from storage_schemas.errors import ConfigError

Shape = tuple[int, int, int]


def random_images(inputs: MethodInputs) -> Tensor:
    """Return two images of noise as the student takes them, always the same."""
    size, channels = inputs.input.size, inputs.input.channels
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def block_shapes(inputs: MethodInputs, blocks: Sequence[str]) -> dict[str, Shape]:
    """Return (channels, height, width) of the student's blocks.

    Raises:
        ConfigError: If one of them is no module of the student or not a grid.
    """
    student = inputs.student
    student.tap(blocks)
    training = student.training
    with torch.no_grad():
        found = student.eval()(random_images(inputs)).blocks
    student.train(training).tap(())
    flat = [name for name, value in found.items() if value.ndim != 4]
    if flat:
        raise ConfigError("student.objective.layers", [f"blocks must return grids, got {flat}"])
    return {name: (value.shape[1], value.shape[2], value.shape[3]) for name, value in found.items()}


def parameters_before(inputs: MethodInputs, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the student's parameters that the outputs of some blocks depend on.

    A loss on these blocks gives the others no gradient, and every parameter that trains must have
    one where ranks share a batch.
    """
    student = inputs.student
    named = dict(student.named_parameters())
    student.tap(blocks)
    training = student.training
    outputs = student.eval()(random_images(inputs)).blocks
    student.train(training).tap(())
    total = torch.stack([output.sum() for output in outputs.values()]).sum()
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return tuple(n for n, gradient in zip(named, gradients, strict=True) if gradient is not None)
