"""Peers of one student: they share its network but for one stage and the classifier.

In: `PeerStudent`, which shows each peer a view of its own of every image, the classifier over all
peers' features, the moving average of all of it, and how one peer becomes a plain student. Left
out: what the peers learn by (pipeline.objectives.peer_collaborative).

The stage is replaced in place by one that sends row i * m + j to peer j: the rest of the network
runs once over the batch, whatever its code looks like. Whatever comes after the stage, up to the
features, is shared as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.models.student import Student
from pipeline.objectives.base import PeerOutput
from storage_schemas.errors import ConfigError

_SHOWN_DEPTH = 2  # of module names that an error lists


class _Peers(nn.Module):
    """Sends row i * m + j of a batch to module j of m; rows come back in their order."""

    def __init__(self, peers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.peers = nn.ModuleList(peers)

    def forward(self, rows: Tensor) -> Tensor:
        count = len(self.peers)
        if len(rows) % count:
            raise ValueError(f"a batch must have {count} views of each image, got {len(rows)} rows")
        found = [peer(rows[index::count]) for index, peer in enumerate(self.peers)]
        return torch.stack(found, dim=1).flatten(0, 1)


class _PeerNetwork(nn.Module):
    """Backbone with a stage for each peer, their classifiers, and that of the ensemble."""

    def __init__(self, backbone: nn.Module, heads: _Peers, ensemble: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.heads, self.ensemble = backbone, heads, ensemble

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D) features and (B, C) logits of the peers."""
        features = self.backbone(images)
        return features, self.heads(features)


class PeerStudent(nn.Module):
    """The peers, and their moving average, which trains nothing.

    In training, each call first moves the average towards the weights that the last step left,
    with decay min(1 - 1 / (t + 1), `decay`) at call t. Batch statistics are averaged like weights,
    and the average normalises with those. All of it is in the state dict, so a resumed run goes
    on with the same average.

    Args:
        student: Peer 0; taken over.
        new_backbone: Returns a fresh backbone of the same kind, of which a peer takes the stage.
        peers: m, at least 2.
        stage: Name of the module that each peer has of its own.
        num_classes: C.
        decay: Of the average, at its largest.

    Raises:
        ConfigError: If the backbone has no such module; lists those it has.
    """

    updates: Tensor

    def __init__(
        self,
        student: Student,
        new_backbone: Callable[[], nn.Module],
        *,
        peers: int,
        stage: str,
        num_classes: int,
        decay: float,
    ) -> None:
        super().__init__()
        self.stage, self.decay, self.feature_dim = stage, decay, student.feature_dim
        modules = dict(student.backbone.named_modules())
        if not stage or stage not in modules:
            known = [name for name in modules if name and name.count(".") < _SHOWN_DEPTH]
            raise ConfigError(
                "student.objective.stage",
                [f"must be a module of the backbone, one of {known}, got {stage!r}"],
            )
        others = [new_backbone().get_submodule(stage) for _ in range(peers - 1)]
        backbone = student.backbone
        backbone.set_submodule(stage, _Peers([modules[stage], *others]))
        heads = [student.head, *(copy.deepcopy(student.head) for _ in others)]
        for head in heads[1:]:
            for module in head.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        ensemble = nn.Linear(peers * student.feature_dim, num_classes)
        self.network = _PeerNetwork(backbone, _Peers(heads), ensemble)
        self.average = copy.deepcopy(self.network)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.train()

    def train(self, mode: bool = True) -> PeerStudent:
        """Set the mode of the peers; the average always normalises with its own statistics."""
        super().train(mode)
        self.average.eval()
        return self

    def forward(self, images: Tensor) -> PeerOutput:
        """Return what all peers say of (n * m, channels, S, S) images, m views of each in turn."""
        if self.training:
            self._update()
        features, logits = self.network(images)
        with torch.no_grad():
            _, averaged = self.average(images)
        together = features.reshape(-1, self.network.ensemble.in_features)
        return PeerOutput(
            logits=logits,
            features=features,
            ensemble=self.network.ensemble(together),
            averaged=averaged,
        )

    @torch.no_grad()
    def _update(self) -> None:
        decay = (1 - 1 / (self.updates + 1)).clamp(max=self.decay)
        new = self.network.state_dict()
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(new[name].to(mean.dtype), (1 - decay).to(mean.dtype))
            else:
                mean.copy_(new[name])
        self.updates += 1

    def peer(self, index: int = 0) -> Student:
        """Return the average of one peer as a student of its own."""
        network = copy.deepcopy(self.average)
        backbone = network.backbone
        peers = backbone.get_submodule(self.stage)
        assert isinstance(peers, _Peers)
        backbone.set_submodule(self.stage, peers.peers[index])
        head = network.heads.peers[index]
        return Student(backbone, head, self.feature_dim)  # type: ignore[arg-type]
