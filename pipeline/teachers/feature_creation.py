"""A teacher's store of block features: made, fitted, and made sound again.

In: what the store says of itself, the constants of its reductions, repair of its metadata. Left
out: what is written into it (features.py, labelling.py).

The labels' forward passes are the features' too. Only what must be known beforehand, the basis of
a PCA or the range of uint8, takes passes of its own: over the declared share of the rows, one view
of each, once, before the store is there. A resumed run finds it in the store, and so does one with
more images: nothing is fitted twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.config import Project
from pipeline.data.routing import routed_rows, split_recipe
from pipeline.store import (
    BlockFeatureStore,
    SoftLabelStore,
    create_block_features,
    open_block_features,
)
from pipeline.store.fitted_constants import stored_constants
from pipeline.store.published import SPLIT_NAMES
from pipeline.store.repair import repair_metadata
from pipeline.store.verify import metadata_problems
from pipeline.teachers.feature_stores import (
    feature_layout,
    feature_parts,
    feature_path,
    has_features,
    open_feature_store,
)
from pipeline.teachers.features import Forms, feature_forms, finite_maps, tapped
from pipeline.teachers.labelling import LabelReport, load_teacher, teacher_reader
from pipeline.teachers.reductions import REDUCTIONS, Constants, Fit, value_range
from pipeline.teachers.row_batches import row_batches
from pipeline.teachers.spec import TeacherSpec
from pipeline.training.fit import pick_device
from storage_schemas.block_features import (
    RANGE,
    BlockFeatureSchema,
    FeatureArray,
    FittedArray,
    fitted_digest,
)
from storage_schemas.errors import SchemaMismatchError, StoreError
from storage_schemas.manifest import TRAIN, Manifest
from storage_schemas.philox import philox4x32, split_words

# Of the generator's counters: views take blocks from 0 on, draws of labels from 2^31 on.
FIT_BLOCK = 2**30


def open_or_create_features(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    store: SoftLabelStore,
    *,
    report: LabelReport | None = None,
) -> BlockFeatureStore | None:
    """Open a teacher's features, grown to the manifest; fit and create them when there are none.

    Args:
        project: Its project.
        spec: The teacher, with weights.
        manifest: All rows.
        store: Its labels of one split.
        report: Called with the number of images after each batch of the fit.

    Returns:
        None where the teacher has no features: of test rows, without training rows, unasked.

    Raises:
        ConfigError: If the teacher has no such blocks; lists those it has.
        SchemaMismatchError: If what lies there is another store.
        TeacherOutputError: If a feature is not finite.
    """
    split = SPLIT_NAMES.index(str(store.schema.split))
    if not has_features(spec, manifest, split):
        return None
    found = open_feature_store(project, spec, manifest, store.schema.shard_rows)
    if found is not None:
        found.grow(len(manifest))
        return found
    network = load_teacher(spec, pick_device(project.runtime.device))
    forms = feature_forms(network, spec)
    fitted, fit_rows = _fitted(project, spec, manifest, network, report)
    schema = feature_schema(
        project, spec, manifest, forms, store.schema.shard_rows, fitted, fit_rows
    )
    places = {
        f"{name}/{array}": values
        for array, constants in fitted.items()
        for name, values in constants.items()
    }
    path = feature_path(project, spec.name, schema.fingerprint_parts)
    return create_block_features(path, schema, places)


def repair_features(
    project: Project, spec: TeacherSpec, manifest: Manifest, store: SoftLabelStore, path: Path
) -> None:
    """Make damaged metadata of a teacher's features again, where enough is left.

    The caller holds the writer lock of the store.

    Args:
        project: Its project.
        spec: The teacher, with weights.
        manifest: All rows.
        store: Its labels of the training rows.
        path: Of its features.

    Raises:
        CorruptLabelError: If too little is left; the store is to be deleted by hand.
    """
    try:
        if not metadata_problems(open_block_features(path)):
            return
    except (StoreError, SchemaMismatchError):
        pass
    forms = feature_forms(load_teacher(spec, torch.device("cpu")), spec)
    fitted = stored_constants(path, [feature.name for feature in spec.config.features])
    expected = feature_schema(
        project, spec, manifest, forms, store.schema.shard_rows, fitted, fit_rows=0
    )
    repair_metadata(path, expected, manifest.append_ends)


def feature_schema(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    forms: Forms,
    label_shard_rows: int,
    fitted: Mapping[str, Constants],
    fit_rows: int,
) -> BlockFeatureSchema:
    """Return what a teacher's new store of features says of itself.

    Args:
        project: Its recipe.
        spec: The teacher.
        manifest: All rows.
        forms: Of the arrays.
        label_shard_rows: Of the teacher's label store.
        fitted: Constants by array.
        fit_rows: Rows that they were fitted on.
    """
    arrays = tuple(
        FeatureArray(
            block=config.block,
            reduce=name.rpartition(".")[2],
            settings=config.settings,
            channels=forms[name].shape[0],
            height=forms[name].shape[1],
            width=forms[name].shape[2],
            dtype=forms[name].dtype,
            fitted={
                constant: FittedArray(shape=values.shape, digest=fitted_digest(values))
                for constant, values in fitted.get(name, {}).items()
            },
        )
        for config in spec.config.features
        for name in config.array_names
    )
    row_bytes = sum(array.stored.row_bytes for array in arrays)
    shard_rows, chunk_rows = feature_layout(row_bytes, label_shard_rows)
    recipe = split_recipe(project, TRAIN)
    return BlockFeatureSchema(
        teacher=spec.name,
        num_rows=len(manifest),
        num_views=recipe.count,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        arrays=arrays,
        fit_rows=fit_rows,
        manifest_chain=manifest.digest,
        manifest_rows=len(manifest),
        split=SPLIT_NAMES[TRAIN],
        recipe=recipe.model_dump(mode="json"),
        fingerprint_parts=feature_parts(project, spec, manifest),
    )


def fit_pairs(
    seed: int, rows: npt.NDArray[np.int64], views: int, share: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the ascending rows that constants are fitted on, and a view of each.

    The rows are those of the smallest random numbers; number and view of a row are a function of
    the recipe's seed and the row alone.

    Args:
        seed: Of the view recipe.
        rows: (n,) ascending rows of the teacher.
        views: V.
        share: Of the rows; at least one is taken.
    """
    words = philox4x32((*split_words(rows), 0, FIT_BLOCK), split_words(seed))
    chosen = np.sort(np.argsort(words[0], kind="stable")[: int(np.ceil(share * len(rows)))])
    return rows[chosen], (words[1][chosen] % views).astype(np.int64)


def _fitted(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    network: nn.Module,
    report: LabelReport | None,
) -> tuple[dict[str, Constants], int]:
    """Return the constants of every array, and how many rows they were fitted on."""
    configs = [config for config in spec.config.features if config.is_fitted]
    if not configs:
        return {}, 0
    rows, recipe = routed_rows(manifest, TRAIN, spec.route), split_recipe(project, TRAIN)
    pairs = {
        config.name: fit_pairs(recipe.seed, rows, recipe.count, config.fit_share)
        for config in configs
    }
    chosen, views = max(pairs.values(), key=lambda pair: len(pair[0]))
    device = pick_device(project.runtime.device)
    reader = teacher_reader(project, spec, manifest, TRAIN)
    fits: dict[str, Fit] = {}
    with tapped(network, configs) as taps:
        for view in range(recipe.count):
            mine = chosen[views == view]
            done = 0
            for images in row_batches(project, reader, spec, mine, [view], device):
                batch = mine[done : done + images.shape[1]]
                with torch.inference_mode():
                    network(images[0].to(device, non_blocking=True))
                    for config in configs:
                        maps = finite_maps(taps[config.name], spec, config, batch, view)
                        wanted = np.isin(batch, pairs[config.name][0])
                        if config.name not in fits:
                            fits[config.name] = REDUCTIONS[config.reduce].fit(config, maps.shape[1])
                        fits[config.name].update(
                            maps[torch.from_numpy(wanted).to(maps.device)].cpu()
                        )
                done += len(batch)
                if report is not None:
                    report(len(batch))
    constants: dict[str, Constants] = {}
    for config in configs:
        found = fits[config.name].result()
        limits = {RANGE: value_range(found)} if config.dtype == "uint8" else {}
        constants[config.name] = {**found.constants, **limits}
    return constants, len(chosen)
