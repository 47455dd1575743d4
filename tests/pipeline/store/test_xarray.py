"""xarray opens a store as it is, with named dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import SoftLabelStore
from storage_schemas.soft_labels import SoftLabelSchema

xarray = pytest.importorskip("xarray")


def _by_open_zarr(path: Path) -> Any:
    return xarray.open_zarr(path, consolidated=False, zarr_format=3, mask_and_scale=False)


def _by_engine(path: Path) -> Any:
    return xarray.open_dataset(
        path, engine="zarr", consolidated=False, zarr_format=3, mask_and_scale=False, chunks={}
    )


@pytest.mark.parametrize("open_group", [_by_open_zarr, _by_engine], ids=["open_zarr", "engine"])
def test_dimensions_are_named(full_store: SoftLabelStore, open_group: Any):
    """Arrays have the dimensions of the specification, their own types, and the schema beside."""
    with open_group(full_store.path) as labels:
        assert dict(labels.sizes) == {
            "view": 2, "row": 300, "rank": 4, "column": 5, "shard": 3, "field": 3,
        }  # fmt: skip
        assert labels["ids"].dims == ("view", "row", "rank")
        assert labels["gaps"].dims == ("view", "row", "column")
        assert labels["commits"].dims == ("view", "shard", "field")
        assert labels["ids"].dtype == np.uint16
        assert labels["ids"].chunks is not None
        schema = SoftLabelSchema.from_attributes(labels.attrs["soft_labels"], "xarray")
        assert schema == full_store.schema


def test_values_are_the_stored_ones(full_store: SoftLabelStore):
    """Selecting by name gives the codes that the store's own reader gives."""
    rows = np.array([3, 150, 299])
    wanted = full_store.fetch_quantised(rows, np.ones(3, np.int64))
    with _by_open_zarr(full_store.path) as labels:
        chosen = labels.isel(view=1, row=rows)
        np.testing.assert_array_equal(chosen["ids"].to_numpy(), wanted[0])
        np.testing.assert_array_equal(chosen["gaps"].to_numpy(), wanted[1])
