"""Views a second of one core: the pipeline's reader against torchvision's decode and transforms.

Both read the same JPEG files of a folder, cut RandomResizedCrop boxes, resize them to 224 pixels,
mirror half of them and normalise; both return one batch. torchvision runs its default loader and
transforms, on Pillow images, and, for comparison, its tensor back end, which decodes and resizes as
the reader does. With 4 views of an image each side decodes it once.

    python benchmarks/image_decode.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Figure, benchmark_parser, interleaved, median_ratio, record
from photographs import SIZE, write_photographs
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

from pipeline.config import InputConfig
from pipeline.data.image_folder import ImageFolderSource
from pipeline.data.view_reader import ViewReader
from storage_schemas.view_recipe import Crop, ViewRecipe

INPUT = InputConfig(size=224, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SCALE = (0.08, 1.0)
VIEWS = 4


def ours(root: Path, views: int) -> Callable[[], torch.Tensor]:
    """Return a function that reads all images of a folder in some views each."""
    source = ImageFolderSource(root=root)
    keys = [sample.key for sample in source.samples()]
    recipe = ViewRecipe(count=views, crop=Crop(scale=SCALE), flip=0.5)
    reader = ViewReader(source, keys, recipe, INPUT)
    rows = np.repeat(np.arange(len(keys)), views)
    return lambda: reader.read(rows, np.tile(np.arange(views), len(keys)))


def torchvisions(root: Path, views: int, *, tensors: bool) -> Callable[[], torch.Tensor]:
    """Return a function that does the same with torchvision alone."""
    files = sorted(str(path) for path in root.rglob("*.jpg"))
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(INPUT.size, SCALE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(INPUT.mean, INPUT.std),
        ]
    )

    def read() -> torch.Tensor:
        made = []
        for file in files:
            image = (
                decode_image(read_file(file), ImageReadMode.RGB)
                if tensors
                else default_loader(file)
            )
            made += [transform(image) for _ in range(views)]
        return torch.stack(made)

    return read


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--images", type=int, default=32, help="in a batch")
    arguments = parser.parse_args()
    rounds = 7 if arguments.quick else 25
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, ["a", "b"], arguments.images)
        cases = {}
        for views in (1, VIEWS):
            cases[f"ours_{views}"] = ours(root, views)
            cases[f"torchvision_{views}"] = torchvisions(root, views, tensors=False)
            cases[f"tensors_{views}"] = torchvisions(root, views, tensors=True)
        seconds = interleaved(cases, rounds=rounds)
        file_bytes = sum(path.stat().st_size for path in root.rglob("*.jpg")) // arguments.images
    speed = {
        views: median_ratio(seconds, f"torchvision_{views}", f"ours_{views}")
        for views in (1, VIEWS)
    }
    gain = VIEWS * median_ratio(seconds, "ours_1", f"ours_{VIEWS}")["median"]
    bounds = {
        1: "decoding (libjpeg-turbo), over half of the time; next torch's resize",
        VIEWS: "decoding, over a third of the time; next torch's resize, over a quarter",
    }
    figures = [
        Figure(
            what=f"decode and transform on one core, views_per_image {views}",
            value=speed[views]["median"],
            must_be="at least",
            target=0.95,
            against="torchvision's default loader and transforms (Pillow), in views/s",
            bound=bounds[views],
        )
        for views in (1, VIEWS)
    ]
    figures.append(
        Figure(
            what=f"{VIEWS} views from one decode",
            value=round(gain, 4),
            must_be="at least",
            target=2.5,
            against="one view of each decoded image, in views/s",
            bound="a view costs a third of a decode, over half of it torch's resize; next: making "
            "bytes floats and normalising them, four passes over the batch",
        )
    )
    record(
        "image_decode",
        {
            "image": {"size": SIZE, "bytes": file_bytes, "render": INPUT.size, "scale": SCALE},
            "images_per_batch": arguments.images,
            "milliseconds_per_image": {
                name: [round(1000 * value / arguments.images, 3) for value in times]
                for name, times in seconds.items()
            },
            "speed_against_torchvision": speed,
            "speed_against_torchvision_on_tensors": {
                views: median_ratio(seconds, f"tensors_{views}", f"ours_{views}")
                for views in (1, VIEWS)
            },
        },
        arguments.out / "image_decode.json",
        figures=figures,
    )


if __name__ == "__main__":
    main()
