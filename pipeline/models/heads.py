"""Heads: from pooled features to logits over the whole label space.

In: one dense layer, and the heads of Knowledge Concentration (Gao et al. 2017, arXiv 1711.07607):
dense and structurally connected layers, with self-paced scales. Left out: the convolution that the
paper's layers may be; features are pooled here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_RARE_WEIGHTS = 0.25
Normalization = Literal["batch", "layer"]


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


def start_rare(network: nn.Module, num_classes: int) -> None:
    """Start a classifier from probability 1 / C for every class, under a sigmoid.

    From 1 / 2 the first steps of a loss that is summed over classes go into pushing all of them
    down (Lin et al. 2017, arXiv 1708.02002, section 3.3).

    Args:
        network: Left as it is where its last linear layer has no bias or other outputs.
        num_classes: C.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if linear and linear[-1].out_features == num_classes and linear[-1].bias is not None:
        nn.init.constant_(linear[-1].bias, -math.log(num_classes))


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


class _HiddenLayer(nn.Module):
    """Dense layers side by side, each normalised, then ReLU.

    (inputs, B, D) to (outputs, B, width): every layer sees the one input, or each its own.
    """

    def __init__(
        self, dim: int, width: int, *, outputs: int, inputs: int, normalization: Normalization
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.width = inputs, outputs, width
        self.dense = nn.Linear(dim, outputs * width, bias=False)
        nn.init.kaiming_normal_(self.dense.weight, nonlinearity="relu")
        self.norm: nn.Module = (
            nn.BatchNorm1d(outputs * width)
            if normalization == "batch"
            else nn.GroupNorm(outputs, outputs * width)  # each layer of each image on its own
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs == 1:
            y = self.dense(x[0])
        else:
            weight = self.dense.weight.view(self.outputs, self.width, -1).transpose(1, 2)
            y = torch.bmm(x, weight).transpose(0, 1).flatten(1)
        units = functional.relu(self.norm(y))
        return units.view(-1, self.outputs, self.width).transpose(0, 1)


class StructurallyConnectedHead(nn.Module):
    """Two hidden layers, each dense (FC) or connected by vertical (SC), then the logits.

    | connection | parameters without biases and normalisation |
    | --- | --- |
    | `fc_fc` | D s1 + s1 s2 + s2 C |
    | `fc_sc` | D s1 + s1 x + s1 (s2 - x) M + s2 C |
    | `sc_sc` | D s1 M + s1 s2 M + s2 C |

    In FC(s1)-SC(s2, x), the paper's best, each vertical's logits see its own `block - shared` units
    and the `shared` units of all. Of the self-paced form,

        y_v = gamma_v x_v / ||x_v||_2        with x_v the logits of vertical v,

    gamma is learned per vertical or per class and starts at N(m sqrt(N_v), 1e-3), N_v = classes
    of the vertical. It has to grow several-fold, so it takes no weight decay and is kept as
    rate * sqrt(N_v) * `pace`: under Adam, whose steps have the size of the learning rate, gamma
    then moves `rate` learning rates of its unit in a step. At rate 1 it would need thousands of
    steps. README.md of this package has the measurements.

    Hidden layers start as in He et al. 2015 (arXiv 1502.01852) and are batch-normalised, as all
    layers of the paper's Inception-V2 are; `layer` normalises each block of each image on its own
    (GroupNorm, Wu and He 2018, arXiv 1803.08494), which no other image of the batch and no other
    process has a part in.

    The last layer keeps (C, s2) weights in class order. In the forward pass the verticals are
    multiplied in groups whose sizes differ by less than a factor of 2, each group as one padded
    batched product, so neither the number nor the imbalance of the verticals costs much.

    Args:
        feature_dim: D.
        vertical_of: Vertical id of each class, position = global class id.
        hidden: s1.
        block: s2.
        connection: Which of the two hidden layers are connected by vertical.
        shared: x, at most s2; only for `fc_sc`.
        self_paced: What shares one gamma.
        self_paced_init: m, the multiple of sqrt(N_v) at the start.
        self_paced_rate: How many learning rates gamma / sqrt(N_v) moves in a step of Adam.
        normalization: Of the hidden layers.
    """

    def __init__(
        self,
        feature_dim: int,
        vertical_of: Sequence[int],
        *,
        hidden: int,
        block: int,
        connection: Literal["fc_fc", "fc_sc", "sc_sc"] = "fc_sc",
        shared: int = 0,
        self_paced: Literal["none", "vertical", "class"] = "none",
        self_paced_init: float = 1.0,
        self_paced_rate: float = 10.0,
        normalization: Normalization = "batch",
    ) -> None:
        super().__init__()
        if not 0 <= shared <= block:
            raise ValueError(f"shared must be in 0..block ({block}), got {shared}")
        if shared and connection != "fc_sc":
            raise ValueError(f"shared must be 0 for {connection}, got {shared}")
        self._layout = _Layout.from_verticals(torch.as_tensor(vertical_of, dtype=torch.int64))
        num_classes, num_verticals = len(vertical_of), len(self._layout.sizes)
        shared = block if connection == "fc_fc" else shared
        self.num_verticals, self.own = num_verticals, block - shared
        parts = num_verticals if connection == "sc_sc" else 1
        layer = functools.partial(_HiddenLayer, normalization=normalization)
        self.hidden_layer = layer(feature_dim, hidden, outputs=parts, inputs=1)
        self.own_units = (
            layer(hidden, self.own, outputs=num_verticals, inputs=parts) if self.own else None
        )
        self.shared_units = layer(hidden, shared, outputs=1, inputs=1) if shared else None
        bound = 1 / math.sqrt(block)
        self.weight = nn.Parameter(torch.empty(num_classes, block).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))
        self.self_paced, self.self_paced_rate = self_paced, self_paced_rate
        if self_paced != "none":
            noise = torch.normal(torch.zeros_like(self._gamma_unit()), 1e-3) / self._gamma_unit()
            self.pace = nn.Parameter((self_paced_init + noise) / self_paced_rate)

    def start_rare(self) -> None:
        """Start from a small probability of every class, under a sigmoid.

        Without scales it is 1 / C. With scales the bias says only that all logits of a vertical
        are equal and negative; gamma says how much, so that they start near -m. The weights then
        start small, or gamma would make too much of their noise.
        """
        scaled = self.self_paced != "none"
        nn.init.constant_(self.bias, -1.0 if scaled else -math.log(len(self.bias)))
        if scaled:
            with torch.no_grad():
                self.weight.mul_(_RARE_WEIGHTS)

    def _layout_on(self, device: torch.device) -> _Layout:
        if self._layout.position.device != device:
            self._layout = self._layout.to(device)
        return self._layout

    def _gamma_unit(self) -> Tensor:
        """Return sqrt(N_v) for each gamma."""
        unit = self._layout.sizes.float().sqrt()
        return unit[self._layout.vertical_of] if self.self_paced == "class" else unit

    @property
    def gamma(self) -> Tensor:
        """The scales: (M,) per vertical, or (C,) per class."""
        return self.self_paced_rate * self._gamma_unit().to(self.pace.device) * self.pace

    def _units(self, features: Tensor) -> Tensor:
        """Return the (M, B, s2) units that each vertical's logits see."""
        hidden = self.hidden_layer(features.unsqueeze(0))
        parts = []
        if self.own_units is not None:
            parts.append(self.own_units(hidden))
        if self.shared_units is not None:
            parts.append(self.shared_units(hidden).expand(self.num_verticals, -1, -1))
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
                product = product.to(self.pace.dtype)
                product = product.masked_fill((classes < 0).unsqueeze(2), 0.0)
                product = functional.normalize(product, dim=1)
            products.append(product.flatten(0, 1))
        logits = torch.cat(products).index_select(0, layout.position).t()
        if self.self_paced == "none":
            return logits
        gamma = self.gamma
        return logits * (gamma if self.self_paced == "class" else gamma[layout.vertical_of])

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that weight decay must not touch."""
        return {"pace"} if self.self_paced != "none" else set()

    def metrics(self) -> dict[str, float]:
        """Return the mean growth of gamma as a multiple of sqrt(N_v)."""
        if self.self_paced == "none":
            return {}
        growth = self.self_paced_rate * self.pace.detach()
        return {"gamma_over_sqrt_classes": float(growth.mean())}
