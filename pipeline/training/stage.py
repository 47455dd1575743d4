"""A stage: one objective, trained for some epochs, on some of the student's parameters.

A method is a tuple of stages run in order by the one `fit` (DESIGN section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.objectives.base import Objective
from storage_schemas.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a method.

    Attributes:
        name: Names its folder of checkpoints and its log.
        objective: Its loss, with any parameters of its own.
        epochs: Passes over the rows.
        trains: Prefixes of the student's parameter names that learn; empty string: all.
    """

    name: str
    objective: Objective
    epochs: int
    trains: tuple[str, ...] = ("",)

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
                f"{missing} missing; run `concentrate label` first"
            )
