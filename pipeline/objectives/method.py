"""A method: the stages that turn a fresh student into a finished one.

In: `Stage`, one objective trained for some epochs; `Method`, a network and its stages; and what a
method may look at while it is put together. Left out: the loop that runs a stage
(pipeline.training.fit) and the methods themselves, one file per paper.

Most methods are one stage, which `pipeline.objectives.build_method` makes of their objective.
Those of several stages share the student's epochs among them, so that every method takes the
steps of its control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import nn

from pipeline.config import InputConfig, StudentConfig, TrainingConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.objectives.base import LabelContext, Objective
from pipeline.objectives.stored_signals import SignalSource
from storage_schemas.errors import TrainingError

if TYPE_CHECKING:
    from pipeline.models.student import Student


def _unchanged_order(order: BatchOrder) -> BatchOrder:
    return order


def _unchanged_network(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a method.

    Attributes:
        name: Names its folder of checkpoints and its log.
        objective: Its loss, with any parameters of its own.
        epochs: Passes over the rows.
        fused_classifier: Logits and loss of a few rows at a time; for a `Student` with a linear
            head, and an objective that is `SumsOverRows`.
        trains: Prefixes of the network's parameter names that learn; empty string: all.
        order: From the order of a plain epoch to the order of this stage.
        training: Optimizer, schedule and the like; None: those of the student.
        finish: From the trained network to that of the next stage, e.g. with channels cut. Must
            be a pure function of the weights: a resumed run calls it again.
    """

    name: str
    objective: Objective
    epochs: int
    fused_classifier: bool = False
    trains: tuple[str, ...] = ("",)
    order: Callable[[BatchOrder], BatchOrder] = _unchanged_order
    training: TrainingConfig | None = None
    finish: Callable[[nn.Module], nn.Module] = _unchanged_network

    def check_signals(self, provides: frozenset[str]) -> None:
        """Refuse, before any weight is touched, a source that lacks what the objective needs.

        Raises:
            TrainingError: Names the missing signals.
        """
        missing = sorted(self.objective.needs - provides)
        if missing:
            raise TrainingError(
                f"stage {self.name!r}: objective {type(self.objective).__name__} needs "
                f"{sorted(self.objective.needs)}, the signal source provides {sorted(provides)}: "
                f"{missing} missing; {_remedy(missing)}"
            )


def _remedy(missing: list[str]) -> str:
    remedies = {
        "features": "list what to keep of each teacher under teachers[].features and run "
        "`concentrate label`",
        "labels": "sort the images into class folders, or choose an objective without hard labels",
        "soft": "run `concentrate label` first",
    }
    return "; ".join(remedies[name] for name in missing)


@dataclass(frozen=True, kw_only=True)
class MethodInputs:
    """What a method may look at while it is put together.

    Attributes:
        config: Of the student.
        student: Fresh, with its head; what is trained unless the method wraps it.
        context: The label space and the stored features.
        signals: Targets of any training row, e.g. to fit a basis in a streaming pass.
        rows: (N,) ascending rows that are trained on.
        views: Stored views per row.
    """

    config: StudentConfig
    student: Student
    context: LabelContext
    signals: SignalSource
    rows: npt.NDArray[np.int64]
    views: int

    @property
    def input(self) -> InputConfig:
        """What the student takes."""
        return self.config.input


@dataclass(frozen=True, kw_only=True)
class Method:
    """A network and the stages that it goes through.

    Attributes:
        network: What the first stage trains: the student, or a network around it.
        stages: In order.
        student: From the network after the last stage to the student that is kept.
    """

    network: nn.Module
    stages: tuple[Stage, ...]
    student: Callable[[nn.Module], nn.Module] = field(default=_unchanged_network)
