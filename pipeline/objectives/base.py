"""What an objective is: the terms of one loss, what it needs, and what it may own.

In: `StudentOutput`, `TargetBatch`, `LabelContext`, the abstract `Objective`. Left out: any
method (one file per paper) and where targets come from (stored_signals.py).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipeline.numerics.soft_label_batch import SoftLabelBatch


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """What a student returns.

    Attributes:
        logits: (B, C) over the whole label space.
        features: (B, D) pooled features before the head.
        blocks: Tapped block outputs by module name; empty unless a tap was asked for.
    """

    logits: Tensor
    features: Tensor
    blocks: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PeerOutput(StudentOutput):
    """What m peers return for m views of each of n images, B = n * m rows in that order.

    `logits` and `features` of row i * m + j are those of peer j.

    Attributes:
        ensemble: (n, C) logits of the classifier over the features of all peers.
        averaged: (B, C) logits of the mean teachers of the peers; no gradient flows there.
    """

    ensemble: Tensor
    averaged: Tensor


@dataclass(frozen=True, kw_only=True)
class BlockFeatureBatch:
    """What one teacher's block said of B views.

    Attributes:
        values: (B, channels, height, width) float32 after the declared reduction; 0 where absent.
        present: (B,) bool: whether the teacher was run on that row.
    """

    values: Tensor
    present: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> BlockFeatureBatch:
        """Return the features on another device."""
        return BlockFeatureBatch(
            values=self.values.to(device, non_blocking=non_blocking),
            present=self.present.to(device, non_blocking=non_blocking),
        )

    def __getitem__(self, part: slice) -> BlockFeatureBatch:
        """Return the features of some of the B samples, without a copy."""
        return BlockFeatureBatch(values=self.values[part], present=self.present[part])

    def pin_memory(self) -> BlockFeatureBatch:
        """Return the features in page-locked memory."""
        return BlockFeatureBatch(values=self.values.pin_memory(), present=self.present.pin_memory())


@dataclass(frozen=True, kw_only=True)
class TargetBatch:
    """What B samples should become; a field is None where the source does not provide it.

    Attributes:
        labels: (B,) int64 hard labels as global ids.
        partner_labels: (B,) int64 hard labels of the images mixed in, under mixup or cutmix.
        mix_weight: (B,) float32 weight of the first image; 1 where nothing was mixed.
        soft: The teachers' soft labels.
        features: Stored block features by "<teacher>/<array of its feature store>".
        rows: (B,) int64 manifest rows, for methods that know something of each.
    """

    labels: Tensor | None = None
    partner_labels: Tensor | None = None
    mix_weight: Tensor | None = None
    soft: SoftLabelBatch | None = None
    features: Mapping[str, BlockFeatureBatch] | None = None
    rows: Tensor | None = None

    def part(self, part: slice) -> TargetBatch:
        """Return the targets of some of the B samples, without a copy."""
        return self._each(
            lambda one: one.rows(part) if isinstance(one, SoftLabelBatch) else one[part]
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TargetBatch:
        """Return the targets on another device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TargetBatch:
        """Return the targets in page-locked memory, from where a GPU copies while it computes."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> TargetBatch:
        changed: dict[str, Any] = {}
        for name in (one.name for one in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                changed[name] = {key: change(part) for key, part in value.items()}
            elif value is not None:
                changed[name] = change(value)
        return TargetBatch(**changed)


@dataclass(frozen=True, kw_only=True)
class LabelContext:
    """The label space as an objective sees it.

    Attributes:
        num_classes: C.
        vertical_of: (C,) int64 vertical id of each class.
        supports: Per teacher, its (C_t,) ascending global ids.
        teachers: Their names, in that order.
        class_counts: (C,) int64 labelled training rows of each class.
        total_steps: Of the whole run; 0 where there is no run.
        feature_dim: D, the width of the student's features before its head.
        features: (channels, height, width) of each stored block feature, by its name in
            `TargetBatch.features`.
        closure: (C, A) int64 each class and all its is-a ancestors, padded with -1; None where
            no class has parents.
    """

    num_classes: int
    vertical_of: Tensor
    supports: tuple[Tensor, ...]
    teachers: tuple[str, ...] = ()
    class_counts: Tensor | None = None
    feature_dim: int = 0
    total_steps: int = 0
    features: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    closure: Tensor | None = None


class Objective(nn.Module, abc.ABC):
    """A method: from what the student says and what the stores hold to named loss terms.

    Attributes:
        needs: Names of the `TargetBatch` fields that must be present: `labels`, `soft`,
            `features`. Checked against the signal source before any weight is touched.
        taps: Names of the student's modules whose outputs must be in `StudentOutput.blocks`.
        learning_rate: Peak for the parameters that it owns; None: that of the student.
    """

    needs: frozenset[str]
    taps: tuple[str, ...] = ()
    learning_rate: float | None = None

    @abc.abstractmethod
    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return scalar loss terms.

        Keys that end in `_loss` are summed into the total; every other key is a metric.
        """

    def forced(self, targets: TargetBatch) -> dict[str, Tensor]:
        """Return what blocks hand on in place of their own outputs, by name; usually nothing.

        Only a network whose forward takes them, e.g. `AdaptedStudent`, may be trained so.
        """
        return {}


@runtime_checkable
class SumsOverRows(Protocol):
    """An objective each of whose terms is a sum over rows, divided by a count of rows.

    A row's part depends on its own logits and targets alone, so that the logits of a batch need
    not exist at one time.
    """

    def row_counts(self, targets: TargetBatch) -> dict[str, Tensor]:
        """Return (B,) what each row counts in each term.

        Raises:
            TrainingError: If a target is missing.
        """

    def row_terms(self, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Return (B,) what each row adds to each term, 0 where it does not count.

        Raises:
            TrainingError: If a target is missing.
        """


def total_loss(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of all terms whose name ends in `_loss`."""
    return torch.stack([value for name, value in terms.items() if name.endswith("_loss")]).sum()
