"""The student: one backbone and one head over the whole label space.

In: `Student` and how it is built from its settings. Left out: training (pipeline.training) and
block taps.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.config import LinearHead as LinearHeadConfig
from pipeline.config import StudentConfig
from pipeline.models.builders import build_backbone, probe
from pipeline.models.heads import LinearHead, StructurallyConnectedHead
from pipeline.objectives.base import StudentOutput
from storage_schemas.label_space import LabelSpace


class Student(nn.Module):
    """A backbone and a head.

    Args:
        backbone: (B, channels, S, S) images to (B, D) features.
        head: (B, D) features to (B, C) logits.
    """

    def __init__(self, backbone: nn.Module, head: LinearHead | StructurallyConnectedHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> StudentOutput:
        """Return logits and features of (B, channels, S, S) images."""
        features = self.backbone(images)
        return StudentOutput(logits=self.head(features), features=features)

    def metrics(self) -> dict[str, float]:
        """Return what is worth logging about the weights, e.g. the growth of gamma."""
        return self.head.metrics()


def build_student(config: StudentConfig, space: LabelSpace) -> Student:
    """Build the student for a label space, with random weights from torch's global generator.

    Raises:
        ConfigError: If the builder does not exist, has no final linear layer, or does not take
            images of the configured size and channels.
    """
    backbone, feature_dim = build_backbone(config.builder, config.builder_args)
    probe(backbone, config.input, feature_dim, owner="student")
    if isinstance(config.head, LinearHeadConfig):
        return Student(backbone, LinearHead(feature_dim, len(space)))
    head = StructurallyConnectedHead(
        feature_dim,
        space.vertical_of.tolist(),
        hidden=config.head.hidden,
        block=config.head.block,
        shared=config.head.shared,
        self_paced=config.head.self_paced,
        self_paced_init=config.head.self_paced_init,
    )
    return Student(backbone, head)
