"""Where things lie in a workspace, and small records written whole or not at all.

In: the paths of every product of the pipeline and the JSON records that say what is done. Left
out: what is in the files. Nothing leads out of the workspace: names hold no separators
(pipeline.config), every other part of a path is a digest or a constant, and a link that leaves is
refused by `inside`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.durable_files import write_durably
from pipeline.locations import is_local, read_whole, storage_errors
from storage_schemas.errors import StoreError


def inside(root: Path, path: Path) -> Path:
    """Return a path below a folder, unless a link on its way leads out of that folder.

    The folder itself may be a link, and what does not exist yet leads nowhere. Places that are not
    on a local disk have no links.

    Raises:
        StoreError: If the path leads out.
    """
    if not is_local(path):
        return path
    home, target = os.path.realpath(root), os.path.realpath(path)
    if target != home and not target.startswith(home.rstrip(os.sep) + os.sep):
        raise StoreError(
            f"{path} leads out of {root}, to {target}; put the files themselves there, or let "
            "`workspace` be the place where they are"
        )
    return path


@dataclass(frozen=True)
class Workspace:
    """The folder that holds everything a project makes.

    Attributes:
        root: Its absolute path, of a local disk or of a bucket (`pipeline.locations`).
    """

    root: Path

    @property
    def data(self) -> Path:
        """Manifest, label space, quarantine table."""
        return inside(self.root, self.root / "data")

    def specialist(self, teacher: str, fingerprint: str) -> Path:
        """Run folder of a teacher that is trained here."""
        return inside(self.root, self.root / "teachers" / teacher / fingerprint)

    def labels(self, teacher: str, fingerprint: str) -> Path:
        """Soft-label store of a teacher."""
        return inside(self.root, self.root / "labels" / teacher / f"{fingerprint}.zarr")

    def features(self, teacher: str, fingerprint: str) -> Path:
        """Block-feature store of a teacher."""
        return inside(self.root, self.root / "features" / teacher / f"{fingerprint}.zarr")

    def published(self, teacher: str) -> Path:
        """Record that says which stores of a teacher are current."""
        return inside(self.root, self.root / "labels" / teacher / "published.json")

    def exactness(self, teacher: str) -> Path:
        """Record of what a teacher's labels lost against its dense answers."""
        return self.root / "labels" / teacher / "exactness.json"

    def student(self, name: str, fingerprint: str) -> Path:
        """Run folder of a student or control."""
        return inside(self.root, self.root / "students" / name / fingerprint)

    @property
    def report(self) -> Path:
        """Folder of the newest report."""
        return inside(self.root, self.root / "report")


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a JSON record, or None when it is absent or torn.

    Raises:
        StoreError: If it is there and cannot be read: what is done must not be done again because
            a bucket did not answer.
    """
    try:
        value = json.loads(read_whole(path))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    except storage_errors() as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON record atomically and durably.

    Raises:
        StoreError: If the target cannot be written.
    """
    write_durably(path, json.dumps(record, indent=2, sort_keys=True).encode())
