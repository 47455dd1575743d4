"""What must fit together between the parts of a project file.

In: one check a function, each with all its problems. Left out: what a part can check of itself (the
models) and what only the data can tell (the stages).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.config.methods import Meal, SparseRepresentation

if TYPE_CHECKING:
    from pipeline.config.project import Project


def problems(project: Project) -> list[str]:
    """Return one sentence for everything that does not fit."""
    return [problem for check in _CHECKS for problem in check(project)]


def _teachers_have_names(project: Project) -> Iterator[str]:
    names = [teacher.name for teacher in project.teachers]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        yield f"teachers: names must differ, got {doubles} more than once"


def _temperature_is_stored(project: Project) -> Iterator[str]:
    objective = project.student.objective
    temperature = objective.label_temperature
    if "soft" in objective.reads and temperature not in project.labels.temperatures:
        yield (
            f"student.objective.temperature must be one of labels.temperatures "
            f"{list(project.labels.temperatures)}, got {temperature}"
        )


def _activation_fits(project: Project) -> Iterator[str]:
    objective = project.student.objective
    sigmoid_labels = project.labels.activation == "sigmoid"
    if "soft" in objective.reads and objective.activation != project.labels.activation:
        yield (
            f"labels.activation {project.labels.activation!r} does not fit the objective "
            f"{objective.name!r}: the sigmoid form of knowledge_concentration, and only it, "
            "trains on sigmoid labels"
        )
    trained = [project.specialists, *(t.training for t in project.teachers if t.training)]
    if sigmoid_labels and any(settings.label_smoothing for settings in trained):
        yield (
            "label_smoothing of specialists must be 0 with labels.activation sigmoid: they "
            "are then trained by binary cross-entropy, which is not smoothed"
        )


def _hierarchies_are_multi_label(project: Project) -> Iterator[str]:
    data, objective = project.data, project.student.objective
    hierarchy = getattr(data, "hierarchy", False) or getattr(data, "parents", None)
    if hierarchy and not project.labels.activation == objective.activation == "sigmoid":
        yield (
            "data: classes with is-a parents need labels.activation sigmoid and an objective "
            "of sigmoid form (knowledge_concentration or multi_label): an image is of several "
            f"classes at once. Got {project.labels.activation!r} and {objective.name!r}"
        )


def _objective_finds_its_teachers(project: Project) -> Iterator[str]:
    objective = project.student.objective
    if isinstance(objective, Meal | SparseRepresentation):
        stored = {
            teacher.name: [name for feature in teacher.features for name in feature.array_names]
            for teacher in project.teachers
        }
        yield from objective.problems_with(stored)
    own = [teacher.name for teacher in project.teachers if teacher.routing == "own"]
    if objective.hides_labels and own:
        yield (
            f"objective {objective.name!r} hides all labels from the student, so every teacher "
            f"must label all rows: teachers[].routing must be 'all', got 'own' for {own}"
        )


def _views_fit(project: Project) -> Iterator[str]:
    student = project.student
    if student.views_per_image > project.views.count:
        yield (
            f"student.views_per_image must be at most views.count ({project.views.count}), "
            f"got {student.views_per_image}"
        )
    if project.views.mix is not None and student.objective.name == "peer_collaborative":
        yield (
            "views.mix does not fit the objective 'peer_collaborative': the views of an image "
            "are mixed with different others, and its ensemble would have no label"
        )


def _network_fits(project: Project) -> Iterator[str]:
    student = project.student
    network = (student.builder, student.builder_args)
    same = [t.name for t in project.teachers if (t.builder, t.builder_args) == network]
    if student.init is not None and student.init not in same:
        yield (
            f"student.init must be a teacher with the builder and builder_args of the student, "
            f"one of {same}, got {student.init!r}"
        )
    if student.objective.name == "compact" and student.head.name != "linear":
        yield (
            "student.head must be linear under the objective 'compact', which cuts its inputs, "
            f"got {student.head.name!r}"
        )


_CHECKS: tuple[Callable[[Project], Iterator[str]], ...] = (
    _teachers_have_names,
    _temperature_is_stored,
    _activation_fits,
    _hierarchies_are_multi_label,
    _objective_finds_its_teachers,
    _views_fit,
    _network_fits,
)
