"""Knowledge amalgamation: one student of many specialists, without a label.

Shen, Wang, Song, Sun, Song, "Amalgamating Knowledge towards Comprehensive Classification", AAAI
2019, arXiv 1811.02796; their code of that time is zju-vipa/KamalEngine at commit 1336e1d.

In, from what every specialist says of every image:

1. Feature amalgamation. The paper trains a linear autoencoder on the concatenated channels of the
   teachers' blocks; its optimum is a principal component analysis. Each teacher runs alone, so
   its store has codes of its own; the amalgamated code F_l is a second one over all of
   them, fitted in one pass when the method is put together (numerics/principal_components.py
   says what two levels lose). It has as many channels as the student's block l.
2. Layer-wise learning. Between the student's blocks l-1 and l the network goes on with F_{l-1}
   instead of what block l-1 said, and learns || A_l h_l - F_l ||^2, all blocks in one pass, with
   the head on the last code. A_l is a 1x1 convolution that is folded away afterwards.
3. Joint training of the whole student on the concatenated scores,

       vertical_weight * sum_t w_t (-log student mass on t's classes)
       + T^2 sum_t w_t KL(teacher t || student restricted to t's classes),

   by the chain rule, at T = vertical_weight = 1, the cross-entropy with the mixture
   sum_t w_t p_t less the entropies of the p_t. A store holds log p_t, the logits up to a constant
   for each image, so the concatenation needs w_t(x), which teacher knows x: told by how sure
   they are of it (numerics/expertise.py), or 1/T each. `blocks` has the second sum alone, at 1/T.
   With `hint_weight`, pooled outputs of the student's blocks learn to tell the pooled codes.

Differs from the paper: blocks end in a ReLU, so codes are of what leaves it, and the adapter,
which the paper puts before the ReLU and folds backwards, stands behind it and folds forwards into
the layers that read the block; scores are matched by KL, the paper has squared errors of logits;
the optimiser keeps its momentum from step to step.

Left out: incremental (pairwise) amalgamation, and a rule for merging classes that two teachers
share: there the losses of both are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import Amalgamation
from pipeline.models.adapters import AdaptedStudent, check_readers
from pipeline.numerics.divergences import factorised_kl
from pipeline.numerics.principal_components import PrincipalComponents, principal_components
from pipeline.objectives.base import (
    BlockFeatureBatch,
    LabelContext,
    Objective,
    StudentOutput,
    TargetBatch,
)
from pipeline.objectives.method import Method, MethodInputs, Stage
from pipeline.objectives.student_blocks import block_shapes, random_images
from pipeline.objectives.targets import (
    Supports,
    batch_mean,
    labelled_mean,
    required_features,
    required_soft_labels,
)
from pipeline.objectives.teacher_survey import feature_problems, survey
from storage_schemas.errors import ConfigError


class AmalgamatedScores(nn.Module):
    """The loss on the concatenated scores: `kd_loss`, and `vertical_loss` where they are one.

    Args:
        config: Of the method.
        context: The label space.
        rows: (N,) ascending rows that are trained on.
        shares: (N, T) of each teacher in each of them.
    """

    rows: Tensor
    shares: Tensor

    def __init__(
        self, config: Amalgamation, context: LabelContext, rows: Tensor, shares: Tensor
    ) -> None:
        super().__init__()
        self._config = config
        self._supports = Supports(context)
        # Not in checkpoints: they are of the size of the data, and found again bit for bit.
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the terms for (B, C) logits.

        Raises:
            TrainingError: If there are no soft labels.
        """
        config = self._config
        soft = required_soft_labels(targets, config.name)
        supports = self._supports.table(logits)
        assert targets.rows is not None
        shares = self.shares[torch.searchsorted(self.rows, targets.rows)].T
        log_mass, divergence = factorised_kl(
            logits,
            soft,
            supports,
            temperature=config.temperature,
            tail=config.tail,
            shares=shares,
        )
        terms = {"kd_loss": config.temperature**2 * labelled_mean(divergence, soft)}
        if config.scores == "concatenated":
            terms["vertical_loss"] = -config.vertical_weight * labelled_mean(log_mass, soft)
            terms["largest_share"] = shares.amax(dim=0).mean()
        return terms


class AmalgamatedCodes(nn.Module):
    """From the stored codes of all teachers to the amalgamated code of one layer.

    Codes are centred and divided by one number, so that their mean variance is 1: layers then
    count alike.

    Args:
        keys: Of `TargetBatch.features`, one a teacher, in the order of the basis.
        components: Over the concatenated channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, keys: Sequence[str], components: PrincipalComponents) -> None:
        super().__init__()
        self.keys = tuple(keys)
        scale = components.variances.mean().clamp(min=1e-12).rsqrt()
        weight = components.basis * scale
        self.register_buffer("weight", weight[:, :, None, None].float())
        self.register_buffer("bias", (-weight @ components.mean).float())

    def forward(self, features: Mapping[str, BlockFeatureBatch]) -> tuple[Tensor, Tensor]:
        """Return (B, d, height, width) codes, and (B,) which rows all teachers have seen."""
        values = torch.cat([features[key].values for key in self.keys], dim=1)
        present = torch.stack([features[key].present for key in self.keys]).all(dim=0)
        return functional.conv2d(values.float(), self.weight, self.bias), present


def _squared_error(found: Tensor, code: Tensor, present: Tensor) -> Tensor:
    error = (found.float() - code).square().flatten(1).mean(dim=1)
    return batch_mean((error * present).sum(), present.sum())


class LayerwiseObjective(Objective):
    """Each block learns its amalgamated code from that of the block before: `<block>_loss`.

    For an `AdaptedStudent`. The head learns the scores from the last code.
    """

    def __init__(self, scores: AmalgamatedScores, codes: Mapping[str, AmalgamatedCodes]) -> None:
        super().__init__()
        self.needs = frozenset({"soft", "features"})
        self.scores = scores
        self._blocks = tuple(codes)
        self.codes = nn.ModuleList(codes.values())

    def forced(self, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the amalgamated codes, which the network goes on with behind each block."""
        return {block: code for block, (code, _) in self._codes(targets).items()}

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return one loss a block and those of the scores.

        Raises:
            TrainingError: If a target is missing.
        """
        terms = {
            f"{block}_loss": _squared_error(output.blocks[block], code, present)
            for block, (code, present) in self._codes(targets).items()
        }
        terms.update(self.scores(output.logits, targets))
        return terms

    def _codes(self, targets: TargetBatch) -> dict[str, tuple[Tensor, Tensor]]:
        features = required_features(targets, "amalgamation")
        return {b: code(features) for b, code in zip(self._blocks, self.codes, strict=True)}


class JointObjective(Objective):
    """The concatenated scores, and with `hint_weight` the pooled codes: `hint_loss`.

    Args:
        scores: The loss on the scores.
        codes: By block; empty: no hints.
        channels: Of each block's output.
        hint_weight: Of the mean over the blocks.
    """

    def __init__(
        self,
        scores: AmalgamatedScores,
        codes: Mapping[str, AmalgamatedCodes],
        channels: Mapping[str, int],
        hint_weight: float,
    ) -> None:
        super().__init__()
        self.needs = frozenset({"soft", "features"} if codes else {"soft"})
        self.taps = tuple(codes)
        self.scores = scores
        self.codes = nn.ModuleList(codes.values())
        self.hints = nn.ModuleList(
            nn.Linear(channels[block], code.bias.numel()) for block, code in codes.items()
        )
        self._hint_weight = hint_weight

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms.

        Raises:
            TrainingError: If a target is missing.
        """
        terms: dict[str, Tensor] = self.scores(output.logits, targets)
        if not self.taps:
            return terms
        features = required_features(targets, "amalgamation")
        losses = []
        for block, code, hint in zip(self.taps, self.codes, self.hints, strict=True):
            wanted, present = code(features)
            pooled = output.blocks[block].float().mean(dim=(2, 3))
            losses.append(_squared_error(hint(pooled), wanted.mean(dim=(2, 3)), present))
        return {"hint_loss": self._hint_weight * torch.stack(losses).mean()} | terms


def amalgamation(config: Amalgamation, inputs: MethodInputs) -> Method:
    """Return the layer-wise stage, where there is one, and joint training.

    Both share the student's epochs. One epoch alone is joint training.

    Raises:
        ConfigError: If a layer names no block of the student, or no features that all teachers
            have, of the size that the student's block has.
        TrainingError: If some row lacks the answer of a teacher.
    """
    used = config.layers if "features" in config.reads else ()
    shapes = block_shapes(inputs, [layer.block for layer in used])
    keys = {
        layer.block: [f"{teacher}/{layer.features}" for teacher in inputs.context.teachers]
        for layer in used
    }
    problems = feature_problems(config, inputs.context, keys, shapes)
    if problems:
        raise ConfigError("student.objective.layers", problems)
    shares, moments = survey(config, inputs, keys)
    codes = {
        block: AmalgamatedCodes(
            keys[block],
            principal_components(found, min(shapes[block][0], len(found.mean))),
        )
        for block, found in moments.items()
    }
    scores = AmalgamatedScores(config, inputs.context, torch.from_numpy(inputs.rows), shares)
    hinted = codes if config.hint_weight else {}
    channels = {block: shape[0] for block, shape in shapes.items()}
    joint = JointObjective(scores, hinted, channels, config.hint_weight)
    epochs = inputs.config.epochs
    alone = min(max(1, round(config.layerwise_share * epochs)), epochs - 1)
    if not config.layerwise_share or alone == 0:
        return Method(
            network=inputs.student, stages=(Stage(name="joint", objective=joint, epochs=epochs),)
        )
    readers = {layer.block: layer.into for layer in used}
    network = AdaptedStudent(inputs.student, readers, shapes)
    check_readers(network, random_images(inputs))
    layerwise = Stage(
        name="layerwise",
        objective=LayerwiseObjective(scores, codes),
        epochs=alone,
        finish=_without_adapters,
    )
    joint_stage = Stage(name="joint", objective=joint, epochs=epochs - alone)
    return Method(network=network, stages=(layerwise, joint_stage))


def _without_adapters(network: nn.Module) -> nn.Module:
    assert isinstance(network, AdaptedStudent)
    return network.folded()
