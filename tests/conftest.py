"""What tests share: places on a disk and in a bucket, a tiny project, a small disk."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.durable_files import free_bytes
from pipeline.locations import bucket_of, location


def pytest_configure() -> None:
    """Let commands be interrupted also where a shell runs the tests in the background.

    Such a shell lets them ignore SIGINT, `nohup` SIGHUP, and they hand that on to every command
    that they start.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that share a Prefect server on one of the processes that run the tests."""
    for item in items:
        if item.get_closest_marker("flow") or item.get_closest_marker("service"):
            item.add_marker(pytest.mark.xdist_group("server"))


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


@pytest.fixture(scope="session")
def tiny_project() -> ModuleType:
    """The project of the fault campaigns, `benchmarks/tiny_project.py`."""
    path = Path(__file__).parents[1] / "benchmarks" / "tiny_project.py"
    spec = importlib.util.spec_from_file_location("tiny_project", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Disk:
    """A small file system of its own, mounted for one test."""

    path: Path

    @contextmanager
    def full(self, leave: int = 0) -> Iterator[None]:
        """Leave no more than so many bytes free."""
        filler = self.path / "filler"
        filler.write_bytes(bytes(free_bytes(self.path) - leave))
        try:
            yield
        finally:
            filler.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written."""
        self._remount("ro")
        try:
            yield
        finally:
            self._remount("rw")

    @contextmanager
    def foreign(self) -> Iterator[None]:
        """All files are another user's: permissions do not count for root, so it is nobody."""
        try:
            os.setegid(65534)
        except OSError:
            pytest.skip("there is no other user in this namespace")
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def _remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)

    def leftovers(self) -> list[str]:
        """Return all temporary files."""
        return [str(path) for path in self.path.rglob("*") if "partial" in path.name]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A real file system of 4 MiB; needs root, or to be run in `unshare -rm`."""
    path = Path(tempfile.mkdtemp(prefix="small-disk-"))
    path.chmod(0o755)
    options = "size=4m,mode=755"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        path.rmdir()
        pytest.skip("a small disk cannot be mounted: run as root, or inside `unshare -rm`")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
        path.rmdir()
