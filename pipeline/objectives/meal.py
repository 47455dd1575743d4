"""MEAL: an ensemble of teachers in one student (Shen et al. 2019, arXiv 1812.02425).

In: several teachers of the same classes, of which each batch draws one, or whose probabilities
are averaged; a similarity loss between channel-mean maps of blocks; discriminators on the logits
and on each of these blocks. Left out: hard labels, as in the paper. Noisy labels, of its
extension, are a property of the data (pipeline/data/label_noise.py).

What differs from the released code: teachers are in eval mode, because their answers are stored;
KL in place of cross-entropy, which differs by what the student cannot change; and a discriminator
sees only the most probable classes of the stored label, with the student's probabilities cut
alike: the even tail of a sparse label would give the teacher away. See models/discriminators.py
for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import BlockSimilarity, Meal
from pipeline.models.discriminators import Discriminator, discriminate
from pipeline.numerics import SoftLabelBatch, mean_teacher, one_teacher, only_teachers, sparse_kl
from pipeline.numerics.lookup import pick
from pipeline.numerics.spatial_maps import channel_mean_map, comparable, map_distance
from pipeline.objectives.base import (
    LabelContext,
    Objective,
    StudentOutput,
    TargetBatch,
)
from pipeline.objectives.targets import (
    Supports,
    batch_mean,
    labelled_mean,
    required_features,
    required_soft_labels,
)
from storage_schemas.errors import ConfigError, TrainingError


class MealObjective(Objective):
    """`kd_loss`; `similarity_loss` of the blocks; `adversarial_loss` of the discriminators.

    `adversarial_loss` is the discriminators' own, the mean over all that they look at: ln 2 =
    0.693 where student and teacher look alike, and 0 where they are always told apart.
    """

    def __init__(self, config: Meal, context: LabelContext) -> None:
        super().__init__()
        self._config = config
        self._supports = Supports(context)
        self._teachers = context.teachers
        self.needs = frozenset(config.reads)
        self.taps = tuple(dict.fromkeys(block.student for block in config.blocks))
        self._features = [_features_of(block, config, context) for block in config.blocks]
        self._grids = [_grid(found, context) for found in self._features]
        # Whose answers may be averaged: teachers of one support. -1: one that does not teach.
        self.groups: Tensor
        self.register_buffer("groups", _groups(config, context), persistent=False)
        # All ranks draw the same teacher, so not from the generator of dropout. From the one that
        # the network's weights came from, which is the same on all ranks.
        self._seed = int(torch.randint(2**62, ()))
        self._draws = 0
        self.discriminators = nn.ModuleList()
        if config.adversarial is not None:
            self.learning_rate = config.adversarial.lr
            widths = [config.adversarial.classes, *(h * w for h, w in self._grids)]
            self.discriminators.extend(Discriminator(width) for width in widths)

    def get_extra_state(self) -> dict[str, int]:
        """Return where the draws of teachers are; a resumed run goes on from there."""
        return {"seed": self._seed, "draws": self._draws}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Go on from saved draws."""
        self._seed, self._draws = int(state["seed"]), int(state["draws"])

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms, and how often the discriminators are right.

        Raises:
            TrainingError: If a target is missing, or teachers to be averaged differ in classes.
        """
        config = self._config
        soft = required_soft_labels(targets, config.name)
        if config.teachers is not None:
            soft = only_teachers(soft, self.groups >= 0)
        table = self._supports.table(output.logits)
        if config.teacher == "random":
            label = one_teacher(soft, self._draw())
            teachers = label.teacher
        else:
            self._check_same_classes(soft)
            label = mean_teacher(soft, table)
            teachers = soft.teacher
        divergence = sparse_kl(output.logits, label, table, temperature=config.temperature)
        terms = {"kd_loss": config.temperature**2 * labelled_mean(divergence, label)}
        maps = self._maps(output, targets, teachers)
        if config.blocks:
            terms["similarity_loss"] = torch.stack(
                [
                    block.weight
                    * batch_mean(
                        (map_distance(student, target, config.similarity) * known).sum(),
                        known.sum(),
                    )
                    for block, (student, target, known) in zip(config.blocks, maps, strict=True)
                ]
            ).sum()
        if config.adversarial is not None:
            terms |= self._discriminate(output.logits, label, maps)
        return terms

    def _draw(self) -> float:
        draw = np.random.Generator(np.random.Philox(key=[self._seed, self._draws])).random()
        self._draws += self.training
        return draw

    def _check_same_classes(self, soft: SoftLabelBatch) -> None:
        groups = self.groups[soft.teacher.clamp(min=0)].masked_fill(soft.teacher < 0, -1)
        differ = ((groups >= 0) & (groups != groups.amax(dim=0))).any(dim=0)
        if bool(differ.any()):
            row = int(differ.int().argmax())
            found = [self._teachers[i] for i in soft.teacher[:, row].tolist() if i >= 0]
            raise TrainingError(
                f"objective {self._config.name!r}: teachers whose probabilities are averaged must "
                f"have the same classes, got {found} of other classes for one image; give them "
                "the same classes, routing own, or set student.objective.teacher to random"
            )

    def _maps(
        self, output: StudentOutput, targets: TargetBatch, teachers: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return of each block the student's maps (B, P), the targets (B, P), and who has one.

        The target of a row is the mean over those of its teachers that have stored the block.
        """
        found = []
        for block, features, grid in zip(
            self._config.blocks, self._features, self._grids, strict=True
        ):
            student = output.blocks[block.student]
            if student.ndim != 4:
                raise ConfigError(
                    "student.objective.blocks",
                    [
                        f"{block.student} must return (B, channels, H, W), got shape "
                        f"{tuple(student.shape)}"
                    ],
                )
            maps = channel_mean_map(student, grid)
            total, count = torch.zeros_like(maps), maps.new_zeros(len(maps))
            for name, teacher in features.items():
                stored = required_features(targets, self._config.name)[name]
                teaches = (teachers == teacher).any(dim=0) & stored.present
                seen = comparable(stored.values.flatten(1).to(maps.dtype), self._config.similarity)
                total += torch.where(teaches.unsqueeze(1), seen, 0.0)
                count += teaches
            found.append(
                (maps, total / count.clamp(min=1).unsqueeze(1), (count > 0).to(maps.dtype))
            )
        return found

    def _discriminate(
        self, logits: Tensor, label: SoftLabelBatch, maps: list[tuple[Tensor, Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        config = self._config
        assert config.adversarial is not None
        pairs = [_likely_classes(logits, label, config.adversarial.classes, config.temperature)]
        for student, target, known in maps:
            # A distribution over positions is as large as its mean, 1, not as its sum.
            scale = student.shape[1] if config.similarity == "cross_entropy" else 1
            seen = comparable(student, config.similarity)
            pairs.append((scale * seen, scale * target, known))
        losses, shares, counts = [], [], []
        for discriminator, (student, teacher, known) in zip(
            self.discriminators, pairs, strict=True
        ):
            assert isinstance(discriminator, Discriminator)
            loss, right = discriminate(discriminator, student, teacher, config.adversarial.weight)
            losses.append((loss * known).sum())
            shares.append((right * known).sum())
            counts.append(known.sum())
        # Over what was there to look at: the teacher drawn may lack a block.
        count = torch.stack(counts).sum()
        return {
            "adversarial_loss": batch_mean(torch.stack(losses).sum(), count),
            "discriminator_accuracy": batch_mean(torch.stack(shares).sum(), count).detach(),
        }


def _likely_classes(
    logits: Tensor, label: SoftLabelBatch, classes: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what student and teacher say of the most probable classes of a label.

    Returns:
        (B, classes) probabilities among these classes of the student and of the teacher, 0 where
        the label keeps fewer; (B,) 1 where there is a label.
    """
    ids, log_probs = label.ids[..., :classes], label.log_probs[..., :classes]
    stored = ids >= 0
    chosen = pick(logits, ids.clamp(min=0))
    chosen = (chosen.float() if chosen.itemsize < 4 else chosen) / temperature
    spare = classes - ids.shape[2]

    def among(values: Tensor) -> Tensor:
        # A lowest finite number, not -inf: rows without a label would be nan.
        lowest = torch.finfo(values.dtype).min
        probs = values.masked_fill(~stored, lowest).softmax(dim=2).masked_fill(~stored, 0.0)
        return nn.functional.pad(probs[0], (0, spare)) if spare > 0 else probs[0]

    return among(chosen), among(log_probs.to(chosen.dtype)), (label.teacher[0] >= 0).to(chosen)


def _features_of(block: BlockSimilarity, config: Meal, context: LabelContext) -> dict[str, int]:
    """Return name of a stored feature -> teacher, of all that the block is compared with."""
    found = {}
    for name in context.features:
        teacher, _, array = name.partition("/")
        if config.teaches(teacher) and block.is_compared_with(teacher, array):
            found[name] = context.teachers.index(teacher)
    return found


def _grid(features: Mapping[str, int], context: LabelContext) -> tuple[int, int]:
    """Return the one (height, width) of some stored features."""
    shapes = {name: context.features[name] for name in features}
    if len(set(shapes.values())) != 1 or next(iter(shapes.values()))[0] != 1:
        raise ConfigError(
            "student.objective.blocks",
            [
                "what a block is compared with must have one channel and one grid, got (channels, "
                f"height, width) {shapes}; keep channel_mean maps pooled to one size, or list "
                "TEACHER/ARRAY of each teacher as a block of its own"
            ],
        )
    return next(iter(shapes.values()))[1:]


def _groups(config: Meal, context: LabelContext) -> Tensor:
    """Return (M,) the first teacher with the same support; -1 for one that does not teach."""
    first: dict[tuple[int, ...], int] = {}
    groups = []
    for index, support in enumerate(context.supports):
        group = first.setdefault(tuple(support.tolist()), index)
        named = config.teachers is None or config.teaches(context.teachers[index])
        groups.append(group if named else -1)
    return torch.tensor(groups, dtype=torch.int64)
