"""`SoftLabelBatch`: what a loss sees of the stored soft labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SoftLabelBatch:
    """Sparse soft labels of B samples from up to T teachers each.

    T is the number of teachers per row: 1 when each specialist labels its own rows.

    Attributes:
        ids: (T, B, K) int64 global class ids, most probable first; -1 where none.
        log_probs: (T, B, K) float32; -inf where none. Under sigmoid labels, log sigmoid(logit).
        log_tail: (T, B) float32 log of the support's mass outside `ids`; -inf where there is none.
        teacher: (T, B) int64 index into the tuple of teachers; -1 where none.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor
    teacher: Tensor

    def __post_init__(self) -> None:
        t, b, k = self.ids.shape
        if self.log_probs.shape != (t, b, k) or self.log_tail.shape != (t, b):
            raise ValueError(
                f"log_probs must be {(t, b, k)} and log_tail {(t, b)}, got "
                f"{tuple(self.log_probs.shape)} and {tuple(self.log_tail.shape)}"
            )
        if self.teacher.shape != (t, b):
            raise ValueError(f"teacher must be {(t, b)}, got {tuple(self.teacher.shape)}")

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> SoftLabelBatch:
        """Return the batch on another device."""
        return SoftLabelBatch(
            ids=self.ids.to(device, non_blocking=non_blocking),
            log_probs=self.log_probs.to(device, non_blocking=non_blocking),
            log_tail=self.log_tail.to(device, non_blocking=non_blocking),
            teacher=self.teacher.to(device, non_blocking=non_blocking),
        )

    def rows(self, part: slice) -> SoftLabelBatch:
        """Return some of the B samples, without a copy."""
        return SoftLabelBatch(
            ids=self.ids[:, part],
            log_probs=self.log_probs[:, part],
            log_tail=self.log_tail[:, part],
            teacher=self.teacher[:, part],
        )

    def pin_memory(self) -> SoftLabelBatch:
        """Return the batch in page-locked memory."""
        return SoftLabelBatch(
            ids=self.ids.pin_memory(),
            log_probs=self.log_probs.pin_memory(),
            log_tail=self.log_tail.pin_memory(),
            teacher=self.teacher.pin_memory(),
        )
