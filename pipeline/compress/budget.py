"""Which channels stay so that every block is within its budget.

In: channels that are alive stay; then the weakest of the blocks that cost too much are cut one by
one. Since a channel costs in the blocks of its readers too, a block may lose more than it had to:
of these channels the strongest are put back, as far as all budgets allow. Left out: channels that
are not alive are not put back, so what came out below its budget stays there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.compress.channel_rules import Mask
from pipeline.compress.regulariser import BlockSparsity
from storage_schemas.errors import ConfigError

Floats = npt.NDArray[np.float64]


class _Ledger:
    """What each layer has left, and what each block costs, while channels are cut."""

    def __init__(self, sparsity: BlockSparsity) -> None:
        self._sparsity = sparsity
        groups = sparsity.groups
        self._left: dict[tuple[int, int], int] = {}
        self._touches: list[dict[tuple[int, int], int]] = [{} for _ in range(groups.count)]
        for index, (_, layer) in enumerate(sparsity.layers):
            self._left[index, 0] = 1 if layer.reads is None else len(layer.reads)
            self._left[index, 1] = len(layer.writes)
            for side, members in enumerate((layer.reads, layer.writes)):
                for group in () if members is None else members.tolist():
                    touched = self._touches[group]
                    touched[index, side] = touched.get((index, side), 0) + 1
        self.costs = np.zeros(len(sparsity.blocks))
        for index, (block, _) in enumerate(sparsity.layers):
            self.costs[block] += self._cost(index)

    def _cost(self, index: int) -> int:
        layer = self._sparsity.layers[index][1]
        return self._sparsity.cost(layer, self._left[index, 0], self._left[index, 1])

    def blocks_of(self, group: int) -> set[int]:
        """Return the blocks that a group costs something in."""
        return {self._sparsity.layers[index][0] for index, _ in self._touches[group]}

    def cut(self, group: int) -> bool:
        """Cut a group, unless a layer would be left without channels; tell whether it was."""
        if any(self._left[place] <= count for place, count in self._touches[group].items()):
            return False
        self._change(group, -1)
        return True

    def put_back(self, group: int, limits: Floats) -> bool:
        """Put a group back, unless a block would cost more than its limit; tell whether it was."""
        self._change(group, 1)
        if (self.costs <= limits).all():
            return True
        self._change(group, -1)
        return False

    def _change(self, group: int, sign: int) -> None:
        touched = self._touches[group]
        layers = {index for index, _ in touched}
        for index in layers:
            self.costs[self._sparsity.layers[index][0]] -= self._cost(index)
        for place, count in touched.items():
            self._left[place] += sign * count
        for index in layers:
            self.costs[self._sparsity.layers[index][0]] += self._cost(index)


def full_costs(sparsity: BlockSparsity) -> Floats:
    """Return the (blocks,) cost of the uncut network."""
    return _Ledger(sparsity).costs


def within_budget(sparsity: BlockSparsity, strengths: Floats, shares: Floats) -> Mask:
    """Return which groups stay.

    Args:
        sparsity: Of the network.
        strengths: (groups,) of its scales.
        shares: (blocks,) of the cost of the uncut network that a block may have.

    Raises:
        ConfigError: If a block cannot be made so small; names it and what is possible.
    """
    groups = sparsity.groups
    ledger = _Ledger(sparsity)
    full = ledger.costs.copy()
    limits = shares * full
    keep = np.ones(groups.count, np.bool_)
    order = np.argsort(strengths, kind="stable")
    order = order[~groups.held[order]]
    for group in order[strengths[order] <= sparsity.threshold].tolist():
        keep[group] = not ledger.cut(group)
    waiting = order[keep[order]].tolist()
    for group in waiting:
        above = {int(block) for block in np.flatnonzero(ledger.costs > limits)}
        if above & ledger.blocks_of(group):
            keep[group] = not ledger.cut(group)
    problems = [
        f"{sparsity.blocks[block]}: the budget is {shares[block]:.3f} of its {sparsity.resource}, "
        f"and no less than {ledger.costs[block] / full[block]:.3f} is possible"
        for block in np.flatnonzero(ledger.costs > limits)
    ]
    if problems:
        raise ConfigError("student.objective.budget", problems)
    for group in reversed(waiting):
        if not keep[group]:
            keep[group] = ledger.put_back(group, limits)
    return keep
