"""`SupportTable`: which global classes each teacher can name, as one padded table.

In: the table. Left out: losses (divergences.py). With it one gather serves a batch whose rows
belong to different teachers, without a loop over teachers and without a wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SupportTable:
    """The supports of M teachers.

    Attributes:
        ids: (M, S) int64 ascending global ids, S = size of the largest support; padded with
            `num_classes`.
        sizes: (M,) int64 number of classes of each support.
        num_classes: C.
        columns: (M, S) int64, `ids` with 0 for padding: what can be gathered.
        inside: (M, S) float32, 1 for a class and 0 for padding.
        whole: Whether every support has all classes, so that nothing has to be looked up.
    """

    ids: Tensor
    sizes: Tensor
    num_classes: int
    columns: Tensor
    inside: Tensor
    whole: bool

    @classmethod
    def from_supports(cls, supports: Sequence[Tensor], num_classes: int) -> SupportTable:
        """Build the table from ascending (C_t,) global ids per teacher.

        Raises:
            ValueError: If a support is empty, not strictly ascending, or outside 0..C-1.
        """
        for position, support in enumerate(supports):
            if support.ndim != 1 or len(support) == 0:
                raise ValueError(
                    f"support {position} must be a non-empty (C_t,) tensor, got shape "
                    f"{tuple(support.shape)}"
                )
            inside = int(support[0]) >= 0 and int(support[-1]) < num_classes
            if not (inside and bool((support[1:] > support[:-1]).all())):
                raise ValueError(
                    f"support {position} must hold strictly ascending ids in 0..{num_classes - 1}"
                )
        sizes = [len(support) for support in supports]
        ids = torch.full((len(sizes), max(sizes, default=0)), num_classes, dtype=torch.int64)
        for position, support in enumerate(supports):
            ids[position, : len(support)] = support
        return cls(
            ids=ids,
            sizes=torch.tensor(sizes, dtype=torch.int64),
            num_classes=num_classes,
            columns=ids.masked_fill(ids == num_classes, 0),
            inside=(ids < num_classes).float(),
            whole=all(size == num_classes for size in sizes),
        )

    def to(self, device: torch.device | str) -> SupportTable:
        """Return the table on another device."""
        return SupportTable(
            ids=self.ids.to(device),
            sizes=self.sizes.to(device),
            num_classes=self.num_classes,
            columns=self.columns.to(device),
            inside=self.inside.to(device),
            whole=self.whole,
        )

    def sizes_of(self, teacher: Tensor) -> Tensor | int:
        """Return the (...) sizes of the supports of (...) teachers, one number if all are whole."""
        return self.num_classes if self.whole else self.sizes[teacher.clamp(min=0)]

    def rows(self, teacher: Tensor) -> Tensor:
        """Return the (..., S) padded supports of (...) teachers; -1 counts as teacher 0."""
        return self.ids[teacher.clamp(min=0)]
