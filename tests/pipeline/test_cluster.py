"""Which cluster a project asks for, and one that is not there."""

from __future__ import annotations

import time

import psutil
import pytest
from dask.distributed import Client

from pipeline.cluster import cluster_address, count_workers, heard, teller
from pipeline.config import RuntimeConfig
from pipeline.devices import gpu_name
from storage_schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"address": "tcp://host:1"}, "address: only for runner: dask, got threads"),
        ({"workers": 2, "resources": {"GPU": 1}}, "workers, resources: only for runner: dask"),
        ({"runner": "dask", "address": "host:8786"}, "should match pattern"),
        ({"runner": "dask", "address": "tcp://host:1", "workers": 2}, "has its own, got 2"),
        ({"runner": "dask", "workers": 0}, "greater than or equal to 1"),
        ({"runner": "dask", "resources": {"GPU": 0}}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, problem: str):
    """A cluster that would be ignored, or cannot be, is an error of the project file."""
    with pytest.raises(ValueError, match=problem):
        RuntimeConfig(**settings)


def test_no_scheduler_is_told_with_what_to_start(monkeypatch: pytest.MonkeyPatch):
    """An address at which nothing answers: what was expected, what is there, what to do."""
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 0.5)
    runtime = RuntimeConfig(runner="dask", address="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError) as caught, cluster_address(runtime):
        pass
    for part in (
        "runtime.address",
        "must be that of a Dask scheduler, and none answers at tcp://127.0.0.1:9",
        "`dask scheduler --no-dashboard`",
        "`dask worker tcp://127.0.0.1:9 --nthreads 1 --no-dashboard`",
    ):
        assert part in str(caught.value)


def test_the_name_of_a_gpu_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    """Two workers that see one GPU each, both as number 0, hold slots of two names."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plain = [gpu_name(index) for index in (0, 1)]
    assert plain[0] != plain[1]
    for index in (0, 1):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(index))
        assert gpu_name(0) == plain[index]


@pytest.mark.service
def test_a_local_cluster_listens_on_the_loopback_only():
    """No socket of it is open to other machines; what a worker tells is heard, and not twice."""
    runtime = RuntimeConfig(runner="dask", workers=1)
    with cluster_address(runtime) as address, Client(address, set_as_default=False) as client:
        this = psutil.Process()
        listening = {
            connection.laddr.ip
            for process in (this, *this.children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        assert count_workers(client) == 1
        with heard(client, "labels") as done:
            assert done() == 0
            for count in (5, 7):  # a task that is run again begins again
                client.submit(lambda n: teller("labels", "v0/s0")(n), count, pure=False).result()
            end = time.monotonic() + 20
            while done() != 7 and time.monotonic() < end:
                time.sleep(0.05)
            assert done() == 7
