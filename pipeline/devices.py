"""Accelerators of this machine."""

from __future__ import annotations

import os
import socket

import torch


def gpu_names() -> list[str]:
    """Return a name for each GPU that no other machine's has: `gpu-<host>-0`."""
    return [gpu_name(index) for index in range(torch.cuda.device_count())]


def gpu_name(index: int) -> str:
    """Return the name of one GPU of this machine.

    Args:
        index: Among those that this process sees. Workers that see one GPU each call it 0, and the
            name says which one of the machine it is.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = visible[index].strip() if index < len(visible) else ""
    return f"gpu-{socket.gethostname()}-{number or index}"
