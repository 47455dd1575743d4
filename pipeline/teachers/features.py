"""Block features of a teacher: what its taps saw in the passes that make its labels.

In: the forms of what is stored, told by the network, and `FeatureRecorder`, which gathers whole
shards. Left out: the reductions (reductions.py), the store and what it is fitted with
(feature_creation.py), and what is missing (feature_stores.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.config import FeatureConfig
from pipeline.models.builders import build_classifier
from pipeline.models.taps import BlockTaps, unknown_blocks
from pipeline.store import BlockFeatureStore
from pipeline.store.shards import Array
from pipeline.teachers.reductions import REDUCTIONS, ArrayForm, block_maps
from pipeline.teachers.spec import TeacherSpec
from storage_schemas.errors import ConfigError, TeacherOutputError

Forms = dict[str, ArrayForm]


@contextmanager
def tapped(network: nn.Module, configs: Sequence[FeatureConfig]) -> Iterator[dict[str, BlockTaps]]:
    """Tap each block for the maps that are made of it; by the name of the array."""
    with ExitStack() as open_taps:
        yield {
            config.name: open_taps.enter_context(
                BlockTaps(
                    network,
                    [config.block],
                    lambda _, output, config=config: block_maps(config, output),  # type: ignore[misc]
                )
            )
            for config in configs
        }


def feature_forms(network: nn.Module, spec: TeacherSpec) -> Forms:
    """Return shape and type of what is stored of all features, by the names of the arrays.

    Two blank images are run, in the mode that the network is in.

    Raises:
        ConfigError: If a block does not exist, does not run, returns no tensor of a known form,
            or has too few channels; lists every feature at fault.
    """
    size = spec.config.input
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    images = torch.zeros((2, size.channels, size.size, size.size), device=device)
    problems = unknown_blocks(network, [config.block for config in spec.config.features])
    found: Forms = {}
    for config in () if problems else spec.config.features:
        try:
            with tapped(network, [config]) as taps, torch.inference_mode():
                network(images)
                maps = taps[config.name].take()[config.block]
            REDUCTIONS[config.reduce].fit(config, maps.shape[1])
        except ConfigError as error:
            problems += error.problems
        else:
            shape = (maps.shape[1], maps.shape[2], maps.shape[3])
            arrays = REDUCTIONS[config.reduce].arrays(config, shape)
            found |= zip(config.array_names, arrays, strict=True)
    if problems:
        raise ConfigError(f"teachers.{spec.name}.features", problems)
    return found


def planned_row_bytes(spec: TeacherSpec) -> int:
    """Return the bytes of one row in one view, of a teacher that may have no weights yet.

    Raises:
        ConfigError: As `feature_forms`.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_classifier(
            spec.config.builder, len(spec.label_map), spec.config.builder_args
        )
    forms = feature_forms(network.eval(), spec).values()
    return sum(math.prod(form.shape) * np.dtype(form.dtype).itemsize for form in forms)


def finite_maps(
    taps: BlockTaps,
    spec: TeacherSpec,
    config: FeatureConfig,
    rows: npt.NDArray[np.int64],
    view: int,
) -> Tensor:
    """Return the maps of the last pass.

    Raises:
        TeacherOutputError: If they are not finite; names teacher, block, row and view.
    """
    maps = taps.take()[config.block]
    if not bool(torch.isfinite(maps.sum())):
        finite = torch.isfinite(maps).flatten(1).all(dim=1)
        if not bool(finite.all()):
            bad = int(torch.nonzero(~finite)[0, 0])
            raise TeacherOutputError(
                f"teacher {spec.name!r}: block {config.block!r} is not finite for row "
                f"{int(rows[bad])}, view {view}; nothing of this shard was written. Check its "
                "weights and normalisation"
            )
    return maps


class FeatureRecorder:
    """Keeps what the taps saw of each batch, until a shard of features is whole.

    A context manager, at whose end no tap is left. Only shards that are missing are kept.

    Args:
        spec: The teacher.
        network: The teacher in eval mode.
        store: Its features.
        missing: (view, shard) pairs to be written.
    """

    def __init__(
        self,
        spec: TeacherSpec,
        network: nn.Module,
        store: BlockFeatureStore,
        missing: Collection[tuple[int, int]],
    ) -> None:
        self._spec, self._store, self._missing = spec, store, frozenset(missing)
        self._constants = {array.name: store.fitted(array.name) for array in store.schema.arrays}
        self._shards: dict[tuple[int, int], tuple[Array, ...]] = {}
        self._open = ExitStack()
        self._taps = self._open.enter_context(tapped(network, spec.config.features))

    def __enter__(self) -> FeatureRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def record(self, rows: npt.NDArray[np.int64], view: int) -> None:
        """Take over the features of the pass that has just been, of (B,) ascending rows.

        Raises:
            TeacherOutputError: If a feature is not finite, or beyond what its type holds.
        """
        shard_rows = self._store.schema.shard_rows
        shards = rows // shard_rows
        wanted = [int(s) for s in np.unique(shards) if (view, int(s)) in self._missing]
        if not wanted:  # their labels alone were missing
            for taps in self._taps.values():
                taps.take()
            return
        codes = [
            codes
            for config in self._spec.config.features
            for codes in self._codes(config, rows, view)
        ]
        for shard in wanted:
            if (view, shard) not in self._shards:
                self._shards[view, shard] = self._store.empty_shard()
            inside = shards == shard
            places = rows[inside] - shard * shard_rows
            for values, found in zip(self._shards[view, shard], codes, strict=True):
                values[places] = found[inside]

    def _codes(self, config: FeatureConfig, rows: npt.NDArray[np.int64], view: int) -> list[Array]:
        maps = finite_maps(self._taps[config.name], self._spec, config, rows, view)
        constants = self._constants[config.name]
        arrays = REDUCTIONS[config.reduce].apply(maps, constants)
        try:
            return [
                self._store.encode(name, values.cpu().numpy())
                for name, values in zip(config.array_names, arrays, strict=True)
            ]
        except ValueError as error:
            raise TeacherOutputError(
                f"teacher {self._spec.name!r}, rows {int(rows[0])} to {int(rows[-1])}, view "
                f"{view}: {error}"
            ) from error

    def finished(self, next_row: int | None) -> list[tuple[int, int, tuple[Array, ...]]]:
        """Return view, shard and values of the shards of which no row is to come.

        Args:
            next_row: The next row that will be recorded; None: none before the next label shard.
        """
        shard_rows = self._store.schema.shard_rows
        done = [
            place
            for place in self._shards
            if next_row is None or (place[1] + 1) * shard_rows <= next_row
        ]
        return [(*place, self._shards.pop(place)) for place in done]
