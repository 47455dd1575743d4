"""Optimizer, learning-rate schedule and weight averaging of a run, from its settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from pipeline.config import AdamWConfig, ScheduleConfig, SGDConfig


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Split parameters into those with and those without weight decay.

    Without: biases, normalisation weights (anything of fewer than two dimensions), and whatever
    a module lists in `no_weight_decay()`, e.g. the self-paced scale of Knowledge Concentration,
    which must be free to grow. A module with a `learning_rate` of its own, e.g. an objective with
    discriminators, has groups of its own.
    """
    groups: dict[float | None, tuple[list[nn.Parameter], list[nn.Parameter]]] = {None: ([], [])}
    for module in modules:
        decayed, free = groups.setdefault(getattr(module, "learning_rate", None), ([], []))
        exempt = {
            f"{prefix}.{name}" if prefix else name
            for prefix, child in module.named_modules()
            if hasattr(child, "no_weight_decay")
            for name in child.no_weight_decay()
        }
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim < 2 or name in exempt
                (free if plain else decayed).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay} | ({} if lr is None else {"lr": lr})
        for lr, pair in groups.items()
        for parameters, decay in zip(pair, (weight_decay, 0.0), strict=True)
        if parameters
    ]


def build_optimizer(
    config: AdamWConfig | SGDConfig, modules: Iterable[nn.Module]
) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters of all modules."""
    groups = parameter_groups(modules, config.weight_decay)
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
    )


def learning_rate_share(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step as a share of the peak.

    `one_cycle` (Smith & Topin 2018) rises from 1/25 of the peak along a half cosine over the
    warm-up share and falls along another; `cosine` rises
    linearly and falls along a half cosine (Loshchilov & Hutter 2017).
    """
    warmup = max(1, round(config.warmup * total_steps))
    if step < warmup:
        rise = (step + 1) / warmup
        if config.name == "one_cycle":
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * rise))
        return rise
    if config.name == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build_schedule(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> LambdaLR:
    """Return the per-step schedule."""
    return LambdaLR(optimizer, lambda step: learning_rate_share(config, step, total_steps))


def build_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return the exponential moving average of weights and buffers, or None without a decay.

    Whole numbers (counters, index tables) are copied: an average of them means nothing.
    """
    if decay is None:
        return None

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], _: object) -> None:
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
