"""The sparse losses forward and backward, against cross-entropy with hard labels and dense KL.

All read the same logits, and end with their gradient. `whole`: one teacher of all classes, KL to
its 16 stored classes and an even tail (objective soft_labels). `verticals`: a hundred teachers of
a hundredth of the classes each (10 at 1,000 classes), KL over all classes, and the two parts of
Knowledge Concentration. Dense KL reads a dense target from memory. Memory is the peak of what a
step allocates beside the logits and the labels, as torch's own allocator counts it.

    python benchmarks/sparse_loss.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from measure import Figure, benchmark_parser, interleaved, median_ratio, peak_bytes, record
from torch import Tensor
from torch.nn import functional

from pipeline.numerics import SoftLabelBatch, SupportTable, factorised_kl, sparse_kl

K = 16
# Classes: rows, verticals, steps in a timed round.
SIZES = {1_000: (1024, 10, 20), 100_000: (256, 100, 1)}


def soft_labels(rows: int, classes: int, teachers: int) -> tuple[SoftLabelBatch, SupportTable]:
    """Return the top 16 of random answers of teachers who divide the classes among them."""
    generator = torch.Generator().manual_seed(rows)
    size = classes // teachers
    supports = torch.arange(classes).view(teachers, size)
    teacher = torch.randint(0, teachers, (rows,), generator=generator)
    dense = (3 * torch.randn(rows, size, generator=generator)).log_softmax(dim=1)
    top = dense.topk(K, dim=1)
    tail = dense.scatter(1, top.indices, -torch.inf).logsumexp(dim=1)
    soft = SoftLabelBatch(
        ids=(top.indices + size * teacher[:, None])[None],
        log_probs=top.values[None],
        log_tail=tail[None],
        teacher=teacher[None],
    )
    return soft, SupportTable.from_supports(list(supports), classes)


def cases_of(classes: int, rows: int, verticals: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the losses by name, each of (rows, classes) logits."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    dense = (3 * torch.randn(rows, classes, generator=generator)).log_softmax(dim=1)
    whole, whole_table = soft_labels(rows, classes, 1)
    own, own_table = soft_labels(rows, classes, verticals)

    def factorised(logits: Tensor, temperature: float) -> Tensor:
        mass, divergence = factorised_kl(logits, own, own_table, temperature=temperature)
        return divergence.mean() - mass.mean()

    def dense_kl(logits: Tensor) -> Tensor:
        return functional.kl_div(
            logits.log_softmax(dim=1), dense, log_target=True, reduction="batchmean"
        )

    return {
        "cross_entropy": lambda x: functional.cross_entropy(x, labels),
        "dense_kl": dense_kl,
        "whole": lambda x: sparse_kl(x, whole, whole_table).mean(),
        "whole_temperature_4": lambda x: sparse_kl(x, whole, whole_table, temperature=4.0).mean(),
        "verticals": lambda x: sparse_kl(x, own, own_table).mean(),
        "verticals_factorised": functools.partial(factorised, temperature=1.0),
        "verticals_factorised_temperature_4": functools.partial(factorised, temperature=4.0),
    }


def measured(classes: int, rows: int, verticals: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return ratios of time and of memory to cross-entropy, and of dense KL to the sparse one."""
    logits = 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(1))

    def step(loss: Callable[[Tensor], Tensor], count: int) -> None:
        for _ in range(count):
            loss(logits.detach().requires_grad_()).backward()  # type: ignore[no-untyped-call]

    losses = cases_of(classes, rows, verticals)
    seconds = interleaved(
        {name: functools.partial(step, loss, steps) for name, loss in losses.items()},
        rounds=rounds,
    )
    memory = {name: peak_bytes(functools.partial(step, loss, 1)) for name, loss in losses.items()}
    return {
        "rows": rows,
        "verticals": verticals,
        "milliseconds": {
            name: [round(1000 * value / steps, 3) for value in values]
            for name, values in seconds.items()
        },
        "time_over_cross_entropy": {
            name: median_ratio(seconds, name, "cross_entropy") for name in losses
        },
        "dense_kl_over_whole": median_ratio(seconds, "dense_kl", "whole"),
        "peak_bytes": memory,
        "memory_over_cross_entropy": {
            name: round(value / memory["cross_entropy"], 4) for name, value in memory.items()
        },
    }


def figures_of(classes: int, found: dict[str, Any]) -> list[Figure]:
    """Return what the table shows of one number of classes."""
    against = "F.cross_entropy with hard labels on the same logits"
    name = f"sparse loss, forward and backward, {classes:,} classes"
    slow = "exp of every logit once (half of the time)"
    bound = {
        1_000: f"{slow}; the small tensors of the labels, some 0.3 ms a batch of any size. "
        "Next: one kernel for them",
        100_000: f"page faults of the one buffer, then {slow}. Next: no buffer at all, which is "
        "the fused classifier",
    }[classes]
    over, memory = found["time_over_cross_entropy"], found["memory_over_cross_entropy"]
    figures = [
        Figure(
            what=f"{name}: {label}",
            value=over[case]["median"],
            must_be="at most",
            target=1.0,
            against=against,
            bound=bound,
        )
        for case, label in (("whole", "KL"), ("verticals_factorised", "Knowledge Concentration"))
        # At 1,000 classes the supports of 10 verticals cost more than the softmax: in the JSON.
        if case == "whole" or classes == max(SIZES)
    ]
    figures.append(
        Figure(
            what=f"{name}: peak memory",
            value=max(memory["whole"], memory["verticals_factorised"]),
            must_be="at most",
            target=1.0,
            against=against,
            bound="one buffer of the size of the logits, which becomes the gradient; cross-entropy "
            "has three",
        )
    )
    if classes == max(SIZES):
        figures.append(
            Figure(
                what=f"dense KL over sparse, {classes:,} classes",
                value=found["dense_kl_over_whole"]["median"],
                must_be="at least",
                target=3.0,
                against="F.kl_div with a dense target",
                bound=bound,
            )
        )
    return figures


def main() -> None:
    arguments = benchmark_parser(__doc__).parse_args()
    rounds = 3 if arguments.quick else 15
    found = {
        classes: measured(classes, *settings, rounds=rounds) for classes, settings in SIZES.items()
    }
    # A batch so small that the labels' own tensors count as much as the logits.
    small = measured(1_000, 256, 10, 60, rounds)
    record(
        "sparse_loss",
        {
            "k": K,
            "threads": torch.get_num_threads(),
            "classes": {f"{classes}": values for classes, values in found.items()},
            "classes_1000_small_batch": small,
        },
        arguments.out / "sparse_loss.json",
        figures=[figure for classes in found for figure in figures_of(classes, found[classes])],
    )


if __name__ == "__main__":
    main()
