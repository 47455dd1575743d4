"""Sample images with what teacher and student say of them.

In: images as data URIs and the cards that hold them. Left out: choosing the samples, which the
evaluation did. An image that is gone is replaced by a sentence.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from pipeline.config import Project
from pipeline.data import open_source
from pipeline.report.markup import Markup, element, joined, percent

SMALL_SIDE = 96
SHOWN_SIDE = 240
VISIBLE = 12


def read_images(project: Project, keys: Sequence[str]) -> dict[str, Markup]:
    """Return an `img` element for each key whose image can be read.

    Sources may be code of the user, so that anything can go wrong in them; whatever it is, the
    image is left out.
    """
    try:
        source = open_source(project.data, project.workspace)
    except Exception:
        return {}
    found = {}
    for key in keys:
        try:
            found[key] = image_element(source.load(key))
        except Exception:
            continue
    return found


def image_element(image: Image.Image) -> Markup:
    """Return an image as an `img` element without outside references.

    Small images are kept pixel for pixel and shown enlarged; others are shrunk.
    """
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    small = max(image.size) <= SMALL_SIDE
    buffer = io.BytesIO()
    if small:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=82)
    kind = "png" if small else "jpeg"
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return element(
        "img",
        src=f"data:image/{kind};base64,{content}",
        alt="the image as the source has it",
        class_="pixels" if small else None,
        width=image.width,
        height=image.height,
    )


def class_name(name: str, home: str | None = None) -> Markup:
    """Return a class name, with its vertical unless that is `home`."""
    vertical, _, own = name.partition("/")
    if not own:
        vertical, own = "", name
    shown = element("bdi", own)
    if not vertical or vertical == home:
        return shown
    return joined([shown, " ", element("span", "in ", element("bdi", vertical), class_="muted")])


def _answers(role: str, heading: str, answers: Sequence[Sequence[Any]], label: str) -> Markup:
    if not answers:
        return element(
            "div",
            element("h4", heading),
            element("p", "no stored answer for this image", class_="muted"),
            class_="answers",
        )
    home = label.partition("/")[0]
    lines = []
    for name, probability in answers:
        right = name == label
        share = min(max(float(probability), 0.0), 1.0)
        bar = element(
            "svg",
            element("rect", width="100", height="1", class_="track"),
            element("rect", width=f"{100 * share:.1f}", height="1", class_=f"fill-{role}"),
            **{"viewBox": "0 0 100 1", "preserveAspectRatio": "none", "class": "bar"},
            aria_hidden="true",
        )
        mark = element("span", "\u2713", element("span", " true class", class_="spoken"))
        lines.append(
            element(
                "li",
                element(
                    "span",
                    joined([class_name(name, home), "\u00a0", mark])
                    if right
                    else class_name(name, home),
                    class_="name right" if right else "name",
                ),
                bar,
                element("span", percent(100 * share), class_="share"),
            )
        )
    return element("div", element("h4", heading), element("ol", *lines), class_="answers")


def sample_card(sample: Mapping[str, Any], image: Markup | None) -> Markup:
    """Return one sample: its image, its true class, and both lists of answers.

    Args:
        sample: As in the evaluation.
        image: From `read_images`; None when there is none.
    """
    label = str(sample["label"])
    teacher = sample.get("teacher_name")
    picture = image or element("p", "image not available", class_="absent")
    said = sample["student"]
    verdict = "right" if said and said[0][0] == label else "wrong"
    return element(
        "article",
        element(
            "header",
            element("div", picture, class_="picture"),
            element(
                "div",
                element("h3", class_name(label)),
                element("p", "student ", element("strong", verdict), class_=f"verdict {verdict}"),
                element("p", element("bdi", sample["key"]), class_="key"),
            ),
        ),
        element(
            "div",
            _answers(
                "specialist",
                f"Specialist {teacher}" if teacher else "Specialist",
                sample.get("teacher") or [],
                label,
            ),
            _answers("student", "Student", said, label),
            class_="pair",
        ),
        class_="card",
    )


def sample_cards(samples: Sequence[Mapping[str, Any]], images: Mapping[str, Markup]) -> Markup:
    """Return all cards; those after the first `VISIBLE` are folded away."""
    cards = [sample_card(sample, images.get(str(sample["key"]))) for sample in samples]
    shown = element("div", *cards[:VISIBLE], class_="cards")
    if len(cards) <= VISIBLE:
        return shown
    rest = element("div", *cards[VISIBLE:], class_="cards")
    summary = element("summary", f"{len(cards) - VISIBLE} more samples")
    return joined([shown, element("details", summary, rest)])
