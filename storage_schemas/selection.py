"""Which classes of a teacher's answer are kept, and what has to go with that choice.

In: the names of the selections and the settings that each one needs. Left out: the selections
themselves (pipeline.numerics) and how they are stored (soft_labels.py).
"""

from __future__ import annotations

from typing import Final, Literal, Protocol

Selection = Literal["top_k", "top_p", "sampled"]

LARGEST_VALUE: Final = {"compact": 254, "exact": 65_534}
"""The largest valid value of `gaps`, by precision; one more is fill."""


class SelectionSettings(Protocol):
    """The settings that a selection has to go with: of a store, or of a project."""

    @property
    def k(self) -> int: ...  # noqa: D102
    @property
    def activation(self) -> str: ...  # noqa: D102
    @property
    def selection(self) -> Selection: ...  # noqa: D102
    @property
    def top_p(self) -> float | None: ...  # noqa: D102
    @property
    def temperatures(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102


def described(selection: str, k: int, top_p: float | None) -> str:
    """Return what is kept of an answer, in a few words."""
    if selection == "sampled":
        return f"{k} draws"
    return f"top-{k}" if selection == "top_k" else f"top-p {top_p:g}, at most {k}"


def selection_problems(labels: SelectionSettings) -> list[str]:
    """Return one sentence per setting that does not go with the selection."""
    selection, problems = labels.selection, []
    if (selection == "top_p") != (labels.top_p is not None):
        wanted = "in (0, 1]" if selection == "top_p" else "left out"
        problems.append(f"top_p must be {wanted} under selection {selection}, got {labels.top_p}")
    if selection != "top_k" and labels.activation != "softmax":
        problems.append(
            f"selection {selection} needs activation softmax, got {labels.activation}: independent "
            "classes have no common mass to choose by; use top_k"
        )
    if selection == "sampled" and len(labels.temperatures) != 1:
        problems.append(
            "selection sampled needs one temperature, the one at which it draws, got "
            f"{list(labels.temperatures)}"
        )
    largest = LARGEST_VALUE[labels.precision]
    if selection == "sampled" and labels.k > largest:
        problems.append(
            f"selection sampled needs k of at most {largest} with precision {labels.precision}, "
            f"got {labels.k}: one class may take all k draws"
        )
    return problems
