"""Accelerators of this machine."""

from __future__ import annotations

import socket

import torch


def gpu_names() -> list[str]:
    """Return a name for each GPU that no other machine's has: `gpu-<host>-0`."""
    return [gpu_name(index) for index in range(torch.cuda.device_count())]


def gpu_name(index: int) -> str:
    """Return the name of one GPU of this machine."""
    return f"gpu-{socket.gethostname()}-{index}"
