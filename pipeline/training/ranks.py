"""What the ranks of one training run do together: gradients, batch statistics, values, randomness.

In: DistributedDataParallel, BatchNorm over all ranks, means over ranks, and the random numbers of
a rank. Left out: which rows a rank takes (data/epoch_order.py), how a loss counts the rows of all
ranks (objectives/targets.py), and how ranks are started (launch.py, distributed.py). Without a
process group there is one rank, and nothing here changes anything.

Batch statistics: on GPUs a BatchNorm layer normalises with those of the whole batch. torch has no
such layer on a CPU: there each rank normalises with the statistics of its own rows, and the
running statistics that are kept are those of rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from storage_schemas.errors import TrainingError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of ranks; (0, 1) without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def average_gradients(module: nn.Module) -> nn.Module:
    """Return a module whose backward pass leaves the mean gradient of all ranks on each rank.

    Its parameters become those of rank 0. Every parameter that trains must be used in each step.
    """
    return module if rank_and_size()[1] == 1 else nn.parallel.DistributedDataParallel(module)


def share_batch_statistics(module: nn.Module) -> None:
    """Turn each BatchNorm layer on a GPU into one over all ranks; in place, weights stay.

    Layers of a class derived from BatchNorm are left, except timm's, which brings its own
    conversion: torch's would drop what the derived class does besides.
    """
    if rank_and_size()[1] == 1:
        return
    for name, child in module.named_children():
        if type(child).__module__.startswith("timm.") and isinstance(child, _BATCH_NORMS):
            from timm.layers import convert_sync_batchnorm

            setattr(module, name, convert_sync_batchnorm(child))
        elif type(child) in _BATCH_NORMS:
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
            setattr(module, name, convert(child))  # type: ignore[no-untyped-call]
        else:
            share_batch_statistics(child)


def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of each scalar over the ranks; every rank must call it."""
    _, size = rank_and_size()
    if size == 1:
        return dict(values)
    stacked = torch.stack([value.float() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, (stacked / size).unbind(), strict=True))


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if rank_and_size()[1] > 1:
        dist.barrier()


def check_same_step(step: int) -> None:
    """Refuse ranks that begin at different steps.

    Raises:
        TrainingError: If a rank could not read the checkpoint that another has read.
    """
    _, size = rank_and_size()
    if size == 1:
        return
    steps: list[int] = [0] * size
    dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise TrainingError(
            f"all ranks must begin at the same step, got {steps}: a checkpoint can be read by "
            "some of them only; run again"
        )


def seed_step(seed: int, step: int) -> None:
    """Make the random numbers of a step, e.g. dropout masks, a function of (seed, step, rank).

    So they are defined for any number of ranks at which a run goes on, and differ among ranks.
    One rank draws from one stream instead, which its checkpoints hold.
    """
    rank, size = rank_and_size()
    if size > 1:
        state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))
