"""One writer of a prefix of a bucket: a lock object that its owner keeps renewing.

In: the lock that `pipeline.store.lock` and the manifest take where there is no kernel to hold one.
It is made by a conditional PUT (If-None-Match: *), names its owner, and is renewed by a thread with
If-Match on its ETag, so that no two processes believe to hold it for long. A lock of a process of
this machine that has ended is taken over at once; any other when the server says that it was not
renewed for `STALE_SECONDS`, again with If-Match, so that one taker wins. Both times are the
server's, so clocks need not agree.

Left out: fencing. An owner that was asleep for longer than `STALE_SECONDS` may finish one write
before it learns that it lost; what the pipeline writes is a function of its inputs, so that write
holds the same bytes as the new owner's.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.durable_files import is_running
from pipeline.locations import bucket_of, storage_errors
from storage_schemas.errors import BusyError, StoreError

RENEW_SECONDS = 20.0
STALE_SECONDS = 120.0


class _Held(NamedTuple):
    """A lock object as it was read."""

    document: dict[str, Any]
    etag: str
    unrenewed_seconds: float


def owner_sentence(document: dict[str, Any]) -> str:
    """Return who holds a lock and for how long, for the message of a refusal."""
    try:
        age = max(0, round(time.time() - float(document["since"])))
        return f"process {int(document['pid'])} on {str(document['host'])!r} for {age} s"
    except (ValueError, KeyError, TypeError):
        return "another process"


def refusal(subject: Path, owner: str) -> BusyError:
    """Return the error for a second writer."""
    return BusyError(
        f"{subject} is being written by {owner}; wait until it is done, or end that process: what "
        "it has committed stays"
    )


@contextmanager
def object_lock(path: Path, subject: Path) -> Iterator[Callable[[], None]]:
    """Hold a lock object.

    Args:
        path: The object, in a bucket.
        subject: What it locks, for messages.

    Yields:
        A function that raises `StoreError` once the lock is lost to another process.

    Raises:
        StoreError: If another process holds it, or took it in the meantime.
    """
    try:
        lock = _ObjectLock(path, subject)
    except storage_errors() as error:
        raise StoreError(f"{subject} cannot be written: {error}") from error
    thread = threading.Thread(target=lock.keep_renewing, name=f"lock {subject}", daemon=True)
    thread.start()
    try:
        yield lock.check
    finally:
        lock.ended.set()
        thread.join()
        lock.release()
    lock.check()


def object_owner(path: Path) -> str | None:
    """Return who holds a lock object and for how long; None when nobody alive does."""
    held = _read(path)
    return None if held is None or _is_dead(held) else owner_sentence(held.document)


def object_token(path: Path) -> str | None:
    """Return the token of a lock object; None when nobody alive holds it."""
    held = _read(path)
    return None if held is None or _is_dead(held) else held.document.get("token")


class _ObjectLock:
    """The owner's side: taken by the constructor, renewed until `ended` is set."""

    def __init__(self, path: Path, subject: Path) -> None:
        self.subject = subject
        self.ended = threading.Event()
        self._path = path
        self._files = bucket_of(path)
        bucket, key, _ = self._files.split_path(cast(Any, path).path)
        self._object = {"Bucket": bucket, "Key": key}
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.time(),
            "machine": _machine(),
            "token": uuid.uuid4().hex,
        }
        self._lost: str | None = None
        self._renewed = time.monotonic()
        self._etag = self._take()

    def check(self) -> None:
        """Raise when the lock is lost.

        Raises:
            StoreError: Says to whom.
        """
        lost = self._lost
        # A renewal may hang for longer than the lock holds.
        if lost is None and time.monotonic() - self._renewed > STALE_SECONDS:
            lost = "whoever comes next"
        if lost is not None:
            raise StoreError(
                f"{self.subject}: this process lost the right to write it to {lost}; a lock "
                f"that is not renewed for {STALE_SECONDS:.0f} s may be taken. Run the command "
                "again when the other is done"
            )

    def keep_renewing(self) -> None:
        """Renew until the end, or until another process has it."""
        while self._lost is None and not self.ended.wait(RENEW_SECONDS):
            try:
                etag = self._put(IfMatch=self._etag) or self._own_etag()
            except storage_errors():
                continue  # the network may be back in time; `check` knows when it was not
            if etag is not None:
                self._etag, self._renewed = etag, time.monotonic()

    def release(self) -> None:
        """Delete the lock if it is still ours; one that cannot be deleted goes stale by itself."""
        if self._lost is None:
            try:
                if self._own_etag() is not None:
                    self._files.call_s3("delete_object", **self._object, IfMatch=self._etag)
            except storage_errors():
                pass

    def _own_etag(self) -> str | None:
        """Return the ETag of the lock if it is ours (the answer to our PUT may have been lost)."""
        held = self._read()
        if held is not None and held.document.get("token") == self._owner["token"]:
            self._etag = held.etag
            return held.etag
        self._lost = (
            owner_sentence(held.document) if held is not None else "a process that has ended since"
        )
        return None

    def _take(self) -> str:
        """Make the lock, or take a dead one over; returns its ETag."""
        condition = {"IfNoneMatch": "*"}
        while True:
            etag = self._put(**condition)
            if etag is not None:
                # Some servers ignore conditions; with them two writers would both be let in.
                if "IfNoneMatch" in condition and self._put(**condition) is not None:
                    self._files.call_s3("delete_object", **self._object)
                    raise StoreError(
                        f"{self.subject} cannot be locked: the server of its bucket ignores "
                        "If-None-Match, so that a second writer could not be refused; use one "
                        "with conditional PUTs, as S3 has"
                    )
                return etag
            held = self._read()
            if held is None:
                condition = {"IfNoneMatch": "*"}
                continue
            if held.document.get("token") == self._owner["token"]:
                return held.etag
            if not _is_dead(held):
                raise refusal(self.subject, owner_sentence(held.document))
            condition = {"IfMatch": held.etag}

    def _put(self, **condition: str) -> str | None:
        """Write the lock with the time of now; returns its ETag, None if the condition fails."""
        # The time makes every renewal another ETag, so that a taker's If-Match fails after it.
        body = json.dumps(self._owner | {"renewed": time.time()}).encode()
        try:
            answer = self._files.call_s3("put_object", **self._object, **condition, Body=body)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and "IfMatch" in condition:
                return None  # it was deleted
            if _status(error) in (409, 412):
                return None
            raise
        return str(answer["ETag"])

    def _read(self) -> _Held | None:
        return _read(self._path)


def _read(path: Path) -> _Held | None:
    """Return a lock as it is, body and times of one answer; None when there is none."""
    from fsspec.asyn import sync

    bucket = bucket_of(path)
    name, key, _ = bucket.split_path(cast(Any, path).path)

    async def answered() -> tuple[dict[str, Any], bytes]:
        answer = await bucket._call_s3("get_object", Bucket=name, Key=key)
        async with answer["Body"] as body:
            return answer, await body.read()

    try:
        answer, body = sync(bucket.loop, answered)
    except FileNotFoundError:
        return None
    sent = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    try:
        document = json.loads(body)
    except ValueError:
        document = {}
    return _Held(
        document=document if isinstance(document, dict) else {},
        etag=str(answer["ETag"]),
        unrenewed_seconds=(sent - answer["LastModified"]).total_seconds(),
    )


def _status(error: OSError) -> int | None:
    """Return the HTTP status behind an error of s3fs."""
    response = getattr(error.__cause__, "response", {})
    return cast("int | None", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))


def _is_dead(held: _Held) -> bool:
    if held.unrenewed_seconds > STALE_SECONDS:
        return True
    if held.document.get("machine") != _machine():
        return False
    pid = held.document.get("pid")
    return not (isinstance(pid, int) and is_running(pid))


def _machine() -> str:
    """Return what two processes share that can see one another's numbers.

    The name alone will not do: the containers of a service may share it, each with its own pid 1.
    """
    name = socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{name} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return name
