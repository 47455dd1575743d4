"""What labelling costs over a bare loop that decodes, transforms and forwards the same images.

Both go through the same loader and teacher in one process, taken in turn. Labelling adds top-k,
the code, compression, checksums, fsync and commit records. Prefect's start is not in it: it is a
fixed cost a run, measured in the README. Two cases: the demo's first teacher (32 pixels) and a
ResNet-18 on JPEG photographs at 224 pixels.

    python benchmarks/label_overhead.py
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from measure import interleaved, median_ratio, record
from PIL import Image
from safetensors.torch import save_file
from stages import DEMO

from pipeline.config import Project, load_project
from pipeline.data import open_source, update_manifest
from pipeline.data.routing import routed_rows
from pipeline.data.view_reader import ViewReader
from pipeline.models.builders import build_classifier
from pipeline.teachers.labelling import label_shards, load_teacher
from pipeline.teachers.row_batches import row_batches
from pipeline.teachers.spec import resolve_teacher
from pipeline.teachers.specialist import train_specialist
from pipeline.teachers.stores import missing_work, open_or_create, store_path, store_schema
from storage_schemas.manifest import TRAIN


def photo_project(folder: Path, images: int) -> Project:
    """A project of JPEG photographs at 224 pixels with a ResNet-18 teacher of 200 classes."""
    generator = np.random.default_rng(0)
    classes = [f"class{number:03d}" for number in range(200)]
    for number in range(images):
        low = generator.integers(0, 255, (12, 16, 3), np.uint8)
        path = folder / "images" / classes[number % len(classes)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(low).resize((400, 300), Image.Resampling.BICUBIC).save(path, quality=90)
    torch.manual_seed(0)
    network = build_classifier("torchvision:resnet18", len(classes), {})
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "resnet18.safetensors")
    (folder / "project.yaml").write_text(
        yaml.safe_dump(
            {
                "workspace": "work",
                "data": {"source": "image_folder", "root": "images", "test_fraction": 0.0},
                "views": {"count": 4, "crop": {"scale": [0.3, 1.0]}, "flip": 0.5},
                "teachers": [
                    {
                        "name": "photos",
                        "builder": "torchvision:resnet18",
                        "weights": "resnet18.safetensors",
                        "classes": classes,
                        "batch_size": 64,
                    }
                ],
                "labels": {"k": 16},
            }
        )
    )
    return load_project(folder / "project.yaml")


def measure_first_teacher(project: Project, rounds: int) -> dict[str, object]:
    """Time labelling into a new store against the bare loop."""
    update = update_manifest(project)
    manifest, space = update.manifest, update.label_space
    spec = resolve_teacher(project, project.teachers[0], space, manifest)
    if not spec.is_ready:
        train_specialist(project, spec, manifest)
    schema = store_schema(project, spec, space, manifest, TRAIN)
    rows = routed_rows(manifest, TRAIN, spec.route)
    work = missing_work(project, schema, spec, manifest)
    views = range(project.views.count)
    device = torch.device("cpu")
    teacher = load_teacher(spec, device)

    def bare() -> None:
        reader = ViewReader(
            open_source(project.data, project.workspace),
            manifest.keys,
            project.views,
            spec.config.input,
        )
        for item in work:
            first = item.shard * schema.shard_rows
            inside = rows[(rows >= first) & (rows < first + schema.shard_rows)]
            for pixels in row_batches(project, reader, spec, inside, views, device):
                for view in views:
                    with torch.inference_mode():
                        teacher(pixels[view])

    def remove_store() -> None:
        shutil.rmtree(store_path(project, schema), ignore_errors=True)

    def label() -> None:
        store = open_or_create(project, schema, space)
        label_shards(project, spec, manifest, store, work)

    seconds = interleaved({"label": label, "bare": bare}, rounds=rounds, before=remove_store)
    labels = len(rows) * len(views)
    return {
        "labels": labels,
        "classes": len(spec.label_map),
        "seconds": {name: [round(value, 3) for value in times] for name, times in seconds.items()},
        "labels_per_second": round(labels / sorted(seconds["label"])[rounds // 2], 1),
        "ratio_label_to_bare": median_ratio(seconds, "label", "bare"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=256, help="at least 200")
    parser.add_argument("--cases", nargs="+", default=["glyphs", "photos"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "glyphs" in arguments.cases:
            project = load_project(DEMO, [f"workspace={folder}", "specialists.epochs=1"])
            record("label_overhead_glyphs", measure_first_teacher(project, arguments.rounds))
    with tempfile.TemporaryDirectory() as folder:
        if "photos" in arguments.cases:
            project = photo_project(Path(folder), arguments.photos)
            record("label_overhead_photos", measure_first_teacher(project, arguments.rounds))


if __name__ == "__main__":
    main()
