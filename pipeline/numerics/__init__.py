"""Tensors in, tensors out: sparse soft labels, their losses, and metrics. Pure functions."""

from __future__ import annotations

from pipeline.numerics.divergences import (
    factorised_kl,
    sparse_bce,
    sparse_kl,
    support_log_mass,
)
from pipeline.numerics.ensembles import mean_teacher, one_teacher, only_teachers
from pipeline.numerics.metrics import (
    agreement,
    average_precision,
    entropy,
    expected_calibration_error,
    group_correct,
    group_top_k_correct,
    mean_per_vertical_average_precision,
    top_k_correct,
)
from pipeline.numerics.selection import count_draws, draw_counts, nucleus
from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.sparsify import SparseLogits, sparsify
from pipeline.numerics.supports import SupportTable

__all__ = [
    "SoftLabelBatch",
    "SparseLogits",
    "SupportTable",
    "sparsify",
    "nucleus",
    "draw_counts",
    "count_draws",
    "mean_teacher",
    "one_teacher",
    "only_teachers",
    "factorised_kl",
    "sparse_bce",
    "sparse_kl",
    "support_log_mass",
    "agreement",
    "average_precision",
    "entropy",
    "expected_calibration_error",
    "group_correct",
    "group_top_k_correct",
    "mean_per_vertical_average_precision",
    "top_k_correct",
]
