"""The project file: one YAML file as frozen pydantic models.

In: every setting of every stage with its bounds and default, overrides by dotted key, and a
loader that reports all problems at once. Left out: looking at disks and data (the stages do
that) and any import of torch, so that the command line starts fast.

Relative paths are relative to the project file.
"""

from pipeline.config.data import (
    DataConfig,
    GlyphData,
    ImageFolderData,
    LabelNoise,
    PythonData,
    TorchvisionData,
)
from pipeline.config.features import DictionaryConfig, FeatureConfig
from pipeline.config.loading import load_project
from pipeline.config.methods import (
    Adversarial,
    AmalgamatedLayer,
    Amalgamation,
    BlockSimilarity,
    Compact,
    ComparedBlock,
    Meal,
    PeerCollaborative,
    SparseRepresentation,
)
from pipeline.config.objectives import (
    Balanced,
    Curriculum,
    HardLabels,
    KnowledgeConcentration,
    MultiLabel,
    ObjectiveConfig,
    OnlineSubclass,
    OnlineSubclassTerm,
    SoftLabels,
)
from pipeline.config.project import Project, ReportConfig, RuntimeConfig
from pipeline.config.student import LinearHead, StructurallyConnectedHead, StudentConfig
from pipeline.config.teachers import LabelConfig, SpecialistConfig, TeacherConfig, VerticalClasses
from pipeline.config.training import (
    AdamWConfig,
    InputConfig,
    ScheduleConfig,
    SGDConfig,
    TrainingConfig,
)

__all__ = [
    "AdamWConfig",
    "Adversarial",
    "AmalgamatedLayer",
    "Amalgamation",
    "Balanced",
    "BlockSimilarity",
    "Compact",
    "ComparedBlock",
    "Curriculum",
    "DataConfig",
    "DictionaryConfig",
    "FeatureConfig",
    "GlyphData",
    "HardLabels",
    "ImageFolderData",
    "InputConfig",
    "KnowledgeConcentration",
    "LabelConfig",
    "LabelNoise",
    "LinearHead",
    "Meal",
    "MultiLabel",
    "ObjectiveConfig",
    "OnlineSubclass",
    "OnlineSubclassTerm",
    "PeerCollaborative",
    "Project",
    "PythonData",
    "ReportConfig",
    "RuntimeConfig",
    "SGDConfig",
    "ScheduleConfig",
    "SoftLabels",
    "SparseRepresentation",
    "SpecialistConfig",
    "StructurallyConnectedHead",
    "StudentConfig",
    "TeacherConfig",
    "TorchvisionData",
    "TrainingConfig",
    "VerticalClasses",
    "load_project",
]
