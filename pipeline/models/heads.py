"""Heads: from pooled features to logits over the whole label space.

In: one dense layer, and the structurally connected head with self-paced scales of Knowledge
Concentration (Gao et al. 2017, arXiv 1711.07607). Left out: SC(s1)-SC(s2), which the paper
measures as larger and worse than FC(s1)-SC(s2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where each class lands in the padded products of the structurally connected head.

    Kept out of the module's buffers, because weight averaging would average these indices too
    and round some of them down by one.

    Attributes:
        vertical_of: (C,) vertical id.
        sizes: (M,) number of classes of each vertical.
        groups: Per group of verticals of similar size, their ids (G,) and their classes
            (G, width), padded with -1.
        position: (C,) index of each class in the concatenated, flattened groups.
    """

    vertical_of: Tensor
    sizes: Tensor
    groups: tuple[tuple[Tensor, Tensor], ...]
    position: Tensor

    @classmethod
    def from_verticals(cls, vertical_of: Tensor) -> _Layout:
        sizes = torch.bincount(vertical_of)
        by_magnitude: dict[int, list[int]] = {}
        for vertical, size in enumerate(sizes.tolist()):
            if size:
                by_magnitude.setdefault(size.bit_length(), []).append(vertical)
        groups = []
        position = torch.empty_like(vertical_of)
        start = 0
        for members in by_magnitude.values():
            width = int(sizes[members].max())
            classes = torch.full((len(members), width), -1, dtype=torch.int64)
            for row, vertical in enumerate(members):
                ids = torch.nonzero(vertical_of == vertical).flatten()
                classes[row, : len(ids)] = ids
                position[ids] = start + row * width + torch.arange(len(ids))
            start += classes.numel()
            groups.append((torch.tensor(members), classes))
        return cls(vertical_of=vertical_of, sizes=sizes, groups=tuple(groups), position=position)

    def to(self, device: torch.device) -> _Layout:
        return _Layout(
            vertical_of=self.vertical_of.to(device),
            sizes=self.sizes.to(device),
            groups=tuple((m.to(device), classes.to(device)) for m, classes in self.groups),
            position=self.position.to(device),
        )


class LinearHead(nn.Module):
    """One dense layer: (B, D) features to (B, C) logits."""

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(feature_dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C) logits."""
        logits: Tensor = self.fc(features)
        return logits

    def metrics(self) -> dict[str, float]:
        """Return nothing: there is nothing to watch."""
        return {}


class StructurallyConnectedHead(nn.Module):
    """FC(s1)-SC(s2, x): a shared layer, then one block of units per vertical.

    Each vertical's logits see its own `block - shared` units and the `shared` units of all.
    Parameters without biases: D s1 + s1 x + s1 (s2 - x) M + s2 C. Of the self-paced form,

        y_v = gamma_v x_v / ||x_v||_2        with x_v the logits of vertical v,

    gamma is learned per vertical or per class and starts at N(m sqrt(N_v), 1e-3), N_v = classes
    of the vertical. It has to grow several-fold, so it takes no weight decay.

    The last layer keeps (C, s2) weights in class order. In the forward pass the verticals are
    multiplied in groups whose sizes differ by less than a factor of 2, each group as one padded
    batched product, so neither the number nor the imbalance of the verticals costs much.

    Args:
        feature_dim: D.
        vertical_of: Vertical id of each class, position = global class id.
        hidden: s1.
        block: s2.
        shared: x, at most s2.
        self_paced: What shares one gamma.
        self_paced_init: m, the multiple of sqrt(N_v) at the start.
    """

    def __init__(
        self,
        feature_dim: int,
        vertical_of: Sequence[int],
        *,
        hidden: int,
        block: int,
        shared: int = 0,
        self_paced: Literal["none", "vertical", "class"] = "none",
        self_paced_init: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= shared <= block:
            raise ValueError(f"shared must be in 0..block ({block}), got {shared}")
        self._layout = _Layout.from_verticals(torch.as_tensor(vertical_of, dtype=torch.int64))
        num_classes, num_verticals = len(vertical_of), len(self._layout.sizes)
        self.num_verticals, self.own = num_verticals, block - shared
        self.fc = nn.Linear(feature_dim, hidden)
        self.own_units = nn.Linear(hidden, num_verticals * self.own) if self.own else None
        self.shared_units = nn.Linear(hidden, shared) if shared else None
        bound = 1 / math.sqrt(block)
        self.weight = nn.Parameter(torch.empty(num_classes, block).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))
        self.self_paced = self_paced
        if self_paced != "none":
            self.gamma = nn.Parameter(torch.normal(self_paced_init * self._gamma_unit(), 1e-3))

    def _layout_on(self, device: torch.device) -> _Layout:
        if self._layout.position.device != device:
            self._layout = self._layout.to(device)
        return self._layout

    def _gamma_unit(self) -> Tensor:
        """Return sqrt(N_v) for each gamma."""
        unit = self._layout.sizes.float().sqrt()
        return unit[self._layout.vertical_of] if self.self_paced == "class" else unit

    def _units(self, features: Tensor) -> Tensor:
        """Return the (M, B, s2) units that each vertical's logits see."""
        hidden = functional.relu(self.fc(features))
        parts = []
        if self.own_units is not None:
            own = functional.relu(self.own_units(hidden))
            parts.append(own.view(-1, self.num_verticals, self.own).transpose(0, 1))
        if self.shared_units is not None:
            shared = functional.relu(self.shared_units(hidden))
            parts.append(shared.expand(self.num_verticals, -1, -1))
        return torch.cat(parts, dim=2)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C) logits in class order for (B, D) features."""
        layout = self._layout_on(features.device)
        units = self._units(features)
        products = []
        for members, classes in layout.groups:
            # index_select: its backward pass is much faster on a CPU than that of indexing.
            rows = classes.clamp(min=0).flatten()
            weight = self.weight.index_select(0, rows).view(*classes.shape, -1)
            bias = self.bias.index_select(0, rows).view(*classes.shape, 1)
            # (G, width, s2) x (G, s2, B)
            seen = units.index_select(0, members).transpose(1, 2)
            product = torch.baddbmm(bias.to(units.dtype), weight, seen)
            if self.self_paced != "none":
                product = product.to(self.gamma.dtype)
                product = product.masked_fill((classes < 0).unsqueeze(2), 0.0)
                product = functional.normalize(product, dim=1)
            products.append(product.flatten(0, 1))
        logits = torch.cat(products).index_select(0, layout.position).t()
        if self.self_paced == "none":
            return logits
        per_class = self.self_paced == "class"
        return logits * (self.gamma if per_class else self.gamma[layout.vertical_of])

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that weight decay must not touch."""
        return {"gamma"} if self.self_paced != "none" else set()

    def metrics(self) -> dict[str, float]:
        """Return the mean growth of gamma as a multiple of sqrt(N_v)."""
        if self.self_paced == "none":
            return {}
        growth = self.gamma.detach().cpu() / self._gamma_unit().cpu()
        return {"gamma_over_sqrt_classes": float(growth.mean())}
