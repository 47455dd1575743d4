"""What the soft-label code costs in accuracy: KL added by quantisation, and bytes.

Compares (a) rounding of cumulative distances with rounding of each gap, and (b) tail step 1/8
with the exact offset with tail step 1/16 and offset 4, on synthetic logits: Zipf prior, clusters
of confused classes, and per-sample noise. "Added" KL is that of the coded K + 1 outcomes from the
exact ones; truncation to K is not in it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from measure import record
from numcodecs import Zstd

Floats = npt.NDArray[np.float64]
LARGEST = 254
GAP_STEP = 1 / 16
CASES = {
    "C=1000 K=16 T=1": (1_000, 16, 1.0),
    "C=100k K=16 T=1": (100_000, 16, 1.0),
    "C=100k K=16 T=2": (100_000, 16, 2.0),
}


def logits_of(rng: np.random.Generator, rows: int, classes: int) -> Floats:
    """Return (rows, classes) logits: prior, cluster of the true class, and noise."""
    small = classes <= 1_000
    clusters = max(classes // 20, 1)
    cluster = rng.integers(0, clusters, classes)
    prior = -np.log(1 + rng.permutation(classes)) * (0.3 if small else 0.8)
    truth = rng.integers(0, classes, rows)
    logits = prior + rng.normal(0, 1.5, (rows, classes))
    logits += 4.0 * (cluster[None] == cluster[truth][:, None])
    strength = rng.normal(9.5 if small else 12.0, 3.0, rows)
    logits[np.arange(rows), truth] += strength
    return logits


def exact_of(logits: Floats, k: int, temperature: float) -> tuple[Floats, Floats, Floats]:
    """Return distances (rows, K), log p1 - log tail (rows,), and the dense entropy (rows,)."""
    part = -np.partition(-logits, k - 1, axis=1)
    best = -np.sort(-part[:, :k], axis=1)
    first = best[:, :1]
    tail = np.exp((part[:, k:] - first) / temperature).sum(axis=1)
    scaled = (logits - first) / temperature
    norm = np.log(np.exp(scaled).sum(axis=1))
    entropy = norm - (np.exp(scaled) * scaled).sum(axis=1) / np.exp(norm)
    return first - best, -np.log(tail), entropy


def coded_distances(distances: Floats, cumulative: bool) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Return the distances that come back and the stored gaps."""
    if cumulative:
        reach = LARGEST * np.arange(distances.shape[1])
        ranks = np.minimum.accumulate(np.rint(distances / GAP_STEP) - reach, axis=1) + reach
        gaps = np.diff(ranks, axis=1)
    else:
        gaps = np.minimum(np.rint(np.diff(distances, axis=1) / GAP_STEP), LARGEST)
    back = np.concatenate([np.zeros((len(gaps), 1)), np.cumsum(gaps, axis=1)], axis=1) * GAP_STEP
    return back, gaps.astype(np.uint8)


def coded_tail(ratio: Floats, step: float, offset: float) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Return the tail ratio that comes back and the stored column."""
    code = np.clip(np.rint((ratio + offset) / step), 0, LARGEST)
    return code * step - offset, code.astype(np.uint8)


def log_outcomes(distances: Floats, ratio: Floats, temperature: float) -> Floats:
    """Return log probabilities of the K classes and the tail, (rows, K + 1)."""
    scores = np.concatenate([-distances / temperature, -ratio[:, None]], axis=1)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def measure(classes: int, k: int, temperature: float, rows: int, seed: int) -> dict[str, Any]:
    """Return KL added (mean and max, nats) and bytes a label for the six codes."""
    rng = np.random.default_rng(seed)
    block = max(1, min(rows, 20_000_000 // classes))
    parts = [
        exact_of(logits_of(rng, min(block, rows - at), classes), k, temperature)
        for at in range(0, rows, block)
    ]
    distances, ratio, entropy = (np.concatenate(values) for values in zip(*parts, strict=True))
    exact = log_outcomes(distances, ratio, temperature)
    top_p = np.exp(exact)
    result: dict[str, Any] = {
        "rows": rows,
        "entropy_mean": float(entropy.mean()),
        "p1_mean": float(top_p[:, 0].mean()),
        "tail_mass_mean": float(top_p[:, -1].mean()),
        "tail_ratio_range": [float(ratio.min()), float(ratio.max())],
        "codes": {},
    }
    offset = float(math.ceil(math.log(classes - k)))
    for rounding in ("cumulative", "independent"):
        for name, step, shift in (
            ("1/8 exact", 1 / 8, offset),
            ("1/16 +4", 1 / 16, 4.0),
            ("1/16 exact", 1 / 16, offset),
        ):
            back, gaps = coded_distances(distances, rounding == "cumulative")
            tail_back, tail = coded_tail(ratio, step, shift)
            coded = log_outcomes(back, tail_back, temperature)
            added = (top_p * (exact - coded)).sum(axis=1)
            stored = np.concatenate([gaps, tail[:, None]], axis=1)
            result["codes"][f"{rounding}, tail {name}"] = {
                "kl_added_mean": float(added.mean()),
                "kl_added_max": float(added.max()),
                "bytes_per_label": len(Zstd(level=1).encode(np.ascontiguousarray(stored))) / rows,
            }
    return result


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16_384, help="rows at C = 1,000")
    parser.add_argument("--rows-large", type=int, default=2_048, help="rows at C = 100,000")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = {
        name: measure(
            classes,
            k,
            temperature,
            arguments.rows if classes <= 1_000 else arguments.rows_large,
            arguments.seed,
        )
        for name, (classes, k, temperature) in CASES.items()
    }
    record("code_error", {"seed": arguments.seed, "cases": found})


if __name__ == "__main__":
    main()
