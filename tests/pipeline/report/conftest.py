"""An evaluation of made-up numbers, and a project whose workspace holds next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Project


def _run(role: str, verticals: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    counts = rng.integers(0, 4, (len(verticals), len(verticals)))
    np.fill_diagonal(counts, 50)
    return {
        "role": role,
        "folder": f"students/{role}/0123",
        "objective": "soft_labels" if role == "student" else "hard_labels",
        "steps": 400,
        "seconds": 31.5,
        "cost": {"parameters": 1_330_000, "flops": 7_400_000},
        "images": int(counts.sum()),
        "top1": 72.5 if role == "student" else 70.25,
        "top5": 95.0,
        "top1_inside": 80.0,
        "mpvap": 88.0,
        "calibration_error": 5.25,
        "entropy": 0.7,
        "verticals": {
            name: {
                "classes": 10,
                "images": int(counts[at].sum()),
                "top1": 60.0 + at % 40,
                "top5": 90.0,
                "top1_inside": 62.0 + at % 37,
            }
            for at, name in enumerate(verticals)
        },
        "vertical_confusions": counts.tolist(),
        "agreement": dict.fromkeys(verticals, 75.0),
    }


def _evaluation(
    verticals: Sequence[str] = ("birds", "cars", "dogs"), *, control: bool = True
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "fingerprint": "0123456789abcdef",
        "runs": [_run(role, verticals, rng) for role in ("student", "control")[: 1 + control]],
        "specialists": {
            f"teacher-{at}": {
                "classes": 10,
                "images": 50,
                "top1": 84.0,
                "top5": 98.0,
                "verticals": [name],
                "cost": {"parameters": 900_000, "flops": 5_000_000},
            }
            for at, name in enumerate(verticals)
        },
        "samples": [
            {
                "row": at,
                "key": f"{name}/{at}.png",
                "label": f"{name}/one",
                "student": [[f"{name}/one", 0.75], [f"{name}/two", 0.125]],
                "teacher": [[f"{name}/two", 0.5], [f"{name}/one", 0.25]],
                "teacher_name": f"teacher-{at}",
            }
            for at, name in enumerate(verticals[:3])
        ],
        "verticals": list(verticals),
        "classes": 10 * len(verticals),
    }


@pytest.fixture
def evaluation_of() -> Any:
    """The function above: test modules do not import one another."""
    return _evaluation


@pytest.fixture
def project(tmp_path: Path) -> Project:
    images = tmp_path / "images"
    (images / "birds").mkdir(parents=True)
    return Project.model_validate(
        {
            "workspace": tmp_path / "workspace",
            "data": {"source": "image_folder", "root": images, "vertical_depth": 0},
            "teachers": [
                {
                    "name": "teacher-0",
                    "builder": "torchvision:resnet18",
                    "weights": tmp_path / "weights" / "birds.safetensors",
                    "classes": ["one", "two"],
                }
            ],
        }
    )
