"""The whole project file, and what must fit together in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from pipeline.config.base import Location, PositiveInt, Settings
from pipeline.config.consistency import problems
from pipeline.config.data import DataConfig, LabelNoise
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
        found = problems(self)
        if found:
            raise ValueError("; ".join(found))
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
