"""`TeacherSpec`: one specialist, resolved against the label space and the disk.

In: label maps, which rows a teacher labels, and the fingerprints of its training and
of its stores. Left out: networks (labelling.py, specialist.py), so that plans are made without
importing torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Project, SpecialistConfig, TeacherConfig
from pipeline.data.class_lists import label_map_of
from pipeline.data.routing import Route, route
from pipeline.locations import bucket_of, is_local
from pipeline.workspace import Workspace, read_record
from storage_schemas.errors import ConfigError
from storage_schemas.fingerprint import file_digest, fingerprint, known_file_digest
from storage_schemas.hierarchy import label_closure
from storage_schemas.label_space import LabelMap, LabelSpace, canonical_digest
from storage_schemas.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher as the pipeline uses it.

    Attributes:
        config: Its entry in the project file.
        label_map: Local class ids to global ids.
        num_classes: C, the size of the whole label space.
        training: How it is trained, when it comes without weights.
        training_parts: What its weights depend on, as JSON; empty when it comes with weights.
        folder: Where it is trained; None when it comes with weights.
        weights: The file of its weights, which may not exist yet.
        closure: (C_t, A) the local classes that an image of each belongs to, padded with -1; None
            where no class has parents.
    """

    config: TeacherConfig
    label_map: LabelMap
    num_classes: int
    training: SpecialistConfig
    training_parts: Mapping[str, Any]
    folder: Path | None
    weights: Path
    closure: npt.NDArray[np.int64] | None = None

    @property
    def name(self) -> str:
        """Its name in the project file."""
        return self.config.name

    @property
    def is_ready(self) -> bool:
        """Whether its weights are there."""
        if self.folder is not None:
            return read_record(self.folder / "record.json") is not None and self.weights.exists()
        return self.weights.exists()

    def weights_digest(self) -> str:
        """Return the digest of the weights' file.

        Raises:
            ConfigError: If there is no such file.
        """
        if not self.weights.is_file():
            remedy = "run `concentrate specialists` first" if self.folder else "check the path"
            raise ConfigError(
                f"teachers.{self.name}.weights", [f"no file at {self.weights}; {remedy}"]
            )
        if is_local(self.weights):
            return known_file_digest(self.weights)
        return _object_digest(self.weights, bucket_of(self.weights).info(str(self.weights))["ETag"])

    @property
    def route(self) -> Route:
        """(C + 1,) whether rows of a class are labelled; the last is for unlabelled rows."""
        return route(self.label_map, self.num_classes, self.config.routing)


@functools.lru_cache(maxsize=256)
def _object_digest(weights: Path, etag: str) -> str:
    """Read weights from a bucket once for each version of them."""
    return file_digest(weights)


def _training_parts(
    config: TeacherConfig,
    training: SpecialistConfig,
    label_map: LabelMap,
    manifest: Manifest,
    recipe: Mapping[str, Any],
    closure: npt.NDArray[np.int64] | None,
    activation: str,
) -> dict[str, Any]:
    # Not the rows themselves: a specialist stays as it is when images are added, so that only they
    # are labelled. Another set of images altogether has another first append.
    return {
        "builder": config.builder,
        "builder_args": config.builder_args,
        "input": config.input.model_dump(mode="json"),
        "classes": list(label_map.names),
        "training": training.model_dump(
            mode="json", exclude={"checkpoint_every_steps", "keep_checkpoints", "log_every_steps"}
        ),
        "recipe": dict(recipe),
        "manifest": manifest.chains[0],
        # Fingerprints of softmax specialists are older than the sigmoid ones.
        **({} if activation == "softmax" else {"activation": activation}),
        **({} if closure is None else {"parents": canonical_digest(closure.tolist())}),
    }


def _local_closure(label_map: LabelMap, space: LabelSpace) -> npt.NDArray[np.int64]:
    """Return the closure of a teacher's own classes in its local ids, without other classes."""
    local = np.append(label_map.to_local(len(space)), -1)
    return local[label_closure(space)[label_map.global_ids]]


def resolve_teacher(
    project: Project, config: TeacherConfig, space: LabelSpace, manifest: Manifest
) -> TeacherSpec:
    """Resolve one entry of the project file.

    Raises:
        LabelSpaceError: If its class list does not fit the label space.
        ConfigError: If its class list cannot be read.
    """
    label_map = label_map_of(config, space)
    training = config.training or project.specialists
    folder = None
    closure = _local_closure(label_map, space) if space.parents else None
    weights = config.weights
    parts: dict[str, Any] = {}
    if weights is None:
        recipe = project.views.model_dump(mode="json")
        activation = project.labels.activation
        parts = _training_parts(config, training, label_map, manifest, recipe, closure, activation)
        folder = Workspace(project.workspace).specialist(config.name, fingerprint(parts))
        weights = folder / "weights.safetensors"
    return TeacherSpec(
        config=config,
        label_map=label_map,
        num_classes=len(space),
        training=training,
        training_parts=parts,
        folder=folder,
        weights=weights,
        closure=closure,
    )


def resolve_teachers(
    project: Project, space: LabelSpace, manifest: Manifest
) -> tuple[TeacherSpec, ...]:
    """Resolve all teachers, in the order of the project file."""
    return tuple(resolve_teacher(project, c, space, manifest) for c in project.teachers)
