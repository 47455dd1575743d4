"""Soft-label and block-feature stores. The format is specified in storage_schemas/README.md."""

from pipeline.store.block_feature_store import (
    BlockFeatureStore,
    create_block_features,
    open_block_features,
)
from pipeline.store.compare import compare_stores
from pipeline.store.feature_summary import inspect_features
from pipeline.store.inspect import SAMPLED_LABELS, inspect_store
from pipeline.store.layout import shard_layout
from pipeline.store.opening import create_soft_labels, holds_features, open_soft_labels
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.store.store_comparison import StoreComparison
from pipeline.store.store_summary import StoreSummary
from pipeline.store.verify import take_out_of_use, verify_store

__all__ = [
    "SAMPLED_LABELS",
    "BlockFeatureStore",
    "SoftLabelStore",
    "StoreComparison",
    "StoreSummary",
    "compare_stores",
    "create_block_features",
    "create_soft_labels",
    "holds_features",
    "inspect_features",
    "inspect_store",
    "open_block_features",
    "open_soft_labels",
    "shard_layout",
    "take_out_of_use",
    "verify_store",
]
