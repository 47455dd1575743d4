"""`SoftLabelStore`: one teacher's soft labels, on a disk or in a bucket.

In: the public face of a store: its commit records, what is missing, writing and reading shards,
reading rows, growing. Left out: the work itself (shards.py, row_reader.py, lazy.py), creating and
opening (opening.py), verification (verify.py), statistics (inspect.py).

torch and dask are imported where they are needed. The handle can be pickled; each process opens
the arrays for itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.locations import is_local
from pipeline.store.held_rows import HeldRows
from pipeline.store.row_reader import Rows, ShardCache
from pipeline.store.sharded_store import ShardedStore
from pipeline.store.shards import Array
from storage_schemas.label_space import LabelMap
from storage_schemas.soft_labels import DecodedLabels, SoftLabelSchema, decode

if TYPE_CHECKING:
    import dask.array

    from pipeline.numerics.soft_label_batch import SoftLabelBatch


class SoftLabelStore(ShardedStore[SoftLabelSchema]):
    """Handle of a store; `create_soft_labels` and `open_soft_labels` return it.

    Args:
        path: Directory of the store.
        schema: What its attributes say.
        label_map: Teacher-local ids to global ids.
        cache: Where shards that `read` and `fetch` have decompressed are kept.
    """

    def __init__(
        self, path: Path, schema: SoftLabelSchema, label_map: LabelMap, cache: ShardCache
    ) -> None:
        super().__init__(path, schema, cache)
        self._held_temperature = 1.0
        self.label_map = label_map
        # One more entry than classes, so that the local id -1 stays -1.
        self._global_ids = np.append(label_map.global_ids, -1)
        # As where the teacher knows a vertical, or all classes: adding is faster than looking up.
        first = int(label_map.global_ids[0])
        consecutive = np.arange(first, first + len(label_map.global_ids))
        self._first_id = first if np.array_equal(label_map.global_ids, consecutive) else None

    def __reduce__(self) -> tuple[Any, ...]:
        """Carry the description only; the arrays are opened where it arrives."""
        return type(self), (self.path, self.schema, self.label_map, self._cache)

    # --- writing ----------------------------------------------------------------------------

    def empty_shard(self, *shape: int) -> tuple[Array, Array]:
        """Return ids (*shape, shard_rows, K) and gaps (*shape, shard_rows, columns) of fill."""
        return self.schema.empty(*shape, self.schema.shard_rows)

    def write_shard(self, view: int, shard: int, ids: Array, gaps: Array) -> tuple[int, ...]:
        """Write and commit one whole shard; only one writer may do so at a time.

        The order is: old commit record removed, gaps, ids, files and directories synced, commit
        record, synced. A process that dies in between leaves the shard not done.

        Args:
            view: View of the shard.
            shard: Index along the rows.
            ids: (shard_rows, K), or as many rows as the shard has; fill where not labelled.
            gaps: (shard_rows, columns), or as many rows as the shard has.

        Returns:
            The commit record.

        Raises:
            ValueError: If the arrays are not what `encode` returns, or hold no label.
            StoreError: If the store cannot be written.
        """
        record = self._files.write(view, shard, ids, gaps)
        self._forget(view, shard)
        return record

    # --- reading ----------------------------------------------------------------------------

    def read_shard(self, view: int, shard: int) -> tuple[Array, Array]:
        """Read one shard anew and check it against its commit record, every time.

        Returns:
            ids (rows, K) and gaps (rows, columns), quantised; rows as in `shard_span`.

        Raises:
            MissingLabelError: If the shard has no commit record.
            CorruptLabelError: If the bytes disagree with it; names array, view and shard.
        """
        ids, gaps = self._files.read(view, shard)
        return ids, gaps

    def structure_problem(self, name: str, view: int, shard: int) -> str | None:
        """Return what is wrong with the file of a committed shard of `ids` or `gaps`, or None.

        Reads the index, and on a disk the heads of the chunks: finds truncation, not flipped bits.

        Raises:
            OSError: If the file cannot be read.
        """
        return self._files.structure_problem(name, view, shard, heads=is_local(self.path))

    def read_shard_ids(self, view: int, shard: int, crc: int) -> Array:
        """Read the ids of one shard alone, (rows, K).

        Args:
            view: View of the shard.
            shard: Index along the rows.
            crc: Of its commit record, from `commits`.

        Raises:
            CorruptLabelError: If the bytes disagree with it.
        """
        return self._files.read_ids(view, shard, crc)

    def read_shard_gaps(self, view: int, shard: int, rows: range) -> Array:
        """Read some rows of one shard's gaps, checked by their chunks' crc32c alone.

        Args:
            view: View of the shard.
            shard: Index along the rows.
            rows: Counted from the first row of the shard.
        """
        return self._files.read_gaps(view, shard, rows)

    def fetch_quantised(self, rows: Rows, views: Rows) -> tuple[Array, Array]:
        """Return ids (B, K) and gaps (B, columns) as stored, of (B,) rows and (B,) views.

        Shards are read once and kept in memory as far as the cache has room.

        Raises:
            MissingLabelError: If one of them has not been labelled; names row and view.
            CorruptLabelError: If stored bytes disagree with their commit record.
            StoreError: If a row or view is not in the store.
        """
        ids, gaps = self._rows.fetch(rows, views)
        return ids, gaps

    @property
    def _held_ids_dtype(self) -> np.dtype[np.signedinteger[Any]]:
        """Smallest type of global ids and -1."""
        return np.min_scalar_type(-int(self.label_map.global_ids.max()) - 1)

    @property
    def held_label_bytes(self) -> int:
        """Memory that a label takes where it is held."""
        return self.schema.k * (self._held_ids_dtype.itemsize + 4) + 4

    def hold(
        self,
        rows: Rows,
        views: npt.NDArray[np.bool_] | None = None,
        *,
        temperature: float = 1.0,
    ) -> None:
        """Keep the labels of these ascending rows in memory, decoded: 100 bytes each at K = 16.

        That is twice what they take as stored, and `fetch` then is a gather alone.

        Args:
            rows: (n,) ascending.
            views: (n, V) bool, which of their views; None: all. Others are then refused.
            temperature: At which `fetch` will be asked for them.

        Raises:
            MissingLabelError: If one of them has not been labelled.
            CorruptLabelError: If stored bytes disagree with their commit record.
            SchemaMismatchError: If the temperature was not declared.
        """

        def kept(stored: tuple[Array, ...]) -> tuple[Array, ...]:
            ids, gaps = stored
            found = self.decode(ids, gaps, temperature)
            return found.ids.astype(self._held_ids_dtype), found.log_probs, found.log_tail

        self._held = HeldRows(self._files, rows, views, kept)
        self._held_temperature = temperature

    def decode(self, ids: Array, gaps: Array, temperature: float = 1.0) -> DecodedLabels:
        """Decode stored values of B rows, with global class ids.

        Raises:
            SchemaMismatchError: If the temperature was not declared.
        """
        local = decode(self.schema, ids, gaps, temperature)
        if self._first_id is None or (local.ids.size and local.ids.min() < 0):
            return local._replace(ids=self._global_ids.take(local.ids))
        if self._first_id:
            np.add(local.ids, self._first_id, out=local.ids)
        return local

    def fetch(self, rows: Rows, views: Rows, *, temperature: float = 1.0) -> DecodedLabels:
        """Return the soft labels of (B,) rows and (B,) views as numpy arrays, with global ids.

        Raises:
            MissingLabelError: If one of them has not been labelled.
            CorruptLabelError: If stored bytes disagree with their commit record.
            SchemaMismatchError: If the temperature was not declared.
        """
        if self._held is not None and temperature == self._held_temperature:
            held = self._held.gather(rows, views)
            if held is not None:
                ids, log_probs, log_tail = held
                return DecodedLabels(ids.astype(np.int64), log_probs, log_tail)
        return self.decode(*self.fetch_quantised(rows, views), temperature)

    def read(self, rows: Rows, view: int, temperature: float = 1.0) -> SoftLabelBatch:
        """Return the soft labels of (B,) rows in one view, as one teacher's batch (T = 1).

        Raises:
            MissingLabelError: If one of them has not been labelled.
            CorruptLabelError: If stored bytes disagree with their commit record.
            SchemaMismatchError: If the temperature was not declared.
        """
        import torch

        from pipeline.numerics.soft_label_batch import SoftLabelBatch

        rows = np.asarray(rows, np.int64)
        found = self.fetch(rows, np.full_like(rows, view), temperature=temperature)
        return SoftLabelBatch(
            ids=torch.from_numpy(found.ids)[None],
            log_probs=torch.from_numpy(found.log_probs)[None],
            log_tail=torch.from_numpy(found.log_tail)[None],
            teacher=torch.zeros((1, len(rows)), dtype=torch.int64),
        )

    def to_dask(self, temperature: float = 1.0) -> dict[str, dask.array.Array]:
        """Return lazy arrays of the whole store in blocks of one shard.

        Keys: ids (V, N, K) int64 global, -1 where not labelled; log_probs (V, N, K) float32;
        log_tail (V, N) float32; entropy (V, N) float32 in nats, NaN where not labelled.

        Raises:
            SchemaMismatchError: If the temperature was not declared.
        """
        from pipeline.store.lazy import to_dask

        return to_dask(self, temperature)
