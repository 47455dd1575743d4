"""The weights that a student starts from, where its settings name a teacher (`student.init`).

In: the very file that the teacher's published labels were made with, found by its digest, and its
tensors in a student. Left out: the teacher itself: nothing is built from its settings, and it is
not run. Imports torch only to copy tensors, since plans ask for the digest alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.config import Project
from pipeline.locations import read_whole
from pipeline.store.published import PublishedLabels
from pipeline.workspace import Workspace
from storage_schemas.errors import ConfigError, TeacherError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.student import Student


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights of a classifier that a student can start from.

    Attributes:
        teacher: Whose they are.
        digest: sha256 hex digest of their file.
        candidates: Files, one of which has that digest.
        global_ids: (C_t,) global id of each of the classifier's outputs.
    """

    teacher: str
    digest: str
    candidates: tuple[Path, ...]
    global_ids: npt.NDArray[np.int64]

    def path(self) -> Path:
        """Return the file.

        Raises:
            TeacherError: If it is not there any more.
        """
        for path in self.candidates:
            if path.is_file() and hashlib.sha256(read_whole(path)).hexdigest() == self.digest:
                return path
        raise TeacherError(
            f"student.init: no file has the weights of {self.teacher} (sha256 {self.digest[:12]}) "
            f"that its labels were made with; looked at {[str(p) for p in self.candidates]}. Put "
            "it back, or run `concentrate label` with the weights that are there"
        )

    def copy_into(self, student: Student) -> None:
        """Copy backbone and, where the head is one linear layer, the rows of the known classes.

        What the teacher does not have keeps its random weights: another head, other classes.

        Raises:
            TeacherError: If the weights are not those of the student's network.
        """
        from pipeline.models.heads import LinearHead
        from pipeline.models.weights import read_weights

        path = self.path()
        state = read_weights(path)
        own = student.backbone.state_dict()
        last = {name.rpartition(".")[2]: value for name, value in state.items() if name not in own}
        inside = {name: value for name, value in state.items() if name in own}
        rows = (len(self.global_ids), student.feature_dim)
        problems = _problems(own, inside)
        if set(last) != {"weight", "bias"} or tuple(last["weight"].shape) != rows:
            shapes = {name: tuple(value.shape) for name, value in last.items()}
            problems.append(f"the last layer must have weight {rows} and bias, got {shapes}")
        if problems:
            raise TeacherError(
                f"student.init: {path} does not fit the student's network: {'; '.join(problems)}"
            )
        student.backbone.load_state_dict(inside)
        if isinstance(student.head, LinearHead):
            for name, value in last.items():
                getattr(student.head.fc, name).data[self.global_ids] = value


def _problems(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = sorted(set(own) - set(found))
    other = [name for name, value in found.items() if value.shape != own[name].shape]
    return [
        f"{len(names)} {kind} ({', '.join(names[:5])})"
        for kind, names in (("missing", missing), ("of another shape", other))
        if names
    ]


def initial_weights(project: Project, published: PublishedLabels, teacher: str) -> InitialWeights:
    """Return the weights that a teacher's published training labels were made with.

    Args:
        project: Has the teacher.
        published: Its stores.
        teacher: Its name.

    Raises:
        ConfigError: If nothing of it is published.
    """
    if teacher not in published.names:
        raise ConfigError(
            "student.init",
            [f"nothing is published of {teacher!r}; run `concentrate label`"],
        )
    store = published.stores[published.names.index(teacher)]
    given = project.teacher(teacher).weights
    if given is not None:
        candidates = [given]
    else:
        trained = Workspace(project.workspace).specialist(teacher, "any").parent
        candidates = sorted(trained.glob("*/weights.safetensors"))
    return InitialWeights(
        teacher=teacher,
        digest=str(store.schema.fingerprint_parts["weights"]),
        candidates=tuple(candidates),
        global_ids=store.label_map.global_ids,
    )
