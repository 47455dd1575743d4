"""The sum of several objectives, as one: what a method and the terms added to it train on."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.objectives.base import Objective, StudentOutput, TargetBatch


class SummedObjective(Objective):
    """All terms of its parts; needs and taps what any of them does.

    Args:
        parts: Objectives whose terms have different names.
    """

    def __init__(self, *parts: Objective) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.needs = frozenset().union(*(part.needs for part in parts))
        self.taps = tuple(dict.fromkeys(name for part in parts for name in part.taps))

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the terms of all parts.

        Raises:
            TrainingError: If a target is missing.
            ValueError: If two parts have a term of the same name.
        """
        terms: dict[str, Tensor] = {}
        for part in self.parts:
            found: dict[str, Tensor] = part(output, targets)
            if terms.keys() & found.keys():
                raise ValueError(f"terms must differ, got {sorted(terms.keys() & found.keys())}")
            terms |= found
        return terms
