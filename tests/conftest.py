"""A real S3 protocol server on loopback, and places on a disk and in a bucket of it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.locations import bucket_of, location


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Start moto's server, and point the AWS environment of this process and its children at it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a place in a bucket of its own; what must be local goes to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = location(f"s3://test-{uuid.uuid4().hex[:12]}/some/prefix")
    bucket_of(place).call_s3("create_bucket", Bucket=place.path.partition("/")[0])  # type: ignore[attr-defined]
    return place


@pytest.fixture(name="location")
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder of the disk; of a bucket where a test is parametrised with "s3"."""
    if getattr(request, "param", "local") == "local":
        return tmp_path
    found: Path = request.getfixturevalue("bucket")
    return found
