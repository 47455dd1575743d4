"""From logits of 100,000 classes to what a store keeps, against `torch.topk` alone.

What a store keeps is the 16 most probable classes in a fixed order, the mass outside them at one
temperature or three, and both as the codes that are written. The logits are those of a teacher in
float32, and rounded to bfloat16: then many are equal, and the order among them must be found.

    python benchmarks/top_k.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from measure import Figure, benchmark_parser, interleaved, median_ratio, record
from torch import Tensor

from pipeline.teachers.labelling import coded
from storage_schemas.soft_label_schema import SoftLabelSchema

ROWS, CLASSES, K = 128, 100_000, 16


def schema_of(temperatures: Sequence[float]) -> SoftLabelSchema:
    """Return the schema of a teacher of all classes."""
    return SoftLabelSchema(
        teacher="whole",
        num_rows=ROWS,
        num_views=1,
        k=K,
        num_classes=CLASSES,
        shard_rows=ROWS,
        chunk_rows=ROWS,
        temperatures=tuple(temperatures),
        classes=tuple(f"all/{i}" for i in range(CLASSES)),
        global_ids=tuple(range(CLASSES)),
        fingerprint_parts={},
    )


def main() -> None:
    arguments = benchmark_parser(__doc__).parse_args()
    logits = 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
    halves = logits.bfloat16().float()
    one, three = schema_of((1.0,)), schema_of((1.0, 2.0, 4.0))
    rows = np.arange(ROWS)

    def codes(schema: SoftLabelSchema, answers: Tensor) -> object:
        return coded(schema, answers, rows, 0)

    seconds = interleaved(
        {
            "topk": lambda: logits.topk(K, dim=1),
            "labels": lambda: codes(one, logits),
            "labels_of_three_temperatures": lambda: codes(three, logits),
            "topk_bfloat16": lambda: halves.topk(K, dim=1),
            "labels_bfloat16": lambda: codes(one, halves),
        },
        rounds=8 if arguments.quick else 60,
    )
    ratio = median_ratio(seconds, "labels", "topk")
    ratio_bfloat16 = median_ratio(seconds, "labels_bfloat16", "topk_bfloat16")
    bound = (
        "exp of every logit for the tail (two thirds), then the largest of every 16 logits. Next: "
        "a kernel that finds both in one pass"
    )
    record(
        "top_k",
        {
            "rows": ROWS,
            "classes": CLASSES,
            "k": K,
            "threads": torch.get_num_threads(),
            "milliseconds": {
                name: [round(1000 * value, 2) for value in values]
                for name, values in seconds.items()
            },
            "over_topk": ratio,
            "three_temperatures_over_topk": median_ratio(
                seconds, "labels_of_three_temperatures", "topk"
            ),
            "bfloat16_over_topk": ratio_bfloat16,
        },
        arguments.out / "top_k.json",
        figures=[
            Figure(
                what=f"top-{K}, gaps and tail of {CLASSES:,} logits",
                value=ratio["median"],
                must_be="at most",
                target=1.2,
                against="torch.topk alone",
                bound=bound,
            )
        ],
    )


if __name__ == "__main__":
    main()
