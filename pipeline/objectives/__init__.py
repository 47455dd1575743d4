"""Objectives: one file per method, chosen by name from `OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import ObjectiveConfig
from pipeline.objectives.base import LabelContext, Objective
from pipeline.objectives.hard_labels import HardLabelObjective
from pipeline.objectives.knowledge_concentration import KnowledgeConcentrationObjective
from pipeline.objectives.soft_labels import SoftLabelObjective

OBJECTIVES: dict[str, Callable[[Any, LabelContext], Objective]] = {
    "hard_labels": HardLabelObjective,
    "soft_labels": SoftLabelObjective,
    "knowledge_concentration": KnowledgeConcentrationObjective,
}


def build_objective(config: ObjectiveConfig, context: LabelContext) -> Objective:
    """Return the objective that the settings name, for one label space."""
    return OBJECTIVES[config.name](config, context)


__all__ = ["OBJECTIVES", "LabelContext", "Objective", "build_objective"]
