"""The deepest verification: the teacher is run again on a sample, and its stored labels compared.

In: the sample, the teacher's run, what was found in words and numbers. Left out: the comparison
itself (agreement.py), whether the bytes are what was written (pipeline.store.verify), and repair:
a store whose labels are not its teacher's is wrong as a whole, and a person has to say why.

What the other depths cannot see is found here: labels of other weights or another preprocessing
under the right name, and images that changed under the same stamps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import Project
from pipeline.data.view_reader import ViewReader
from pipeline.store import SoftLabelStore
from pipeline.store.published import SPLIT_NAMES
from pipeline.teachers.agreement import (
    divergence,
    draw_divergence,
    draws_within_tolerance,
    within_tolerance,
)
from pipeline.teachers.labelling import checked_logits, coded, load_teacher, teacher_reader
from pipeline.teachers.spec import resolve_teacher
from pipeline.teachers.stores import store_schema
from pipeline.training.fit import pick_device
from storage_schemas.errors import CorruptLabelError, MissingLabelError, UnreadableImageError
from storage_schemas.label_draws import draw_uniforms
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import Manifest
from storage_schemas.soft_labels import SoftLabelSchema, decode

DEFAULT_SAMPLE = 256

LOGIT_NOISE = {"cpu": 1e-4, "cuda": 3e-2}
"""How far a logit may move between two runs of one network, in shares of the row's largest.

Sums in another order move it. Measured (benchmarks/audit_noise.py): float32 stays within 3e-5 of
float64, and batches of 1 within 1e-6 of batches of 32. Convolutions on a GPU round to TF32 unless
told otherwise, which moves the logits of a deep network by up to 3e-2. So a store that a GPU has
labelled is audited on a GPU.
"""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """Stored labels: (B,) rows and views, (B, K) ids, (B, columns) gaps."""

    rows: npt.NDArray[np.int64]
    views: npt.NDArray[np.int64]
    ids: Array
    gaps: Array

    def take(self, keep: Array) -> _Sample:
        return _Sample(
            rows=self.rows[keep], views=self.views[keep], ids=self.ids[keep], gaps=self.gaps[keep]
        )


@dataclass(frozen=True, kw_only=True)
class LabelAudit:
    """What an audit of one store found.

    Attributes:
        checked: Labels compared.
        wrong: Labels that the teacher would not give now, within the tolerance of the code.
        same_codes: Share of the labels whose stored codes are exactly those of now.
        mean_kl: Temperature -> mean KL in nats, from the stored label to that of now; from drawn
            labels to the dense answer of now, where it holds the noise of the draws.
        max_kl: Temperature -> the largest.
        problems: One sentence each; empty means sound.
        damaged: (view, shard) that could not be read, each named in `problems`.
    """

    checked: int
    wrong: int
    same_codes: float
    mean_kl: dict[float, float]
    max_kl: dict[float, float]
    problems: tuple[str, ...]
    damaged: tuple[tuple[int, int], ...] = ()


def sample_labels(
    store: SoftLabelStore, usable: npt.NDArray[np.bool_], sample: int, seed: int
) -> tuple[_Sample, dict[tuple[int, int], str]]:
    """Draw stored labels, spread evenly over the committed shards of all views.

    Args:
        store: Each shard drawn from is read and checked.
        usable: (rows,) rows whose image is still there.
        sample: How many labels; all, where there are fewer.
        seed: The same seed draws the same labels.

    Returns:
        The sample, and (view, shard) -> what is wrong, of damaged shards.
    """
    rng = np.random.default_rng(seed)
    places = rng.permutation(np.argwhere(store.commits[:, :, 0] > 0))
    parts: list[_Sample] = []
    problems: dict[tuple[int, int], str] = {}
    left = sample
    for position, (view, shard) in enumerate(places.tolist()):
        if left == 0:
            break
        try:
            ids, gaps = store.read_shard(view, shard)
        except (CorruptLabelError, MissingLabelError) as error:
            problems[view, shard] = str(error)
            continue
        span = np.array(store.shard_span(shard))
        known = span < len(usable)
        there = np.flatnonzero((ids[:, 0] != store.schema.ids_fill) & known)
        there = there[usable[span[there]]]
        share = min(-(-left // (len(places) - position)), len(there))
        drawn = np.sort(rng.choice(there, share, replace=False))
        left -= share
        parts.append(
            _Sample(
                rows=span[drawn],
                views=np.full(share, view, np.int64),
                ids=ids[drawn],
                gaps=gaps[drawn],
            )
        )
    if not parts:
        return _nothing(store.schema)[0], problems
    return _Sample(
        rows=np.concatenate([part.rows for part in parts]),
        views=np.concatenate([part.views for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        gaps=np.concatenate([part.gaps for part in parts]),
    ), problems


def audit_store(
    project: Project,
    teacher: str,
    space: LabelSpace,
    manifest: Manifest,
    store: SoftLabelStore,
    *,
    sample: int = DEFAULT_SAMPLE,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> LabelAudit:
    """Run the teacher again on a sample of its labels, and compare.

    Args:
        project: Its project.
        teacher: Name of the teacher.
        space: All classes.
        manifest: All rows.
        store: The teacher's store for one split, sound by the quick depth.
        sample: How many labels.
        seed: The same seed draws the same labels.
        report: Called with the number of labels after each batch.

    Raises:
        TeacherError: If the teacher cannot be built or its weights do not fit.
        ConfigError: If its weights are not there.
        TeacherOutputError: If it returns NaN, Inf or another shape.
    """
    schema = store.schema
    split = SPLIT_NAMES.index(str(schema.split))
    spec = resolve_teacher(project, project.teacher(teacher), space, manifest)
    stale = _stale(store_schema(project, spec, space, manifest, split), store)
    if stale:
        return _summary(store, manifest, *_nothing(schema), {}, stale)
    device = pick_device(project.runtime.device)
    network = load_teacher(spec, device)
    reader = teacher_reader(project, spec, manifest, split)
    drawn, damaged = sample_labels(store, ~manifest.retired, sample, seed)
    partners, _ = reader.mix_weights(drawn.rows, drawn.views)
    drawn = drawn.take(~manifest.retired[partners])
    drawn, changed = _unchanged(reader, manifest, drawn)
    problems = [*damaged.values(), *changed]
    noise = LOGIT_NOISE[device.type]
    right = np.zeros(len(drawn.rows), np.bool_)
    fresh_ids, fresh_gaps = schema.empty(len(drawn.rows))
    kl = {temperature: np.zeros(len(drawn.rows)) for temperature in schema.temperatures}
    for start in range(0, len(drawn.rows), spec.config.batch_size):
        part = slice(start, start + spec.config.batch_size)
        rows, views = drawn.rows[part], drawn.views[part]
        with torch.inference_mode():
            output = network(reader.read(rows, views).to(device))
            logits = checked_logits(output, spec, rows, int(views[0]))
        stored, dense = (drawn.ids[part], drawn.gaps[part]), logits.double().cpu().numpy()
        fresh_ids[part], fresh_gaps[part] = coded(schema, logits, rows, views)
        if schema.selection == "sampled":
            bits = draw_uniforms(int(schema.recipe["seed"]), rows, views, schema.k)
            right[part] = draws_within_tolerance(schema, *stored, dense, bits, noise)
            kl[schema.temperatures[0]][part] = draw_divergence(schema, *stored, dense)
        else:
            right[part] = within_tolerance(schema, *stored, dense, noise)
            for temperature in schema.temperatures:
                now = fresh_ids[part], fresh_gaps[part]
                kl[temperature][part] = divergence(schema, stored, now, temperature)
        if report is not None:
            report(len(rows))
    fresh = replace(drawn, ids=fresh_ids, gaps=fresh_gaps)
    found = _summary(store, manifest, drawn, fresh, right, kl, problems)
    return replace(found, damaged=tuple(damaged))


def _nothing(schema: SoftLabelSchema) -> tuple[_Sample, _Sample, npt.NDArray[np.bool_]]:
    none = np.empty(0, np.int64)
    ids, gaps = schema.empty(0)
    sample = _Sample(rows=none, views=none, ids=ids, gaps=gaps)
    return sample, sample, np.empty(0, np.bool_)


def _stale(expected: SoftLabelSchema, store: SoftLabelStore) -> list[str]:
    """Return how the store is another one than the project asks for now."""
    wanted, found = expected.fingerprint_parts, store.schema.fingerprint_parts
    changed = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    if not changed:
        return []
    return [
        f"{store.path} was made with another {', '.join(changed)} than the project has now, so "
        "there is nothing to compare; run `concentrate label`"
    ]


def _unchanged(reader: ViewReader, manifest: Manifest, drawn: _Sample) -> tuple[_Sample, list[str]]:
    """Return the labels whose image is still the one of the manifest, and what the others are."""
    altered = set()
    for row in np.unique(drawn.rows).tolist():
        try:
            digest = reader.source.content_digest(manifest.keys[row])
        except UnreadableImageError:
            digest = b""
        if digest != manifest.digests[row].tobytes():
            altered.add(row)
    if not altered:
        return drawn, []
    example = manifest.keys[min(altered)]
    problem = (
        f"{len(altered)} of {len(np.unique(drawn.rows))} sampled images are not those of the "
        f"manifest, such as {example!r}, though their size and time are; touch the files that "
        "changed and run `concentrate label`"
    )
    return drawn.take(~np.isin(drawn.rows, list(altered))), [problem]


def _summary(
    store: SoftLabelStore,
    manifest: Manifest,
    drawn: _Sample,
    fresh: _Sample,
    right: npt.NDArray[np.bool_],
    kl: dict[float, npt.NDArray[np.float64]],
    problems: list[str],
) -> LabelAudit:
    schema = store.schema
    checked = len(drawn.rows)
    by_temperature = {t: kl.get(t, np.zeros(checked)) for t in schema.temperatures}
    first = by_temperature[schema.temperatures[0]]
    wrong = int((~right).sum())
    if wrong:
        worst = int(np.argmax(np.where(right, -1, first)))
        row, view = int(drawn.rows[worst]), int(drawn.views[worst])
        problems.append(
            f"{wrong} of {checked} sampled labels are not what the teacher says now: mean KL "
            f"{first.mean():.3g} nats at temperature {schema.temperatures[0]:g}; worst is row "
            f"{row} ({manifest.keys[row]!r}), view {view}, expected "
            f"{_top(schema, fresh, worst)}, got {_top(schema, drawn, worst)}, KL "
            f"{first[worst]:.3g}. The weights, the preprocessing or the images are not those it "
            f"was made with; find out which, delete {store.path} and run `concentrate label`"
        )
    same = (drawn.ids == fresh.ids).all(axis=1) & (drawn.gaps == fresh.gaps).all(axis=1)
    return LabelAudit(
        checked=checked,
        wrong=wrong,
        same_codes=float(same.mean()) if checked else 1.0,
        mean_kl={t: float(kl.mean()) if checked else 0.0 for t, kl in by_temperature.items()},
        max_kl={t: float(kl.max(initial=0.0)) for t, kl in by_temperature.items()},
        problems=tuple(problems),
    )


def _top(schema: SoftLabelSchema, labels: _Sample, at: int) -> str:
    one = slice(at, at + 1)
    found = decode(schema, labels.ids[one], labels.gaps[one], schema.temperatures[0])
    pairs = zip(found.ids[0, :3].tolist(), np.exp(found.log_probs[0, :3]).tolist(), strict=True)
    return ", ".join(f"{schema.classes[i]} {p:.3f}" for i, p in pairs if i >= 0)
