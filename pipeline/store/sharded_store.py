"""What a handle of soft labels and one of block features have in common.

In: the commit records, shards taken out of use, growing. Left out: what is written and read
(soft_label_store.py, block_feature_store.py) and the work itself (shards.py, row_reader.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.store.growth import grow_store
from pipeline.store.held_rows import HeldRows
from pipeline.store.row_reader import RowReader, ShardCache
from pipeline.store.shards import ShardFiles
from storage_schemas.block_features import BlockFeatureSchema
from storage_schemas.soft_labels import SoftLabelSchema

Schema = TypeVar("Schema", SoftLabelSchema, BlockFeatureSchema)


class ShardedStore(Generic[Schema]):
    """Handle of a store whose rows are written and committed shard by shard.

    Args:
        path: Directory of the store.
        schema: What its attributes say.
        cache: Where shards that were decompressed are kept.
    """

    schema: Schema

    def __init__(self, path: Path, schema: Schema, cache: ShardCache) -> None:
        self.path = path
        self._cache = cache
        self._use(schema)

    def _use(self, schema: Schema) -> None:
        self.schema = schema
        self._files = ShardFiles(self.path, schema)
        self._rows = RowReader(self._files, self._cache)
        self._held: HeldRows | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, teacher={self.schema.teacher!r})"

    @property
    def commits(self) -> npt.NDArray[np.uint32]:
        """(views, shards, 1 + arrays) uint32: written rows, crc32c of each array; read anew.

        A record that cannot be read counts as not done, so that its shard is written again.
        """
        return self._files.commits()

    def commit_record(self, view: int, shard: int) -> tuple[int, ...]:
        """Return one commit record; zeros where the shard is not done.

        Raises:
            CorruptLabelError: If the record cannot be read.
        """
        return self._files.commit(view, shard)

    def shard_span(self, shard: int) -> range:
        """Return the rows of a shard, cut at the number of rows."""
        return self._files.span(shard)

    def discard_shard(self, view: int, shard: int) -> None:
        """Remove the commit record of a damaged shard, so that it is written again."""
        self._files.discard(view, shard)
        self._forget(view, shard)

    def _forget(self, view: int, shard: int) -> None:
        """Keep nothing in memory of a shard that is no longer the same."""
        self._rows.forget(view, shard)
        self._held = None

    def grow(self, num_rows: int) -> None:
        """Make room for more rows; what is there stays valid. One process at a time.

        Raises:
            StoreError: If the number of rows would shrink, or the store cannot be written.
        """
        grown = grow_store(self.path, self.schema, num_rows)
        if grown is not self.schema:
            self._use(grown)
