"""JPEG photographs made here, and a project of them.

Their colours and texture have a spectrum that falls as that of real ones. Files of 500 x 375 pixels
at quality 90 have about 100 kB, as those of ImageNet do. Shapes without texture would decode in
half the time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import Project, load_project
from pipeline.models.builders import build_classifier

SIZE = (500, 375)


def photograph(seed: int) -> Image.Image:
    """Return an image of `SIZE` whose amplitudes fall as 1 / frequency."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0

    def texture(slope: float) -> np.ndarray:
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**slope
        field = np.fft.irfft2(spectrum, s=(height, width))
        return (field - field.mean()) / field.std()

    luma = texture(1.1)
    pixels = np.stack([120 + 50 * luma + 15 * texture(1.3) for _ in range(3)], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_photographs(root: Path, classes: list[str], images: int, distinct: int = 32) -> None:
    """Write class folders of JPEG files, the classes in turn; `distinct` pictures repeat."""
    pictures = [photograph(number) for number in range(min(distinct, images))]
    for number in range(images):
        path = root / classes[number % len(classes)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[number % len(pictures)].save(path, quality=90)


def photo_project(
    folder: Path,
    *,
    images: int,
    num_classes: int = 200,
    teacher: str = "resnet18",
    teachers: int = 1,
    views: int = 1,
    size: int = 224,
    batch_size: int = 16,
) -> Project:
    """Return a project of photographs whose classes are shared out evenly among its teachers.

    The teachers are torchvision networks with random weights; the student is a ResNet-18.

    Args:
        folder: Where everything goes.
        images: At least one for each class.
        num_classes: Of all teachers together.
        teacher: Name of the teachers' network.
        teachers: How many there are.
        views: Of each image.
        size: Side of what all networks see.
        batch_size: Of the student.
    """
    classes = [f"class{number:03d}" for number in range(num_classes)]
    write_photographs(folder / "images", classes, images)
    share = len(classes) // teachers
    torch.manual_seed(0)
    network = build_classifier(f"torchvision:{teacher}", share, {})
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "teacher.safetensors")
    (folder / "project.yaml").write_text(
        yaml.safe_dump(
            {
                "workspace": "work",
                "data": {"source": "image_folder", "root": "images", "test_fraction": 0.0},
                "views": {"count": views, "crop": {"scale": [0.08, 1.0]}, "flip": 0.5},
                "teachers": [
                    {
                        "name": f"photos{number}",
                        "builder": f"torchvision:{teacher}",
                        "weights": "teacher.safetensors",
                        "classes": classes[number * share : (number + 1) * share],
                        "input": {"size": size},
                        "batch_size": 32,
                    }
                    for number in range(teachers)
                ],
                "labels": {"k": 16},
                "student": {
                    "builder": "torchvision:resnet18",
                    "input": {"size": size},
                    "objective": {"name": "knowledge_concentration", "form": "softmax"},
                    "batch_size": batch_size,
                },
            }
        )
    )
    return load_project(folder / "project.yaml")
