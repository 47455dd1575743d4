"""Which cluster a project asks for, and one that is not there."""

from __future__ import annotations

import pytest

from pipeline.cluster import cluster_address
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
