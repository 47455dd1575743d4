"""Where things lie in a workspace, and small records written whole or not at all.

In: the paths of every product of the pipeline and the JSON records that say what is done. Left
out: what is in the files. No name in the project file can lead out of the workspace: names hold
no separators (config.py), and every other part of a path is a digest or a constant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.durable_files import write_durably


@dataclass(frozen=True)
class Workspace:
    """The folder that holds everything a project makes.

    Attributes:
        root: Its absolute path.
    """

    root: Path

    @property
    def data(self) -> Path:
        """Manifest, label space, quarantine table."""
        return self.root / "data"

    def specialist(self, teacher: str, fingerprint: str) -> Path:
        """Run folder of a teacher that is trained here."""
        return self.root / "teachers" / teacher / fingerprint

    def labels(self, teacher: str, fingerprint: str) -> Path:
        """Soft-label store of a teacher."""
        return self.root / "labels" / teacher / f"{fingerprint}.zarr"

    def student(self, name: str, fingerprint: str) -> Path:
        """Run folder of a student or control."""
        return self.root / "students" / name / fingerprint

    @property
    def report(self) -> Path:
        """Folder of the newest report."""
        return self.root / "report"


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a JSON record, or None when it is absent or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON record atomically and durably.

    Raises:
        StoreError: If the target cannot be written.
    """
    write_durably(path, json.dumps(record, indent=2, sort_keys=True).encode())
