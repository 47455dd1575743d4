"""Running a teacher once over its rows, and writing what it says.

In: the labelling of whole shards; block features are taken from the same forward passes. Left out:
what is missing (stores.py, feature_stores.py), how features are made (features.py), which shards
go into which task (flows), the bytes (pipeline.store).

A teacher has one store for training rows (all views of the recipe) and one for test rows (the
evaluation view only), so that evaluation needs no teacher either. Batches are cut at fixed rows
of a shard and one view at a time, so a resumed store equals an undisturbed one bit for bit.
"""

from __future__ import annotations

import functools
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.compress.cost import cost
from pipeline.config import Project
from pipeline.data import open_source
from pipeline.data.routing import mix_pools, routed_rows, split_recipe
from pipeline.data.view_reader import ViewReader
from pipeline.models.builders import build_classifier, probe
from pipeline.models.weights import load_weights
from pipeline.numerics import draw_counts, nucleus, sparsify
from pipeline.store import SoftLabelStore
from pipeline.store.block_feature_store import BlockFeatureStore
from pipeline.store.published import SPLIT_NAMES
from pipeline.teachers.feature_stores import missing_features, written_features
from pipeline.teachers.features import FeatureRecorder
from pipeline.teachers.row_batches import row_batches
from pipeline.teachers.spec import TeacherSpec
from pipeline.teachers.stores import ShardWork
from pipeline.training.fit import pick_device
from storage_schemas.errors import TeacherOutputError
from storage_schemas.label_draws import draw_uniforms
from storage_schemas.manifest import Manifest
from storage_schemas.soft_labels import SoftLabelSchema, encode, encode_counts

LabelReport = Callable[[int], None]

_WRITERS = 4  # threads that mostly wait for the disk, each with a shard of its own


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """What a labelling call did; small enough to be a task's result.

    Attributes:
        shards: (view, shard) pairs of the label store of which something was committed.
        labels: Answers of the teacher that were written: labels, features, or both.
        seconds: Wall time, without loading the teacher.
    """

    shards: int
    labels: int
    seconds: float


@functools.lru_cache(maxsize=1)
def _loaded_teacher(
    builder: str, builder_args: str, num_classes: int, weights: Path, digest: str, device: str
) -> nn.Module:
    """Load a teacher once a process; the digest is part of the key, so new weights are seen."""
    network = build_classifier(builder, num_classes, json.loads(builder_args))
    load_weights(network, weights)
    return network.eval().requires_grad_(False).to(device)


def load_teacher(spec: TeacherSpec, device: torch.device) -> nn.Module:
    """Return the teacher in eval mode on a device.

    Raises:
        TeacherError: If it cannot be built or its weights do not fit.
        ConfigError: If its weights are not there.
    """
    network = _loaded_teacher(
        spec.config.builder,
        json.dumps(spec.config.builder_args, sort_keys=True),
        len(spec.label_map),
        spec.weights,
        spec.weights_digest(),
        str(device),
    )
    probe(network, spec.config.input, len(spec.label_map), owner=f"teachers.{spec.name}")
    return network


def checked_logits(
    output: object,
    spec: TeacherSpec,
    rows: npt.NDArray[np.int64],
    view: int,
    shard: int | None = None,
) -> Tensor:
    """Return a teacher's (B, C_t) float32 logits.

    Raises:
        TeacherOutputError: If they are not a finite (B, C_t) tensor; names teacher, row, view
            and shard.
    """
    expected = (len(rows), len(spec.label_map))
    if not isinstance(output, Tensor) or tuple(output.shape) != expected:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TeacherOutputError(
            f"teacher {spec.name!r} must return logits of shape {expected} (one per class of its "
            f"class list), got {got}; check its class list and builder_args"
        )
    logits = output.float()
    # A sum is finite only if all its terms are; it is looked at closer when it is not.
    finite = None if bool(torch.isfinite(logits.sum())) else torch.isfinite(logits).all(dim=1)
    if finite is not None and not bool(finite.all()):
        bad = int(torch.nonzero(~finite)[0, 0])
        value = logits[bad][~torch.isfinite(logits[bad])][0].item()
        where = f"view {view}" + ("" if shard is None else f", shard {shard}")
        raise TeacherOutputError(
            f"teacher {spec.name!r} returned {value} for row {int(rows[bad])}, {where}; "
            "nothing of this shard was written. Check its weights and normalisation"
        )
    return logits


def teacher_reader(
    project: Project, spec: TeacherSpec, manifest: Manifest, split: int
) -> ViewReader:
    """Return the reader of the views that a teacher labels."""
    recipe = split_recipe(project, split)
    return ViewReader(
        open_source(project.data, project.workspace),
        manifest.keys,
        recipe,
        spec.config.input,
        mix_pools(manifest, split, spec.route[:, None]) if recipe.mix is not None else None,
    )


def label_shards(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    store: SoftLabelStore,
    work: Sequence[ShardWork],
    *,
    report: LabelReport | None = None,
    check: Callable[[], None] | None = None,
) -> LabelCounts:
    """Run the teacher over whole shards and commit each.

    Args:
        project: Its project.
        spec: The teacher, with weights.
        manifest: The manifest that the store was made for, or a grown one.
        store: The teacher's store for the split its schema names.
        work: What is missing.
        report: Called with the number of labels after each batch.
        check: Called before each shard is written; raises once the right to write is lost.

    Raises:
        TeacherOutputError: On NaN, Inf or a wrong shape; that shard is not written.
        StoreError: If the store cannot be written.
    """

    def commit(
        kept: SoftLabelStore | BlockFeatureStore, view: int, shard: int, *data: npt.NDArray[Any]
    ) -> None:
        if check is not None:
            check()
        kept.write_shard(view, shard, *data)

    device = pick_device(project.runtime.device)
    teacher = load_teacher(spec, device)
    split = SPLIT_NAMES.index(str(store.schema.split))
    reader = teacher_reader(project, spec, manifest, split)
    rows_of_teacher = routed_rows(manifest, split, spec.route)
    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=_WRITERS) as writer, ExitStack() as taps:
        features = written_features(project, spec, manifest, store.schema) if work else None
        recorder = None
        if features is not None:
            missing = missing_features(features, spec, manifest)
            recorder = taps.enter_context(FeatureRecorder(spec, teacher, features, missing))
        # Compression and fsync of one shard run beside the teacher's work on the next.
        writes: deque[Future[object]] = deque()
        for item in work:
            low, high = np.searchsorted(
                rows_of_teacher, np.array([item.shard, item.shard + 1]) * store.schema.shard_rows
            )
            rows = rows_of_teacher[low:high]
            ids, gaps = store.empty_shard(len(item.views))
            done = 0
            for images in row_batches(project, reader, spec, rows, item.views, device):
                batch = rows[done : done + images.shape[1]]
                places = batch - item.shard * store.schema.shard_rows
                for position, view in enumerate(item.views):
                    with torch.inference_mode():
                        output = teacher(images[position].to(device, non_blocking=True))
                        logits = checked_logits(output, spec, batch, view, item.shard)
                        if view not in item.only_features:
                            values = coded(store.schema, logits, batch, view)
                            ids[position, places], gaps[position, places] = values
                        if recorder is not None:
                            recorder.record(batch, view)
                    if report is not None:
                        report(len(batch))
                done += len(batch)
                if recorder is not None and features is not None:
                    next_row = int(rows[done]) if done < len(rows) else None
                    for view, shard, data in recorder.finished(next_row):
                        _wait_for_some(writes)
                        writes.append(writer.submit(commit, features, view, shard, *data))
            _wait_for_some(writes)
            writes.extend(
                writer.submit(commit, store, view, item.shard, ids[position], gaps[position])
                for position, view in enumerate(item.views)
                if view not in item.only_features
            )
        for write in writes:
            write.result()
    return LabelCounts(
        shards=sum(len(item.views) for item in work),
        labels=sum(item.labels for item in work),
        seconds=time.perf_counter() - started,
    )


def _wait_for_some(writes: deque[Future[object]]) -> None:
    """Let no more shards be in memory than threads write, and as many again."""
    while len(writes) > _WRITERS:
        writes.popleft().result()


def coded(
    schema: SoftLabelSchema,
    logits: Tensor,
    rows: npt.NDArray[np.int64],
    view: int | npt.NDArray[np.int64],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return ids and gaps of (B, C_t) logits as they are stored.

    Args:
        schema: Of the store; its selection says what is kept.
        logits: (B, C_t) finite.
        rows: (B,) manifest rows. With the view, and the recipe's seed, they give the draws of
            sampled labels; nothing else depends on them.
        view: View number, or one for each row.
    """
    if schema.selection == "sampled":
        bits = draw_uniforms(int(schema.recipe["seed"]), rows, view, schema.k)
        uniforms = torch.from_numpy(bits).to(logits.device)
        ids, counts = draw_counts(logits, uniforms, schema.temperatures[0])
        return encode_counts(schema, ids.cpu().numpy(), counts.cpu().numpy())
    if schema.top_p is not None:
        found = nucleus(logits, schema.k, schema.top_p, schema.temperatures)
    else:
        found = sparsify(logits, schema.k, schema.temperatures, schema.activation)
    return encode(
        schema,
        found.ids.cpu().numpy(),
        found.logits.cpu().numpy(),
        found.log_tail_ratio.cpu().numpy(),
    )


def teacher_cost(spec: TeacherSpec) -> dict[str, int]:
    """Return parameters and FLOPs of a teacher's network."""
    found = cost(load_teacher(spec, torch.device("cpu")), spec.config.input)
    return {"parameters": found.parameters, "flops": found.flops}
