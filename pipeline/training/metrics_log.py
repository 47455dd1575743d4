"""The log of a run: one CSV file for people and plots, and TensorBoard beside it.

An object in a bucket cannot be appended to. There the log is written to a local folder, and its
CSV file is put into the bucket whole by `keep`; a resumed run starts from that one, wherever it
runs. TensorBoard's files stay local.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from pipeline.durable_files import not_written, write_durably
from pipeline.locations import local_folder


class MetricsLog:
    """Appends rows to `metrics.csv` and scalars to `tensorboard/` of a run's folder.

    Args:
        folder: Of the run; on a disk or in a bucket.
        first_step: Rows of later steps are dropped first: a resumed run writes them again.
    """

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        local = local_folder(folder)
        self._kept = folder / "metrics.csv"
        self._path = local / "metrics.csv"
        self._columns: list[str] | None = None
        try:
            local.mkdir(parents=True, exist_ok=True)
            self._keep_until(first_step)
            self._file = self._path.open("a", newline="", encoding="utf-8")
            self._board = SummaryWriter(str(local / "tensorboard"), purge_step=first_step)
        except OSError as error:
            raise not_written(self._path, local, error) from error

    def _keep_until(self, step: int) -> None:
        rows = read_metrics(self._kept)
        kept = [row for row in rows if row["step"] <= step]
        if rows:
            self._columns = list(rows[0])
        with self._path.open("w", newline="", encoding="utf-8") as file:
            if self._columns and kept:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(kept)
            else:
                self._columns = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step.

        Raises:
            StoreError: If the log cannot be written.
        """
        try:
            self._write(step, values)
        except OSError as error:
            raise not_written(self._path, self._path.parent, error) from error

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **values}
        writer = csv.DictWriter(self._file, self._columns or list(row), extrasaction="ignore")
        if self._columns is None:
            self._columns = list(row)
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def keep(self) -> None:
        """Put the rows so far where the run lies; call it before a checkpoint and at the end."""
        if self._path != self._kept:
            write_durably(self._kept, self._path.read_bytes())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a `metrics.csv`; a torn last row is left out."""
    if not path.exists():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({name: float(value) for name, value in row.items()})
            except (TypeError, ValueError):
                break
    return rows
