"""Objectives: one file per method, chosen by name.

`OBJECTIVES` has the loss of every method that is one stage. `METHODS` has those of several stages,
and those that train another network than the student alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import ObjectiveConfig, StudentConfig
from pipeline.objectives.amalgamation import amalgamation
from pipeline.objectives.balanced import BalancedObjective
from pipeline.objectives.base import LabelContext, Objective
from pipeline.objectives.compact import compact
from pipeline.objectives.curriculum import curriculum_order
from pipeline.objectives.hard_labels import HardLabelObjective
from pipeline.objectives.knowledge_concentration import KnowledgeConcentrationObjective
from pipeline.objectives.meal import MealObjective
from pipeline.objectives.method import Method, MethodInputs, Stage
from pipeline.objectives.multi_label import MultiLabelObjective
from pipeline.objectives.online_subclass import OnlineSubclassObjective, SubclassTerm
from pipeline.objectives.peer_collaborative import peer_collaborative_method
from pipeline.objectives.soft_labels import SoftLabelObjective
from pipeline.objectives.sparse_representation import sparse_representation
from pipeline.objectives.summed import SummedObjective
from storage_schemas.errors import ConfigError

OBJECTIVES: dict[str, Callable[[Any, LabelContext], Objective]] = {
    "hard_labels": HardLabelObjective,
    "multi_label": MultiLabelObjective,
    "soft_labels": SoftLabelObjective,
    "knowledge_concentration": KnowledgeConcentrationObjective,
    "meal": MealObjective,
    "online_subclass": OnlineSubclassObjective,
    "balanced": BalancedObjective,
}

METHODS: dict[str, Callable[[Any, MethodInputs], Method]] = {
    "amalgamation": amalgamation,
    "compact": compact,
    "peer_collaborative": peer_collaborative_method,
    "sparse_representation": sparse_representation,
}


def build_objective(config: ObjectiveConfig, context: LabelContext) -> Objective:
    """Return the objective that the settings name, for one label space."""
    return OBJECTIVES[config.name](config, context)


def build_student_objective(config: StudentConfig, context: LabelContext) -> Objective:
    """Return the student's objective, with the terms that its settings add to it."""
    objective = build_objective(config.objective, context)
    if not config.auxiliary:
        return objective
    return SummedObjective(objective, *(SubclassTerm(term, context) for term in config.auxiliary))


def build_method(inputs: MethodInputs, name: str) -> Method:
    """Return the method that the student's settings name.

    Args:
        inputs: What it may look at.
        name: Of its stage where it has only one.

    Raises:
        ConfigError: If terms or a curriculum are to be added to a method that takes none.
        TrainingError: If the signals do not tell how difficult a row is.
    """
    config = inputs.config.objective
    if config.name in METHODS:
        for setting in ("auxiliary", "curriculum"):
            if getattr(inputs.config, setting):
                raise ConfigError(f"student.{setting}", [f"cannot be added to {config.name!r}"])
        return METHODS[config.name](config, inputs)
    objective = build_student_objective(inputs.config, inputs.context)
    stage = Stage(
        name=name,
        objective=objective,
        epochs=inputs.config.epochs,
        fused_classifier=inputs.config.fused_classifier,
        order=curriculum_order(inputs),
    )
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
    "build_student_objective",
]
