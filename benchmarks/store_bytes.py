"""Bytes of a label store at K = 16 and C = 1,000, against the entropy of its symbols and others.

Writes the answers of one teacher (`realistic_logits.py`) three times: as a label store, as records
of TinyViT (github.com/microsoft/Cream: a 4-byte seed, k 2-byte class indices, k float16
probabilities, no header), and as dense float16 logits (of the first view, their size is fixed).
Says bytes a label, the zeroth-order entropy of each column
of the store, and the KL from the dense float32 answers that each loses. Exit code 1 when the store
takes more than 31 bytes a label or 1.10 times the entropy.

    python benchmarks/store_bytes.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from measure import record
from realistic_logits import CLASSES, description, train_teacher

from pipeline.numerics import sparsify
from pipeline.store import SoftLabelStore, create_soft_labels, shard_layout
from storage_schemas.soft_labels import SoftLabelSchema, decode, encode

K = 16
MOST_BYTES = 31.0
MOST_RATIO = 1.10
BLOCK_ROWS = 1_024

Floats = npt.NDArray[np.float64]


def entropy_bits(counts: npt.NDArray[np.int64]) -> Floats:
    """Return the zeroth-order entropy of each row of (columns, symbols) counts."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)


def column_counts(values: npt.NDArray[Any], symbols: int) -> npt.NDArray[np.int64]:
    """Return (columns, symbols) counts."""
    return np.stack([np.bincount(column, minlength=symbols) for column in values.T])


def spread(ids: npt.NDArray[Any], p: Floats) -> Floats:
    """Return dense (rows, C) probabilities, the rest of the mass even over the other classes."""
    rest = np.maximum(1 - p.sum(axis=1), 1e-12) / (CLASSES - K)
    dense = np.repeat(rest[:, None], CLASSES, axis=1)
    np.put_along_axis(dense, ids.astype(np.int64), np.maximum(p, 1e-12), axis=1)
    return dense / dense.sum(axis=1, keepdims=True)


class Loss:
    """Mean and largest KL from dense answers."""

    def __init__(self) -> None:
        self.parts: list[Floats] = []

    def add(self, log_p: Floats, log_q: Floats) -> None:
        """Add rows of (rows, C) log probabilities."""
        self.parts.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))

    def result(self) -> dict[str, float]:
        """Return both, in nats."""
        values = np.concatenate(self.parts)
        return {"kl_mean": float(values.mean()), "kl_max": float(values.max())}


def write_all(
    folder: Path, rows: int, views: int, seed: int
) -> tuple[SoftLabelStore, dict[str, Any]]:
    """Write the three forms and return the store and what was measured on the way."""
    generator = torch.Generator().manual_seed(seed + 1)
    teacher = train_teacher(seed)
    samples, labels = teacher.samples(rows, generator)
    shard_rows, chunk_rows = shard_layout(rows)
    schema = SoftLabelSchema(
        teacher="c1000",
        num_rows=rows,
        num_views=views,
        k=K,
        num_classes=CLASSES,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        classes=tuple(f"all/{at}" for at in range(CLASSES)),
        global_ids=tuple(range(CLASSES)),
        fingerprint_parts={"benchmark": "store_bytes"},
    )
    store = create_soft_labels(folder / "store.zarr", schema)
    ids_counts = np.zeros((K, CLASSES), np.int64)
    gaps_counts = np.zeros((schema.columns, 255), np.int64)
    record_type = np.dtype([("seed", "<i4"), ("ids", "<u2", K), ("p", "<f2", K)])
    losses = {name: Loss() for name in ("store", "tinyvit", "dense_float16", "top_k_exact")}
    judged: dict[str, Any] = {}
    with (folder / "tinyvit.bin").open("wb") as tinyvit, (folder / "dense.bin").open("wb") as dense:
        for view, shard in np.ndindex(views, schema.num_shards):
            span = store.shard_span(shard)
            logits = teacher.answers(samples[span.start : span.stop], generator)
            if not judged:
                judged = description(logits, labels[span.start : span.stop])
            found = sparsify(logits, K, schema.temperatures)
            ids, gaps = encode(
                schema, found.ids.numpy(), found.logits.numpy(), found.log_tail_ratio.numpy()
            )
            store.write_shard(view, shard, ids, gaps)
            ids_counts += column_counts(ids, CLASSES)
            gaps_counts += column_counts(gaps, 255)
            p = torch.softmax(logits, dim=1).gather(1, found.ids).numpy()
            entries = np.zeros(len(ids), record_type)
            entries["seed"], entries["ids"], entries["p"] = np.arange(len(ids)), ids, p
            tinyvit.write(entries.tobytes())
            if view == 0:
                dense.write(logits.to(torch.float16).numpy().tobytes())
            if shard == 0:
                measure_losses(losses, schema, logits, (ids, gaps), entries, p)
            print(f"  view {view}, shard {shard}", file=sys.stderr)
    bits = {"ids": entropy_bits(ids_counts), "gaps": entropy_bits(gaps_counts)}
    labels_written = rows * views
    return store, {
        "answers": judged,
        "kl_from_dense": {name: loss.result() for name, loss in losses.items()},
        "entropy_bits_per_column": {
            name: [round(float(value), 3) for value in found] for name, found in bits.items()
        },
        "entropy_bytes": {name: float(found.sum()) / 8 for name, found in bits.items()},
        "tinyvit_bytes": (folder / "tinyvit.bin").stat().st_size / labels_written,
        "dense_float16_bytes": (folder / "dense.bin").stat().st_size / rows,
    }


def measure_losses(
    losses: dict[str, Loss],
    schema: SoftLabelSchema,
    logits: torch.Tensor,
    codes: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    entries: npt.NDArray[np.void],
    p: npt.NDArray[np.float32],
) -> None:
    """Add the KL of every form on some rows."""
    for at in range(0, len(logits), BLOCK_ROWS):
        block = slice(at, at + BLOCK_ROWS)
        log_p = logits[block].double().log_softmax(dim=1).numpy()
        half = logits[block].to(torch.float16).double().log_softmax(dim=1).numpy()
        losses["dense_float16"].add(log_p, half)
        found = decode(schema, codes[0][block], codes[1][block])
        stored = spread(found.ids, np.exp(found.log_probs.astype(np.float64)))
        losses["store"].add(log_p, np.log(stored))
        ids = entries["ids"][block]
        losses["tinyvit"].add(log_p, np.log(spread(ids, entries["p"][block].astype(np.float64))))
        losses["top_k_exact"].add(log_p, np.log(spread(ids, p[block].astype(np.float64))))


def size_of(path: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    labels = arguments.rows * arguments.views
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, found = write_all(folder, arguments.rows, arguments.views, arguments.seed)
        total = size_of(store.path) / labels
        arrays = {part: size_of(store.path / part) / labels for part in ("ids", "gaps", "commits")}
        layout = {"shard_rows": store.schema.shard_rows, "chunk_rows": store.schema.chunk_rows}
    ratio = total / sum(found["entropy_bytes"].values())
    targets = {
        f"at most {MOST_BYTES:g} bytes a label": total <= MOST_BYTES,
        f"at most {MOST_RATIO:g} times the entropy": ratio <= MOST_RATIO,
    }
    record(
        "store_bytes",
        {
            "rows": arguments.rows,
            "views": arguments.views,
            "classes": CLASSES,
            "k": K,
            **layout,
            "bytes_per_label": {
                "store": round(total, 3),
                **{f"store, {part}": round(value, 3) for part, value in arrays.items()},
                "tinyvit": found.pop("tinyvit_bytes"),
                "dense_float16": found.pop("dense_float16_bytes"),
            },
            "ratio_to_entropy": round(ratio, 4),
            **found,
            "targets": targets,
        },
    )
    if not all(targets.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
