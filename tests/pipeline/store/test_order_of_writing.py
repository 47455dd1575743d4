"""In a bucket, the order of answered requests is what fsync and rename are on a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs

from pipeline.store import SoftLabelStore, create_soft_labels

Requests = Callable[[], list[tuple[str, str]]]


@pytest.fixture
def changes(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Return a function that gives (what, key) of each changing request begun or answered."""
    seen: list[tuple[str, str]] = []
    original = s3fs.S3FileSystem._call_s3

    async def spy(self: Any, method: str, *arguments: Any, **fields: Any) -> Any:
        changing = method not in ("get_object", "head_object", "list_objects_v2")
        key = str(fields.get("Key", "")).partition("store.zarr/")[2]
        if changing:
            seen.append((f"begin {method}", key))
        answer = await original(self, method, *arguments, **fields)
        if changing:
            seen.append((f"end {method}", key))
        return answer

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", spy)

    def taken() -> list[tuple[str, str]]:
        found = list(seen)
        seen.clear()
        return found

    return taken


def one_by_one(*requests: tuple[str, str]) -> list[tuple[str, str]]:
    """Return requests as they are seen when each waits for the answer of the one before."""
    return [(f"{edge} {what}", key) for what, key in requests for edge in ("begin", "end")]


@pytest.fixture
def store(bucket: Path, cases: Any) -> SoftLabelStore:
    return create_soft_labels(bucket / "store.zarr", cases.schema_of())


def test_the_record_goes_first_and_comes_last(
    store: SoftLabelStore, changes: Requests, cases: Any
) -> None:
    """Record and data removed, gaps, ids, record: each answered before the next is begun."""
    for _ in range(2):  # a first write, and one over it
        store.write_shard(1, 2, *cases.shard_labels(store, 1, 2))
        files = {name: f"{name}/c/1/2/0" for name in ("commits", "gaps", "ids")}
        assert changes() == one_by_one(
            ("delete_object", files["commits"]),
            ("delete_object", files["gaps"]),
            ("delete_object", files["ids"]),
            ("put_object", files["gaps"]),
            ("put_object", files["ids"]),
            ("put_object", files["commits"]),
        )


def test_a_new_store_is_there_with_its_last_object(
    bucket: Path, changes: Requests, cases: Any
) -> None:
    """The group's metadata are put when those of all arrays have been answered."""
    create_soft_labels(bucket / "store.zarr", cases.schema_of())
    puts = [request for request in changes() if "put_object" in request[0]]
    assert {key for _, key in puts[:-2]} == {f"{n}/zarr.json" for n in ("ids", "gaps", "commits")}
    assert puts[-2:] == one_by_one(("put_object", "zarr.json"))


def test_growth_is_there_with_its_last_object(store: SoftLabelStore, changes: Requests) -> None:
    """The arrays are lengthened one by one, and the attributes say so at the end."""
    changes()
    store.grow(500)
    assert changes() == one_by_one(
        *(("put_object", f"{name}/zarr.json") for name in ("ids", "gaps", "commits")),
        ("put_object", "zarr.json"),
    )
