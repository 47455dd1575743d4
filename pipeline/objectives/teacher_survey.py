"""What amalgamation asks of the student and of the stores before it trains.

In: whether the stored codes fit the student's blocks (student_blocks.py), and one pass over the
stores, which tells who knows each row and the moments of the teachers' codes. Left out: what is
trained (amalgamation.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import Amalgamation
from pipeline.numerics.expertise import expertise, mean_answer_entropy
from pipeline.numerics.moments import StreamingMoments
from pipeline.numerics.supports import SupportTable
from pipeline.objectives.base import LabelContext
from pipeline.objectives.method import MethodInputs
from pipeline.objectives.student_blocks import Shape
from pipeline.objectives.targets import required_features, required_soft_labels
from storage_schemas.errors import TrainingError

SURVEY_ROWS = 512


def feature_problems(
    config: Amalgamation,
    context: LabelContext,
    keys: Mapping[str, Sequence[str]],
    shapes: Mapping[str, Shape],
) -> list[str]:
    """Return why the stored codes do not fit the blocks; all reasons.

    Args:
        config: Of the method.
        context: With the shapes of what is stored.
        keys: By block, the names of the codes of all teachers.
        shapes: By block.
    """
    problems = []
    for block, names in keys.items():
        missing = [name for name in names if name not in context.features]
        if missing:
            problems.append(
                f"block {block!r}: features must be kept of every teacher, got none for {missing}; "
                "list them under teachers[].features and run `concentrate label`"
            )
            continue
        stored = {name: context.features[name] for name in names}
        grids = sorted({shape[1:] for shape in stored.values()})
        if len(grids) > 1:
            problems.append(
                f"block {block!r}: all teachers must have codes of one grid, got {stored}"
            )
        channels, *grid = shapes[block]
        codes = sum(shape[0] for shape in stored.values())
        if config.layerwise_share and (grids != [tuple(grid)] or codes < channels):
            problems.append(
                f"block {block!r} has {channels} channels on a grid of {grid}: layer-wise learning "
                f"needs codes on that grid, and at least so many of all teachers together, got "
                f"{stored}; keep larger maps, or set layerwise_share to 0 and hint_weight above 0"
            )
    return problems


def survey(
    config: Amalgamation, inputs: MethodInputs, keys: Mapping[str, Sequence[str]]
) -> tuple[Tensor, dict[str, StreamingMoments]]:
    """Read all that is stored of each row once.

    Returns:
        (N, T) share of each teacher in each row, and by block the moments of the teachers' codes,
        of which one view a row counts.

    Raises:
        TrainingError: If some row lacks the answer of a teacher.
    """
    context = inputs.context
    moments = {
        block: StreamingMoments(sum(context.features[name][0] for name in names), covariance=True)
        for block, names in keys.items()
    }
    entropies = [
        _survey_rows(config, inputs, keys, moments, inputs.rows[start : start + SURVEY_ROWS])
        for start in range(0, len(inputs.rows), SURVEY_ROWS)
    ]
    sharpness = config.sharpness if config.scores == "concatenated" else 0.0
    return expertise(torch.cat(entropies, dim=1), sharpness).T.contiguous(), moments


def _survey_rows(
    config: Amalgamation,
    inputs: MethodInputs,
    keys: Mapping[str, Sequence[str]],
    moments: dict[str, StreamingMoments],
    rows: npt.NDArray[np.int64],
) -> Tensor:
    """Update the moments with some rows, and return the (T, n) entropies of their answers."""
    context = inputs.context
    supports = SupportTable.from_supports(context.supports, context.num_classes)
    teachers = torch.arange(len(context.teachers))[:, None]
    answers = []
    for view in range(inputs.views):
        targets = inputs.signals.fetch(rows, np.full_like(rows, view))
        answers.append(required_soft_labels(targets, config.name))
        if not torch.equal(answers[-1].teacher, teachers.expand(-1, len(rows))):
            raise TrainingError(
                "amalgamation needs the answer of every teacher to every row: set "
                "teachers[].routing to 'all' and run `concentrate label`"
            )
        chosen = torch.from_numpy(rows % inputs.views == view)
        for block, names in keys.items():
            features = required_features(targets, config.name)
            values = torch.cat([features[name].values[chosen] for name in names], dim=1)
            places = values.movedim(1, 3).reshape(-1, values.shape[1])
            moments[block].update(places)
    return mean_answer_entropy(answers, supports, temperature=config.temperature)
