"""Weights from files: safetensors, or torch files without pickled objects.

In: reading, checking against a network, writing, and a digest of the values. Left out: any
download.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from pipeline.durable_files import write_durably
from pipeline.locations import is_local, read_whole
from storage_schemas.errors import TeacherError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_LISTED = 12


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU.

    A torch file may hold the state dict itself or under `state_dict`, `model_state_dict` or
    `model`. A prefix `module.` that all keys share (left by data-parallel training) is removed.

    Raises:
        TeacherError: If the file is absent, damaged, of another kind, or needs unpickling.
    """
    if not path.is_file():
        raise TeacherError(f"weights: no file at {path}; check the path, or let it be trained")
    if path.suffix == ".safetensors":
        try:
            found: object = read_safetensors(path)
        except (SafetensorError, OSError) as error:
            raise TeacherError(f"weights {path}: not a safetensors file: {error}") from error
    elif path.suffix in {".pt", ".pth"}:
        found = _read_torch(path)
    else:
        raise TeacherError(
            f"weights {path}: suffix must be .safetensors, .pt or .pth, got {path.suffix!r}"
        )
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not found:
        raise TeacherError(f"weights {path}: must hold a state dict, got {type(found).__name__}")
    foreign = sorted(str(key) for key, value in found.items() if not isinstance(value, Tensor))
    if foreign:
        raise TeacherError(
            f"weights {path}: a state dict holds tensors only, got other values under "
            f"{foreign[:_LISTED]}; save `model.state_dict()`"
        )
    if all(str(key).startswith("module.") for key in found):
        return {str(key).removeprefix("module."): value for key, value in found.items()}
    return {str(key): value for key, value in found.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file on the CPU.

    Raises:
        SafetensorError: If it is none.
        OSError: If it cannot be read.
    """
    found: dict[str, Tensor] = load_file(path) if is_local(path) else load(read_whole(path))
    return found


def read_torch_file(path: Path, device: torch.device | str) -> object:
    """Read a torch file without pickled objects.

    Raises:
        Exception: Of many types, if it is damaged or holds such objects.
    """
    source = path if is_local(path) else io.BytesIO(read_whole(path))
    return torch.load(source, map_location=device, weights_only=True)


def _read_torch(path: Path) -> object:
    try:
        return read_torch_file(path, "cpu")
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"weights {path}: holds pickled objects, which can run code and are refused. In a "
            "place where you trust the file, load it and save `model.state_dict()` as safetensors "
            "with safetensors.torch.save_file"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise TeacherError(f"weights {path}: not a readable torch file: {error}") from error


def load_weights(network: nn.Module, path: Path) -> None:
    """Read a file and copy it into a network; nothing is copied unless all of it fits.

    Raises:
        TeacherError: As `read_weights`, or listing every missing, unexpected and differently
            shaped key.
    """
    state = read_weights(path)
    expected = network.state_dict()
    # Counters of batches are absent from old checkpoints and do not matter for inference.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key}: expected {tuple(expected[key].shape)}, got {tuple(value.shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    parts = [
        _listing("missing", missing),
        _listing("unexpected", unexpected),
        _listing("of another shape", shapes),
    ]
    if any(parts):
        raise TeacherError(
            f"weights {path} do not fit the network: {'; '.join(part for part in parts if part)}. "
            "Check builder, builder_args and the number of classes"
        )
    network.load_state_dict(state, strict=False)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, whole or not at all.

    Raises:
        StoreError: If they cannot be written.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    write_durably(path, save(tensors))


def _listing(kind: str, entries: Sequence[str]) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return f"{len(entries)} {kind} ({', '.join(entries[:_LISTED])}{more})"


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 hex digest of names, dtypes, shapes and values, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
