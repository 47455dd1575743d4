"""The whole project file, and what must fit together in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from pipeline.config.base import Location, PositiveInt, Settings
from pipeline.config.data import DataConfig, LabelNoise
from pipeline.config.objectives import Meal
from pipeline.config.student import StudentConfig
from pipeline.config.teachers import LabelConfig, SpecialistConfig, TeacherConfig
from storage_schemas.errors import ConfigError
from storage_schemas.view_recipe import ViewRecipe


class RuntimeConfig(Settings):
    """Where and how wide the work runs; never changes a result, so it is in no fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int = Field(0, ge=0, description="loader processes; 0: in the process itself")
    runner: Literal["threads", "dask"] = Field(
        "threads", description="who labels: the process of the run, or workers of a Dask cluster"
    )
    address: str | None = Field(
        None,
        pattern=r"^(tcp|tls)://[^\s/]+:[0-9]+$",
        description="scheduler of a running Dask cluster; none: workers of this machine",
    )
    workers: PositiveInt | None = Field(
        None, description="Dask workers started on this machine, one thread each; none: one a core"
    )
    resources: dict[str, PositiveFloat] = Field(
        {}, description="what a Dask worker must offer to a task, e.g. GPU: 1"
    )

    @model_validator(mode="after")
    def _cluster_settings_fit(self) -> RuntimeConfig:
        given = [name for name in ("address", "workers", "resources") if getattr(self, name)]
        if given and self.runner != "dask":
            raise ValueError(f"{', '.join(given)}: only for runner: dask, got {self.runner}")
        if self.address is not None and self.workers is not None:
            raise ValueError(
                f"workers: the cluster at {self.address} has its own, got {self.workers}; leave "
                "workers or address out"
            )
        return self


class ReportConfig(Settings):
    """What the HTML report shows."""

    samples: int = Field(12, ge=0, le=200, description="images shown with their top-5")


class Project(Settings):
    """A whole project file."""

    workspace: Location
    data: DataConfig
    label_noise: LabelNoise | None = Field(None, description="wrong training labels on purpose")
    views: ViewRecipe = ViewRecipe()
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    specialists: SpecialistConfig = SpecialistConfig()
    labels: LabelConfig = LabelConfig()
    student: StudentConfig = StudentConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Project:
        names = [teacher.name for teacher in self.teachers]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"teachers: names must differ, got {doubles} more than once")
        objective = self.student.objective
        if isinstance(objective, Meal):
            kept = {teacher.name: [f.name for f in teacher.features] for teacher in self.teachers}
            problems = objective.problems_with(kept)
            if problems:
                raise ValueError("; ".join(problems))
        temperature = getattr(objective, "temperature", None)
        if temperature is not None and temperature not in self.labels.temperatures:
            raise ValueError(
                f"student.objective.temperature must be one of labels.temperatures "
                f"{list(self.labels.temperatures)}, got {temperature}"
            )
        sigmoid_loss = getattr(objective, "form", None) == "sigmoid"
        sigmoid_labels = self.labels.activation == "sigmoid"
        if "soft" in objective.reads and sigmoid_loss != sigmoid_labels:
            raise ValueError(
                f"labels.activation {self.labels.activation!r} does not fit the objective "
                f"{objective.name!r}: the sigmoid form of knowledge_concentration, and only it, "
                "trains on sigmoid labels"
            )
        if self.views.mix is not None and objective.name == "peer_collaborative":
            raise ValueError(
                "views.mix does not fit the objective 'peer_collaborative': the views of an image "
                "are mixed with different others, and its ensemble would have no label"
            )
        hierarchy = getattr(self.data, "hierarchy", False) or getattr(self.data, "parents", None)
        if hierarchy and not (sigmoid_labels and getattr(objective, "form", None) == "sigmoid"):
            raise ValueError(
                "data: classes with is-a parents need labels.activation sigmoid and an objective "
                "of sigmoid form (knowledge_concentration or multi_label): an image is of several "
                f"classes at once. Got {self.labels.activation!r} and {objective.name!r}"
            )
        trained = [self.specialists, *(t.training for t in self.teachers if t.training)]
        if sigmoid_labels and any(settings.label_smoothing for settings in trained):
            raise ValueError(
                "label_smoothing of specialists must be 0 with labels.activation sigmoid: they "
                "are then trained by binary cross-entropy, which is not smoothed"
            )
        if self.student.views_per_image > self.views.count:
            raise ValueError(
                f"student.views_per_image must be at most views.count ({self.views.count}), "
                f"got {self.student.views_per_image}"
            )
        if self.student.init is not None:
            self._check_init(self.student.init)
        if objective.name == "compact" and self.student.head.name != "linear":
            raise ValueError(
                "student.head must be linear under the objective 'compact', which cuts its inputs, "
                f"got {self.student.head.name!r}"
            )
        return self

    def _check_init(self, name: str) -> None:
        same = [
            teacher.name
            for teacher in self.teachers
            if (teacher.builder, teacher.builder_args)
            == (self.student.builder, self.student.builder_args)
        ]
        if name not in same:
            raise ValueError(
                f"student.init must be a teacher with the builder and builder_args of the student, "
                f"one of {same}, got {name!r}"
            )

    def teacher(self, name: str) -> TeacherConfig:
        """Return one teacher by name.

        Raises:
            ConfigError: If the project has no such teacher.
        """
        for teacher in self.teachers:
            if teacher.name == name:
                return teacher
        known = [teacher.name for teacher in self.teachers]
        raise ConfigError("teachers", [f"name must be one of {known}, got {name!r}"])
