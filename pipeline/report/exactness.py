"""What the labels lost against the dense answers of their teachers."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.markup import MISSING, Markup, count, decimal, element, percent, table
from pipeline.report.material import TeacherLabels
from pipeline.report.sections import folded, note
from storage_schemas.exactness import Lost, Spread

_SAID = (
    "Divergences in nats from the teacher's whole answer: mean over a sample of its images, the "
    "largest in brackets. Truncation: the kept classes exactly, the others as an even tail. Code: "
    "what rounding adds to that, in 8 bits (compact) or 16 (exact). The last three are all of it, "
    "by what a loss takes the tail for: even over the other classes; one bucket, whose mass alone "
    "it sees; dropped, where the label gives 0 to classes with mass, so the divergence is that of "
    "the label from the answer. Sampled labels have no tail and no code: drop is the noise of one "
    "label, which averages out over many. Sigmoid labels give 0 to what they do not keep, and all "
    "their divergences are of the label from the answer."
)


def lost(labels: Sequence[TeacherLabels]) -> Markup:
    """Return the table of what every teacher's labels lost; nothing when none was measured."""
    measured = [found for found in labels if found.exactness is not None]
    if not measured:
        return Markup("")
    header = ["Teacher", "Sample", "T", "Classes kept", "Mass outside", "Truncation"]
    header += ["Code, compact", "Code, exact", "Uniform", "Bucket", "Drop"]
    rows = []
    for found in measured:
        record = found.exactness
        assert record is not None
        for at in record.losses:
            rows.append(
                [
                    found.teacher,
                    f"{count(record.rows)} {record.split}",
                    f"{at.temperature:g}",
                    decimal(record.ranks),
                    percent(100 * at.outside.mean, 2),
                    *_cells(at),
                ]
            )
    absent = [found.teacher for found in labels if found.exactness is None]
    said = f" Not measured: {', '.join(absent)}." if absent else ""
    return element(
        "div",
        note(_SAID + said),
        folded(table("What the labels lost", header, rows, texts=2), len(rows), "measurements"),
    )


def _cells(at: Lost) -> list[str]:
    codes = [at.quantisation.get(name) for name in ("compact", "exact")]
    return [_spread(found) for found in (at.truncation, *codes, at.uniform, at.bucket, at.drop)]


def _spread(found: Spread | None) -> str:
    return MISSING if found is None else f"{_nats(found.mean)} ({_nats(found.max)})"


def _nats(value: float) -> str:
    # A divergence of 0 is some 1e-17 either way, in sums of float64.
    return "0" if abs(value) < 1e-12 else f"{value:.2g}"
