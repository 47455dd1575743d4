"""Two stages that begin together take turns at the manifest."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipeline.data.manifest_lock import exclusive
from storage_schemas.errors import ManifestError, StoreError

on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)


@on_both
def test_a_second_update_waits_for_the_first(location: Path) -> None:
    """It goes on as soon as the first lets go, and not before."""
    ended: list[float] = []

    def second() -> None:
        with exclusive(location, wait_seconds=60):
            ended.append(time.monotonic())

    thread = threading.Thread(target=second)
    with exclusive(location):
        thread.start()
        time.sleep(0.5)
        assert not ended
        let_go = time.monotonic()
    thread.join(timeout=60)
    assert ended[0] >= let_go


@on_both
def test_waiting_has_an_end(location: Path) -> None:
    """Whoever is still refused after that time is told by whom."""
    with (
        exclusive(location),
        pytest.raises(ManifestError, match=r"another process|being written"),
        exclusive(location, wait_seconds=0.3),
    ):
        pass


def test_an_error_of_the_work_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    """What goes wrong under the lock comes out as it is, at once, and the lock is free."""
    with pytest.raises(StoreError, match="of the work"), exclusive(tmp_path, wait_seconds=60):
        raise StoreError("of the work")
    with exclusive(tmp_path):
        pass
