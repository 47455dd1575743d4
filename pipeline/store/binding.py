"""Whether a published store is the one that a project asks for.

In: every field in which the two differ, as sentences. Left out: which labels there are
(coverage.py). A student checks this without a teacher.
"""

from __future__ import annotations

from typing import Any

from pipeline.config import Project, TeacherConfig
from pipeline.data.class_lists import label_map_of
from pipeline.data.routing import split_labels, split_recipe
from storage_schemas.block_features import BlockFeatureSchema
from storage_schemas.fingerprint import file_digest
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import Manifest
from storage_schemas.soft_label_schema import SoftLabelSchema, class_problems, dict_problems


def store_differences(
    project: Project,
    config: TeacherConfig,
    space: LabelSpace,
    manifest: Manifest,
    split: int,
    found: SoftLabelSchema,
) -> list[str]:
    """Return one sentence per field in which a store is not the one that the project asks for.

    The teacher's weights are compared where they are: a machine that only trains need not have
    them.
    """
    kept = split_labels(project, split, found.num_classes)
    pairs: dict[str, tuple[Any, Any]] = {
        field: (expected, getattr(found, field)) for field, expected in kept.items()
    }
    problems = [
        f"{field} must be {expected}, got {got}"
        for field, (expected, got) in pairs.items()
        if expected != got
    ]
    problems += class_problems(label_map_of(config, space).names, found.classes)
    return problems + _made_for_another(project, config, manifest, split, found)


def feature_differences(
    project: Project,
    config: TeacherConfig,
    manifest: Manifest,
    split: int,
    found: BlockFeatureSchema,
) -> list[str]:
    """Return one sentence per field in which block features are not those that are asked for."""
    expected, got = (
        {f"{part['block']} {part['reduce']}": part for part in parts}
        for parts in (
            [feature.parts for feature in config.features],
            found.fingerprint_parts.get("features", []),
        )
    )
    problems = dict_problems("features", expected, got)
    return problems + _made_for_another(project, config, manifest, split, found)


def _made_for_another(
    project: Project,
    config: TeacherConfig,
    manifest: Manifest,
    split: int,
    found: SoftLabelSchema | BlockFeatureSchema,
) -> list[str]:
    """Return what of recipe, teacher and images is another one."""
    recipe = split_recipe(project, split).model_dump(mode="json")
    problems = dict_problems("recipe", recipe, found.recipe)
    teacher: dict[str, Any] = {
        "builder": config.builder,
        "builder_args": config.builder_args,
        "input": config.input.model_dump(mode="json"),
        "routing": config.routing,
    }
    if config.weights is not None and config.weights.is_file():
        teacher["weights"] = file_digest(config.weights)
    said = {name: found.fingerprint_parts.get(name, teacher[name]) for name in teacher}
    problems += dict_problems("teacher", teacher, said)
    if not manifest.has_prefix(found.manifest_chain, found.manifest_rows):
        problems.append(
            f"made for other images: the manifest must begin with the {found.manifest_rows} rows "
            f"of chain {found.manifest_chain[:12]}, and does not"
        )
    return problems
