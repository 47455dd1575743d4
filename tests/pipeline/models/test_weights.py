"""Weights from files."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.durable_files import write_durably
from pipeline.models.weights import load_weights, read_weights, save_weights, weights_digest
from storage_schemas.errors import TeacherError
from storage_schemas.fingerprint import file_digest


def network(outputs: int = 3) -> nn.Module:
    """A network with parameters and buffers."""
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_are_saved_and_loaded_wherever_they_lie(location: Path, suffix: str) -> None:
    """A bucket gives back the weights that were put, from both kinds of file."""
    source, target = network(), network()
    path = location / "run" / f"weights.{suffix}"
    if suffix == "safetensors":
        save_weights(source, path)
    else:
        content = io.BytesIO()
        torch.save(source.state_dict(), content)
        write_durably(path, content.getvalue())
    load_weights(target, path)
    assert weights_digest(target.state_dict()) == weights_digest(source.state_dict())
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth", "state_dict", "model", "module"])
def test_every_accepted_form_loads(tmp_path: Path, kind: str) -> None:
    """All forms give the same weights."""
    source, target = network(), network()
    state = source.state_dict()
    path = tmp_path / f"weights.{kind if kind in ('safetensors', 'pth') else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind in ("state_dict", "model"):
        torch.save({kind: state, "epoch": 3}, path)
    elif kind == "module":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    assert weights_digest(target.state_dict()) != weights_digest(state)
    load_weights(target, path)
    assert weights_digest(target.state_dict()) == weights_digest(state)


def test_all_differences_are_listed_and_nothing_is_copied(tmp_path: Path) -> None:
    """Missing, unexpected and differently shaped keys are named at once."""
    state = network(outputs=5).state_dict()
    state["extra"] = state.pop("0.bias")
    save_file(state, tmp_path / "weights.safetensors")
    target = network()
    before = weights_digest(target.state_dict())
    with pytest.raises(TeacherError) as error:
        load_weights(target, tmp_path / "weights.safetensors")
    message = str(error.value)
    for part in ("1 missing (0.bias)", "1 unexpected (extra)", "expected (3, 4), got (5, 4)"):
        assert part in message
    assert weights_digest(target.state_dict()) == before


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    """A file that needs unpickling is refused with the way to convert it."""
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(TeacherError, match="pickled objects"):
        read_weights(tmp_path / "whole.pt")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
def test_damaged_absent_and_foreign_files(tmp_path: Path, name: str) -> None:
    """Every unreadable file is an error that names it."""
    with pytest.raises(TeacherError, match="no file at"):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"\x00" * 40)
    with pytest.raises(TeacherError, match=name):
        read_weights(tmp_path / name)


def test_truncated_files(tmp_path: Path) -> None:
    """Files that end early are refused."""
    save_file(network().state_dict(), tmp_path / "a.safetensors")
    torch.save(network().state_dict(), tmp_path / "a.pt")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(TeacherError, match="not a"):
            read_weights(path)


def test_values_that_are_not_tensors(tmp_path: Path) -> None:
    """A checkpoint that is no state dict is refused with its keys."""
    torch.save({"epoch": 3, "weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(TeacherError, match="epoch"):
        read_weights(tmp_path / "a.pt")


def test_digest_sees_names_types_shapes_and_values() -> None:
    """Any difference changes the digest; order and memory layout do not."""
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(2.0)
    base = weights_digest({"a": a, "b": b})
    assert base == weights_digest({"b": b, "a": a.t().contiguous().t()})
    others = [
        {"a": a, "c": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.double(), "b": b},
        {"a": a + 1e-6, "b": b},
        {"a": a},
    ]
    assert len({base, *(weights_digest(other) for other in others)}) == 6
