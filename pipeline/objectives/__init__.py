"""Objectives: one file per method, chosen by name.

`OBJECTIVES` has the loss of every method that is one stage. `METHODS` has those of several stages,
and those that train another network than the student alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import ObjectiveConfig
from pipeline.objectives.amalgamation import amalgamation
from pipeline.objectives.base import LabelContext, Objective
from pipeline.objectives.hard_labels import HardLabelObjective
from pipeline.objectives.knowledge_concentration import KnowledgeConcentrationObjective
from pipeline.objectives.method import Method, MethodInputs, Stage
from pipeline.objectives.soft_labels import SoftLabelObjective

OBJECTIVES: dict[str, Callable[[Any, LabelContext], Objective]] = {
    "hard_labels": HardLabelObjective,
    "soft_labels": SoftLabelObjective,
    "knowledge_concentration": KnowledgeConcentrationObjective,
}

METHODS: dict[str, Callable[[Any, MethodInputs], Method]] = {
    "amalgamation": amalgamation,
}


def build_objective(config: ObjectiveConfig, context: LabelContext) -> Objective:
    """Return the objective that the settings name, for one label space."""
    return OBJECTIVES[config.name](config, context)


def build_method(inputs: MethodInputs, name: str) -> Method:
    """Return the method that the student's settings name.

    Args:
        inputs: What it may look at.
        name: Of its stage where it has only one.
    """
    config = inputs.config.objective
    if config.name in METHODS:
        return METHODS[config.name](config, inputs)
    objective = build_objective(config, inputs.context)
    stage = Stage(name=name, objective=objective, epochs=inputs.config.epochs)
    return Method(network=inputs.student, stages=(stage,))


__all__ = [
    "METHODS",
    "OBJECTIVES",
    "LabelContext",
    "Method",
    "MethodInputs",
    "Objective",
    "Stage",
    "build_method",
    "build_objective",
]
