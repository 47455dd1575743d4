"""`concentrate inspect` of a store of block features."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.store import create_block_features
from storage_schemas.block_features import BlockFeatureSchema


@pytest.fixture
def store(tmp_path):
    """Half of the rows of one view, all ones."""
    schema = BlockFeatureSchema(
        teacher="birds",
        num_rows=8,
        num_views=1,
        shard_rows=4,
        chunk_rows=4,
        arrays=[{"block": "l.1", "reduce": "pool", "channels": 2, "height": 1, "width": 1}],
    )
    made = create_block_features(tmp_path / "store.zarr", schema)
    made.write_shard(0, 0, np.ones((4, 2, 1, 1), np.float16))
    return made.path


def test_inspect_shows_what_a_feature_store_holds(store):
    """As a table and as JSON; damage ends with 1, a page that there is not with 2."""
    shown = CliRunner().invoke(app, ["inspect", str(store)])
    assert shown.exit_code == 0, shown.output
    assert "50.0 % of 8" in " ".join(shown.output.split())
    found = json.loads(CliRunner().invoke(app, ["inspect", str(store), "--json"]).stdout)
    assert (found["arrays"][0]["mean"], found["arrays"][0]["deviation"]) == (1, 0)
    refused = CliRunner().invoke(app, ["inspect", str(store), "--html", "page.html"])
    assert refused.exit_code == 2
    (store / "l_1.pool" / "c" / "0" / "0" / "0" / "0" / "0").write_bytes(b"torn")
    damaged = CliRunner().invoke(app, ["inspect", str(store)])
    assert damaged.exit_code == 1
    assert "l_1.pool" in damaged.output
