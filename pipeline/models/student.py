"""The student: one backbone and one head over the whole label space.

In: `Student`, the outputs of its blocks that an objective asked for, the channels that were cut
out of it, and how it is built from its settings. Left out: training (pipeline.training).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pipeline.compress.surgery import KeptChannels, Structure, cut_channels, first_channels
from pipeline.config import LinearHead as LinearHeadConfig
from pipeline.config import StudentConfig
from pipeline.models.builders import build_backbone, probe
from pipeline.models.heads import LinearHead, StructurallyConnectedHead, start_rare
from pipeline.models.taps import BlockTaps, unknown_blocks
from pipeline.objectives.base import StudentOutput
from storage_schemas.errors import ConfigError
from storage_schemas.label_space import LabelSpace

_SHOWN_DEPTH = 2  # of module names that an error lists


class Student(nn.Module):
    """A backbone and a head.

    Args:
        backbone: (B, channels, S, S) images to (B, D) features.
        head: (B, D) features to (B, C) logits.
        feature_dim: D.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: LinearHead | StructurallyConnectedHead,
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.feature_dim = feature_dim
        self.structure: Structure = {}
        self._taps = BlockTaps(backbone, ())

    def forward(self, images: Tensor) -> StudentOutput:
        """Return logits, features and tapped blocks of (B, channels, S, S) images."""
        features = self.features(images)
        blocks = self._taps.take()
        return StudentOutput(logits=self.head(features), features=features, blocks=blocks)

    def features(self, images: Tensor) -> Tensor:
        """Return the (B, D) features that the head reads."""
        features: Tensor = self.backbone(images)
        return features

    def tap(self, names: Sequence[str]) -> None:
        """Choose whose outputs are in `StudentOutput.blocks` from now on.

        Args:
            names: Modules of the backbone, as `named_modules` calls them; none: no taps.

        Raises:
            ConfigError: If the backbone has no such module; lists those it has.
        """
        problems = unknown_blocks(self.backbone, names)
        if problems:
            raise ConfigError("student.objective: blocks", problems)
        self._taps.close()
        self._taps = BlockTaps(self.backbone, names)

    def cut(self, kept: Mapping[str, KeptChannels]) -> None:
        """Keep only some channels of some modules, in place; `structure` says what is left.

        Raises:
            ValueError: If there is no such module, or it has not these channels.
        """
        cut_channels(self, kept)
        widths = {name: (len(one.reads), len(one.writes)) for name, one in kept.items()}
        self.structure = {**self.structure, **widths}
        if isinstance(self.head, LinearHead):
            self.feature_dim = self.head.fc.in_features

    def metrics(self) -> dict[str, float]:
        """Return what is worth logging about the weights, e.g. the growth of gamma."""
        return self.head.metrics()


def build_student(
    config: StudentConfig, space: LabelSpace, structure: Structure | None = None
) -> Student:
    """Build the student for a label space, with random weights from torch's global generator.

    Args:
        config: Builder, head and input.
        space: All classes.
        structure: Channels of the modules that were cut; see `Student.structure`.

    Raises:
        ConfigError: If the builder does not exist, has no final linear layer, or does not take
            images of the configured size and channels.
        ValueError: If the structure does not fit the network.
    """
    student = _uncut(config, space)
    if structure:
        student.cut(first_channels(structure))
    return student


def _uncut(config: StudentConfig, space: LabelSpace) -> Student:
    backbone, feature_dim = build_backbone(config.builder, config.builder_args)
    probe(backbone, config.input, feature_dim, owner="student")
    sigmoid = config.objective.activation == "sigmoid"
    if isinstance(config.head, LinearHeadConfig):
        linear = LinearHead(feature_dim, len(space))
        if sigmoid:
            start_rare(linear, len(space))
        return Student(backbone, linear, feature_dim)
    head = StructurallyConnectedHead(
        feature_dim,
        space.vertical_of.tolist(),
        hidden=config.head.hidden,
        block=config.head.block,
        connection=config.head.connection,
        shared=config.head.shared,
        self_paced=config.head.self_paced,
        self_paced_init=config.head.self_paced_init or (math.log(len(space)) if sigmoid else 1.0),
        self_paced_rate=config.head.self_paced_rate,
        normalization=config.head.normalization,
    )
    if sigmoid:
        head.start_rare()
    return Student(backbone, head, feature_dim)
