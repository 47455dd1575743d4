"""Sparse Representation Matching: a student learns where its teacher's codewords are.

Tran, Gabbouj, Iosifidis, "Knowledge Distillation by Sparse Representation Matching", 2021, arXiv
2103.17012; their code is viebboy/SRM. In, of the paper's three stages:

1. A dictionary of codewords for a block of the frozen teacher. It is a reduction of the label
   store (pipeline.numerics.codewords), which keeps of each view the codeword most like each
   place, and of each codeword the mean g over places of its similarity where it is kept.
2. Codewords: the same block of the student, with codewords and a bias of its own, of which none
   is left out, learns to name them. Summed over blocks,

       place_weight * CE(c x + b at each place, the codeword most like it)
       + image_weight * BCE(mean over places of sigmoid(c x + b), g).

3. Distillation: T^2 KL + hard_weight CE, the existing loss of soft labels. It is the paper's
   a T^2 KL + (1 - a) CE over a, with hard_weight = (1 - a) / a.

The two stages share the student's epochs.

Differs from the released code: the cross-entropy is of the similarities before the sigmoid. There
the sigmoids are taken for logits, so that the student can put at most e / (e + M - 1) of its
probability on one of M codewords (`place_scores: sigmoids`). And the teacher is in eval mode;
there, the fit of its dictionary leaves other statistics in its batch normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import ComparedBlock, SoftLabels, SparseRepresentation
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.method import Method, MethodInputs, Stage
from pipeline.objectives.soft_labels import SoftLabelObjective
from pipeline.objectives.student_blocks import Shape, block_shapes, parameters_before
from pipeline.objectives.targets import batch_mean, required_features
from storage_schemas.errors import ConfigError


class CodewordScores(nn.Module):
    """The student's own codewords for one stored dictionary.

    Args:
        channels: Of the student's block.
        codewords: M, of the teacher.
    """

    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        self.codewords = nn.Conv2d(channels, codewords, 1, bias=False)
        # Codewords are rare. One number that starts where all are likely would take an epoch.
        self.bias = nn.Parameter(torch.tensor(-math.log(codewords)))

    def forward(self, block: Tensor) -> Tensor:
        """Return (B, M, H, W) similarities, before the sigmoid, of a (B, channels, H, W) block."""
        scores: Tensor = self.codewords(block.float()) + self.bias
        return scores


class CodewordObjective(Objective):
    """`place_loss` and `image_loss` of all blocks, and `place_accuracy`.

    Where a block is compared with several teachers, a row counts once for each that has seen it.

    Args:
        config: Of the method.
        keys: By block of the student, names of the stored codewords.
        shapes: (channels, height, width) of these blocks.
        context: With the shapes of what is stored.
    """

    def __init__(
        self,
        config: SparseRepresentation,
        keys: Mapping[str, Sequence[str]],
        shapes: Mapping[str, Shape],
        context: LabelContext,
    ) -> None:
        super().__init__()
        self.needs = frozenset({"features"})
        self.taps = tuple(keys)
        self._config, self._keys = config, keys
        self.scores = nn.ModuleList(
            CodewordScores(shapes[block][0], context.features[_means_of(name)][0])
            for block, names in keys.items()
            for name in names
        )

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms, and at which share of the places the student is right.

        Raises:
            TrainingError: If there are no block features.
        """
        config = self._config
        stored = required_features(targets, config.name)
        scores = iter(self.scores)
        found: list[Tensor] = []
        for block, names in self._keys.items():
            parts = []
            for name in names:
                logits = next(scores)(output.blocks[block])
                ids, means = stored[name].values[:, 0].long(), stored[_means_of(name)].values
                present = stored[name].present
                if config.targets == "shuffled":
                    # By half a batch, so that the views of one image do not get each other's.
                    ids, means, present = (
                        one.roll(len(one) // 2, 0) for one in (ids, means, present)
                    )
                parts.append(_row_terms(logits, ids, means.flatten(1), config) * present)
            present_rows = torch.stack([stored[name].present for name in names])
            found.append(batch_mean(torch.stack(parts).sum(dim=(0, 2)), present_rows.sum()))
        place, image, right = torch.stack(found).unbind(1)
        return {
            "place_loss": config.place_weight * place.sum(),
            "image_loss": config.image_weight * image.sum(),
            "place_accuracy": right.mean().detach(),
        }


def _row_terms(logits: Tensor, ids: Tensor, means: Tensor, config: SparseRepresentation) -> Tensor:
    """Return (3, B): cross-entropy of places, that of the image, share of places that are right.

    Args:
        logits: (B, M, H, W) similarities before the sigmoid.
        ids: (B, H, W) codewords.
        means: (B, M) of the similarities that are kept.
        config: Of the method.
    """
    similarities = logits.sigmoid()
    scores = logits if config.place_scores == "logits" else similarities
    place = functional.cross_entropy(scores, ids, reduction="none").mean(dim=(1, 2))
    image = functional.binary_cross_entropy(
        similarities.mean(dim=(2, 3)), means, reduction="none"
    ).mean(dim=1)
    right = (logits.argmax(dim=1) == ids).float().mean(dim=(1, 2))
    return torch.stack([place, image, right])


def sparse_representation(config: SparseRepresentation, inputs: MethodInputs) -> Method:
    """Return the method: codewords, then soft labels.

    Raises:
        ConfigError: If there are not two epochs, a layer names no block of the student, or no
            stored codewords on the grid of that block.
    """
    epochs = inputs.config.epochs
    if epochs < 2:
        raise ConfigError(
            "student.epochs",
            [f"objective {config.name} has two stages and needs at least 2 epochs, got {epochs}"],
        )
    first = min(epochs - 1, max(1, round(config.codeword_share * epochs)))
    shapes = block_shapes(inputs, [layer.student for layer in config.layers])
    keys = _stored_codewords(config.layers, inputs.context, shapes)
    soft_labels = SoftLabels(
        name="soft_labels",
        temperature=config.temperature,
        tail=config.tail,
        hard_weight=config.hard_weight,
    )
    return Method(
        network=inputs.student,
        stages=(
            Stage(
                name="codewords",
                objective=CodewordObjective(config, keys, shapes, inputs.context),
                epochs=first,
                trains=parameters_before(inputs, tuple(keys)),
            ),
            Stage(
                name="distillation",
                objective=SoftLabelObjective(soft_labels, inputs.context),
                epochs=epochs - first,
            ),
        ),
    )


def _means_of(name: str) -> str:
    """Return the name of the means that are stored with some codewords."""
    return f"{name.removesuffix('.codewords')}.codeword_means"


def _stored_codewords(
    layers: Sequence[ComparedBlock], context: LabelContext, shapes: Mapping[str, Shape]
) -> dict[str, list[str]]:
    """Return the stored codewords that each block of the student is compared with.

    Raises:
        ConfigError: If there are none, or they are on another grid; lists every layer at fault.
    """
    keys: dict[str, list[str]] = {}
    problems = []
    for layer in layers:
        block, grid = layer.student, shapes[layer.student][1:]
        names = [name for name in context.features if layer.is_compared_with(*name.split("/", 1))]
        if block in keys:
            problems.append(f"block {block!r} must be in one layer, got several")
        if not names or not all(_means_of(name) in context.features for name in names):
            problems.append(
                f"block {block!r}: no teacher has stored codewords {layer.feature!r}; list the "
                "block under teachers[].features with reduce: codewords and run `concentrate label`"
            )
        problems += [
            f"block {block!r} of the student is on a grid of {grid}, the codewords {name} on "
            f"{context.features[name][1:]}: pair blocks of one size, or keep the teacher's on "
            "this grid (teachers[].features[].grid, which cannot be larger than its block)"
            for name in names
            if context.features[name][1:] != grid
        ]
        keys[block] = names
    if problems:
        raise ConfigError("student.objective.layers", problems)
    return keys
