"""The whole project file, and what must fit together in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Location, Settings
from pipeline.config.data import DataConfig
from pipeline.config.student import StudentConfig
from pipeline.config.teachers import LabelConfig, SpecialistConfig, TeacherConfig
from storage_schemas.errors import ConfigError
from storage_schemas.view_recipe import ViewRecipe


class RuntimeConfig(Settings):
    """Where and how wide the work runs; never changes a result, so it is in no fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int = Field(0, ge=0, description="loader processes; 0: in the process itself")


class ReportConfig(Settings):
    """What the HTML report shows."""

    samples: int = Field(12, ge=0, le=200, description="images shown with their top-5")


class Project(Settings):
    """A whole project file."""

    workspace: Location
    data: DataConfig
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
        own = [teacher.name for teacher in self.teachers if teacher.routing == "own"]
        if getattr(objective, "hides_labels", False) and own:
            raise ValueError(
                f"objective {objective.name!r} hides all labels from the student, so every teacher "
                f"must label all rows: teachers[].routing must be 'all', got 'own' for {own}"
            )
        if self.student.views_per_image > self.views.count:
            raise ValueError(
                f"student.views_per_image must be at most views.count ({self.views.count}), "
                f"got {self.student.views_per_image}"
            )
        return self

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
