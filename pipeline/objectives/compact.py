"""Compact CNN structure learning by knowledge distillation.

Ahmed, Zunino, Morerio, Murino, "Compact CNN Structure Learning by Knowledge Distillation", ICPR
2020, arXiv 2104.09191. Only the abstract could be read. From it: distillation together with a
block-wise optimisation that is customised to a budget of operations or of parameters.

All else is our reconstruction. The student is a copy of the uncompressed network (`student.init`),
which is also the teacher whose stored soft labels it learns from. In the first stage

    (1 - a) CE + a T^2 KL(teacher || student) + sum over blocks b of w_b G_b / G_b at the start

is minimised, with G_b of pipeline.compress.regulariser (after MorphNet) and w_b of
pipeline.compress.controller. Then channels are cut: those whose scale is below the threshold, and,
where a block is still above its budget, its weakest until it is not. The second stage trains what
is left with the first two terms. The learning rate of the first stage stays at its peak after the
warm-up; that of the second follows the student's schedule.

Left out: setting small scales to zero after each epoch (they are cut once, at the end), widening
what came out below its budget, and hints from the teacher's blocks.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pipeline.compress.budget import full_costs, within_budget
from pipeline.compress.channel_groups import ChannelGroups, channel_groups
from pipeline.compress.controller import ControllerState, start, update
from pipeline.compress.regulariser import BlockSparsity, block_of
from pipeline.compress.surgery import kept_channels
from pipeline.config import Compact, InputConfig, StudentConfig
from pipeline.models.builders import probe
from pipeline.models.heads import LinearHead
from pipeline.numerics import sparse_kl
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.hard_labels import hard_label_loss
from pipeline.objectives.method import Method, MethodInputs, Stage
from pipeline.objectives.targets import Supports, labelled_mean, required_soft_labels
from storage_schemas.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.models.student import Student

_FIRST_WEIGHT = 0.5
_LARGEST_WEIGHT = 100.0
_PROPORTIONAL = 4.0
# Of the logarithm of a weight over the whole stage, while a block costs twice its budget or more.
_RISE = 10.0


class SparsityLoss(nn.Module):
    """The regularisers of all blocks, weighed so that each block comes to its budget.

    The controllers' state is in buffers, so that a checkpoint has it.

    Args:
        student: Whose scales are pressed; referred to, not owned.
        sparsity: Of the student.
        budgets: (blocks,) costs to reach.
        steps: Of the stage.
    """

    log_weight: Tensor
    error: Tensor
    initial: Tensor
    budgets: Tensor

    def __init__(
        self, student: nn.Module, sparsity: BlockSparsity, budgets: Tensor, steps: int
    ) -> None:
        super().__init__()
        # In a tuple, since a module that is set as an attribute becomes a part of this one.
        self._student = (student,)
        self._sparsity, self._steps = sparsity, steps
        state = start(len(budgets), _FIRST_WEIGHT)
        self.register_buffer("log_weight", state.log_weight)
        self.register_buffer("error", state.error)
        with torch.no_grad():
            initial = sparsity.penalties(sparsity.strengths(student))
        self.register_buffer("initial", initial)
        self.register_buffer("budgets", budgets)

    def forward(self) -> dict[str, Tensor]:
        """Return `sparsity_loss`, and how the blocks stand; in training, move the controllers."""
        strengths = self._sparsity.strengths(self._student[0])
        costs = self._sparsity.costs(self._sparsity.alive(strengths))
        state, weights = update(
            ControllerState(self.log_weight, self.error),
            costs,
            self.budgets,
            proportional=_PROPORTIONAL,
            integral=_RISE / self._steps,
            largest=_LARGEST_WEIGHT,
        )
        if self.training:
            # Set anew, not in place: the graph of this step needs the old ones.
            self.log_weight, self.error = state
        penalties = (self._sparsity.penalties(strengths) / self.initial).float()
        return {
            "sparsity_loss": (weights * penalties).sum(),
            "over_budget": (costs / self.budgets - 1).max(),
            "blocks_over_budget": (costs > self.budgets).sum(),
            "largest_sparsity_weight": weights.max(),
        }


class CompactObjective(Objective):
    """`kd_loss` and `task_loss` by their weights, and `sparsity_loss` while widths are learned."""

    def __init__(
        self, config: Compact, context: LabelContext, sparsity: SparsityLoss | None = None
    ) -> None:
        super().__init__()
        soft = {"soft"} if config.soft_weight > 0 else set()
        self.needs = frozenset(soft | ({"labels"} if config.soft_weight < 1 else set()))
        self._config = config
        self._supports = Supports(context)
        self.sparsity = sparsity

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms and, while widths are learned, how the blocks stand.

        Raises:
            TrainingError: If a target is missing.
        """
        config = self._config
        terms = {}
        if "soft" in self.needs:
            soft = required_soft_labels(targets, config.name)
            divergence = sparse_kl(
                output.logits,
                soft,
                self._supports.table(output.logits),
                temperature=config.temperature,
                tail=config.tail,
            )
            scale = config.soft_weight * config.temperature**2
            terms["kd_loss"] = scale * labelled_mean(divergence, soft)
        if "labels" in self.needs:
            task = hard_label_loss(output.logits, targets, config.name)
            terms["task_loss"] = (1 - config.soft_weight) * task
        if self.sparsity is not None:
            terms |= self.sparsity()
        return terms


def student_groups(student: Student, config: InputConfig) -> ChannelGroups:
    """Return the channel groups of a student.

    Raises:
        ConfigError: If its backbone cannot be traced, or its head is not one linear layer.
    """
    if not isinstance(student.head, LinearHead):
        raise ConfigError(
            "student.head", ["must be linear under the objective 'compact', which cuts its inputs"]
        )
    device = next(student.parameters()).device
    image = torch.zeros(1, config.channels, config.size, config.size, device=device)
    return channel_groups(student.backbone, student.head.fc, image, names=("backbone", "head.fc"))


def _sparsity(config: Compact, groups: ChannelGroups) -> BlockSparsity:
    named = [name for name in config.budget if name != "default"]
    blocks = {
        layer.name: block_of(layer.name, named) if config.per_block else "network"
        for layer in groups.layers
    }
    unknown = sorted(set(named) - set(blocks.values()))
    if unknown:
        known = sorted({block_of(layer.name, ()) for layer in groups.layers})
        raise ConfigError(
            "student.objective.budget",
            [f"must name modules that hold layers, such as {known}, got {unknown}"],
        )
    return BlockSparsity(groups, blocks, resource=config.resource, threshold=config.threshold)


def _at_constant_rate(config: StudentConfig) -> StudentConfig:
    # Adam moves a scale by the learning rate a step at most: a rate that falls to 0 leaves half.
    schedule = config.schedule.model_copy(update={"name": "constant"})
    return config.model_copy(update={"schedule": schedule})


def compact(config: Compact, inputs: MethodInputs) -> Method:
    """Return the method: learn widths, cut, fine-tune.

    Raises:
        ConfigError: If there are not two epochs, the network cannot be traced, or a block cannot
            be made as small as its budget.
    """
    epochs = inputs.config.epochs
    if epochs < 2:
        raise ConfigError(
            "student.epochs",
            [f"objective compact has two stages and needs at least 2 epochs, got {epochs}"],
        )
    structure_epochs = min(epochs - 1, max(1, round(config.structure_share * epochs)))
    sparsity = _sparsity(config, student_groups(inputs.student, inputs.input))
    default = config.budget["default"]
    shares = torch.tensor(
        [config.budget.get(block, default) for block in sparsity.blocks], dtype=torch.float64
    )

    def cut(network: nn.Module) -> nn.Module:
        student = copy.deepcopy(cast("Student", network))
        with torch.no_grad():
            strengths = sparsity.strengths(student).double().cpu()
        keep = within_budget(sparsity, strengths.numpy(), shares.numpy())
        student.cut(kept_channels(sparsity.groups, keep))
        return student

    # Refused now, not after the first stage: by its budgets, or since a width is written down in
    # the forward pass.
    narrow = cast("Student", cut(inputs.student))
    probe(narrow.backbone, inputs.input, narrow.feature_dim, owner="student")
    images = min(inputs.config.batch_size // inputs.config.views_per_image, len(inputs.rows))
    loss = SparsityLoss(
        inputs.student,
        sparsity,
        torch.from_numpy(full_costs(sparsity)) * shares,
        steps=structure_epochs * (len(inputs.rows) // images),
    )
    return Method(
        network=inputs.student,
        stages=(
            Stage(
                name="structure",
                objective=CompactObjective(config, inputs.context, loss),
                epochs=structure_epochs,
                training=_at_constant_rate(inputs.config),
                finish=cut,
            ),
            Stage(
                name="fine-tuning",
                objective=CompactObjective(config, inputs.context),
                epochs=epochs - structure_epochs,
            ),
        ),
    )
