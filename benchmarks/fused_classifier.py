"""Classifier and sparse loss in one, logits a few rows at a time, against one after the other.

100,000 classes, 512 features: `torch.nn.functional.linear` and the sparse KL of `sparse_loss.py`
beside `fused_linear_loss` with the same KL; both end with the gradients of features, weight and
bias. Memory is what a step needs beside these gradients, which both make: for the unfused form
the logits and the buffer that becomes their gradient. Peaks of whole steps are in the JSON.

Where there is a GPU the same runs there, unfused, fused, and fused with a loss that torch.compile
has made of its plain formula; gradients are compared. That part has not run yet: there was no GPU.

    python benchmarks/fused_classifier.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import Figure, benchmark_parser, interleaved, median_ratio, peak_bytes, record
from sparse_loss import K, soft_labels
from torch import Tensor
from torch.nn import functional

from pipeline.numerics import SoftLabelBatch, sparse_kl
from pipeline.numerics.fused_classifier import fused_linear_loss

CLASSES, FEATURES = 100_000, 512
ROWS, ROWS_ON_GPU = 1024, 4096
Step = Callable[[], list[Tensor]]


def plain_kl(logits: Tensor, soft: SoftLabelBatch) -> Tensor:
    """Return the summed KL by its formula, without an autograd function: torch.compile fuses it."""
    logits = logits.float()
    norm = logits.logsumexp(dim=1)
    probs, tail = soft.log_probs[0].exp(), soft.log_tail[0].exp()
    chosen = logits.gather(1, soft.ids[0])
    count = logits.shape[1] - soft.ids.shape[2]
    each = tail / count
    agreed = ((probs - each[:, None]) * chosen).sum(dim=1) + each * logits.sum(dim=1)
    known = torch.xlogy(probs, probs).sum(dim=1) + torch.xlogy(tail, each)
    return (known + (probs.sum(dim=1) + tail) * norm - agreed).sum()


class Steps:
    """The forms of one step on one device, each returning the gradients."""

    def __init__(self, rows: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(rows, FEATURES, generator=generator)
        weight = torch.randn(CLASSES, FEATURES, generator=generator) / FEATURES**0.5
        bias = torch.zeros(CLASSES)
        self.inputs = [tensor.to(device) for tensor in (features, weight, bias)]
        soft, table = soft_labels(rows, CLASSES, 1)
        self.soft, self.table = soft.to(device), table.to(device)
        self.rows = rows

    def unfused(self) -> list[Tensor]:
        """The layer, then the loss."""
        leaves = [tensor.detach().requires_grad_() for tensor in self.inputs]
        loss = sparse_kl(functional.linear(*leaves), self.soft, self.table).sum() / self.rows
        return list(torch.autograd.grad(loss, leaves))

    def logits_and_loss(self) -> Tensor:
        """What the unfused form holds beside the gradients of its inputs."""
        with torch.no_grad():
            logits = functional.linear(*self.inputs)
        loss = sparse_kl(logits.requires_grad_(), self.soft, self.table).sum() / self.rows
        return torch.autograd.grad(loss, logits)[0]

    def fused(self) -> list[Tensor]:
        """Both at once, a block of rows at a time."""
        return self._fused(
            lambda logits, part: sparse_kl(logits, self.soft.rows(part), self.table).sum()
        )

    def compiled(self) -> list[Tensor]:
        """The same with the compiled formula."""
        kl = self.__dict__.setdefault("_compiled_kl", torch.compile(plain_kl))
        return self._fused(lambda logits, part: kl(logits, self.soft.rows(part)))

    def _fused(self, loss: Callable[[Tensor, slice], Tensor]) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in self.inputs]
        value = fused_linear_loss(*leaves, loss) / self.rows
        return list(torch.autograd.grad(value, leaves))


def largest_difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference of two gradients, relative to the largest entry of each."""
    return max(
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, wanted, strict=True)
    )


def on_cpu(rounds: int) -> tuple[dict[str, Any], list[Figure]]:
    """Return what was measured on the CPU, and its figures."""
    steps = Steps(ROWS, "cpu")
    gradient_bytes = sum(tensor.nbytes for tensor in steps.inputs)
    whole = {"unfused": peak_bytes(steps.unfused), "fused": peak_bytes(steps.fused)}
    beside = {
        "unfused": peak_bytes(steps.logits_and_loss),
        "fused": whole["fused"] - gradient_bytes,
    }
    memory = beside["fused"] / beside["unfused"]
    forms = {"unfused": steps.unfused, "fused": steps.fused}
    seconds = interleaved(forms, rounds=rounds, warmup=0)  # both have run for their memory
    time = median_ratio(seconds, "fused", "unfused")
    against = "F.linear and the sparse KL, gradients of features, weight and bias"
    values = {
        "rows": ROWS,
        "threads": torch.get_num_threads(),
        "milliseconds": {
            name: [round(1000 * value, 1) for value in values] for name, values in seconds.items()
        },
        "time_over_unfused": time,
        "gradient_difference": largest_difference(steps.fused(), steps.unfused()),
        "peak_bytes_beside_gradients": beside,
        "memory_over_unfused": round(memory, 4),
        "peak_bytes_of_the_step": whole,
        "gradient_bytes": gradient_bytes,
    }
    figures = [
        Figure(
            what=f"fused classifier, {CLASSES:,} classes: memory beside the gradients",
            value=round(memory, 4),
            must_be="at most",
            target=0.1,
            against=against,
            bound="a block of 32 MiB of logits and the buffer of its gradient. Next: softmax in "
            "place of the logits",
        ),
        Figure(
            what=f"fused classifier, {CLASSES:,} classes: time",
            value=time["median"],
            must_be="at most",
            target=1.1,
            against=against,
            bound="three matrix products; each block reads the weights twice and their gradient "
            "once more than one large product does. Next: larger blocks, that is memory",
        ),
    ]
    return values, figures


def on_gpu(rounds: int) -> tuple[dict[str, Any], list[Figure]]:
    """Return what was measured on the GPU, and its figures."""
    steps = Steps(ROWS_ON_GPU, "cuda")

    def timed(step: Step) -> Callable[[], None]:
        def run() -> None:
            step()
            torch.cuda.synchronize()

        return run

    forms: dict[str, Step] = {
        "unfused": steps.unfused,
        "fused": steps.fused,
        "compiled": steps.compiled,
    }
    wanted = steps.unfused()
    difference = {name: largest_difference(form(), wanted) for name, form in forms.items()}
    del wanted
    memory = {}
    for name, form in forms.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        form()
        memory[name] = torch.cuda.max_memory_allocated() - before
    seconds = interleaved(
        {name: timed(form) for name, form in forms.items()}, rounds=rounds, warmup=3
    )
    time = median_ratio(seconds, "compiled", "unfused")
    values = {
        "rows": ROWS_ON_GPU,
        "milliseconds": {
            name: [round(1000 * value, 2) for value in values] for name, values in seconds.items()
        },
        "fused_over_unfused": median_ratio(seconds, "fused", "unfused"),
        "compiled_over_unfused": time,
        "gradient_difference": difference,
        "peak_bytes_of_the_step": memory,
    }
    name = f"fused classifier on a GPU, {CLASSES:,} classes"
    against = "F.linear and the sparse KL on the same GPU"
    figures = [
        Figure(
            what=f"{name}: time, loss compiled",
            value=time["median"],
            must_be="at most",
            target=1.0,
            against=against,
            bound="not profiled yet",
        ),
        Figure(
            what=f"{name}: gradients",
            value=max(difference.values()),
            must_be="at most",
            target=1e-5,
            against=against,
            bound="float32 sums in another order",
        ),
    ]
    return values, figures


def main() -> None:
    arguments = benchmark_parser(__doc__).parse_args()
    values, figures = on_cpu(rounds=2 if arguments.quick else 9)
    gpu = None
    if torch.cuda.is_available():
        gpu, more = on_gpu(rounds=5 if arguments.quick else 30)
        figures += more
    record(
        "fused_classifier",
        {"classes": CLASSES, "features": FEATURES, "k": K, "on_cpu": values, "on_gpu": gpu},
        arguments.out / "fused_classifier.json",
        figures=figures,
    )


if __name__ == "__main__":
    main()
