"""`ViewReader`: (row, view) numbers in, a batch for one network out.

In: reading each distinct image once, rendering, mixing, normalising. Left out: labels, epoch
order and loader workers (each worker holds its own pickled reader).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import InputConfig
from pipeline.data.views import augment, crop, mix
from storage_schemas.mixing import MixPools
from storage_schemas.view_recipe import ViewRecipe

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.data.source import Source

Rows = npt.NDArray[np.int64]

_PIXELS_AT_ONCE: Final = 2**24
"""Of whole decoded images in memory, 4 bytes each and 3 while they are cut; the image that goes
past it is still held."""


@dataclass(frozen=True, eq=False)
class ViewReader:
    """Reads views as one network wants them; teacher and student differ in `input` only.

    Attributes:
        source: Where images come from; `load(key)` gives mode L or RGB.
        manifest_keys: (N,) key of each manifest row.
        recipe: Which views there are.
        input: Size, channels and normalisation of the network.
        pools: Possible partners; needed when the recipe mixes.

    Raises:
        ValueError: If the recipe mixes and there are no pools, or they are not one per row.
    """

    source: Source
    manifest_keys: Sequence[str] | npt.NDArray[np.object_]
    recipe: ViewRecipe
    input: InputConfig
    pools: MixPools | None = None

    def __post_init__(self) -> None:
        if self.recipe.mix is None:
            return
        if self.pools is None:
            raise ValueError(f"pools must be given: the recipe mixes ({self.recipe.mix.kind})")
        if len(self.pools.pool_of) != len(self.manifest_keys):
            raise ValueError(
                f"pools must cover the manifest's {len(self.manifest_keys)} rows, "
                f"got {len(self.pools.pool_of)}"
            )

    def read(self, rows: Rows, views: Rows) -> Tensor:
        """Read B views; each distinct image is decoded once.

        Args:
            rows: (B,) int64 manifest rows; a row may come several times with different views.
            views: (B,) int64 view numbers.

        Returns:
            (B, channels, size, size) float32, normalised.

        Raises:
            UnreadableImageError: If an image does not decode; names its path.
        """
        partners, _ = self.mix_weights(rows, views)
        mixed = np.flatnonzero(partners != rows)
        pixels = self._render(
            np.concatenate([rows, partners[mixed]]), np.concatenate([views, views[mixed]])
        )
        pixels, second = pixels[: len(rows)], pixels[len(rows) :]
        if mixed.size:
            index = torch.from_numpy(mixed)
            parameters = self.recipe.parameters(rows[mixed], views[mixed])
            pixels[index] = mix(pixels[index], second, parameters)
        shape = (1, self.input.channels, 1, 1)
        mean = torch.tensor(self.input.mean, dtype=torch.float32).view(shape)
        std = torch.tensor(self.input.std, dtype=torch.float32).view(shape)
        return pixels.sub_(mean).div_(std)

    def mix_weights(self, rows: Rows, views: Rows) -> tuple[Rows, npt.NDArray[np.float32]]:
        """Return what is mixed into each view, for the hard labels of the student.

        Returns:
            Partner rows, (B,) int64, the row itself where nothing is mixed in; and the weight of
            the first image, (B,) float32, 1 where nothing is mixed in.
        """
        if self.recipe.mix is None or self.pools is None:
            return rows, np.ones(len(rows), np.float32)
        partners = self.recipe.partner_rows(rows, views, self.pools)
        weights = self.recipe.parameters(rows, views).mix_weight.astype(np.float32)
        return partners, np.where(partners == rows, np.float32(1), weights)

    def _render(self, rows: Rows, views: Rows) -> Tensor:
        parameters = self.recipe.parameters(rows, views)
        order = np.argsort(rows, kind="stable")
        distinct, starts = np.unique(rows[order], return_index=True)
        ends = np.append(starts[1:], len(rows))
        crops: dict[int, bytes] = {}
        for part, images in self._decoded(distinct):
            positions = order[starts[part][0] : ends[part][-1]]
            views_of_part = [images[row] for row in rows[positions].tolist()]
            cut = crop(views_of_part, parameters.take(positions), size=self.input.size)
            crops.update(zip(positions.tolist(), cut, strict=True))
        size, channels = self.input.size, self.input.channels
        in_order = [crops[i] for i in range(len(rows))]
        return augment(in_order, parameters, size=size, channels=channels)

    def _decoded(self, rows: Rows) -> Iterator[tuple[slice, dict[int, Image.Image]]]:
        """Yield the images of all rows in runs that fit in memory, with the place of each run."""
        images: dict[int, Image.Image] = {}
        first = pixels = 0
        for end, row in enumerate(rows.tolist(), 1):
            image = images[row] = self.source.load(self.manifest_keys[row])
            pixels += image.width * image.height
            if pixels >= _PIXELS_AT_ONCE or end == len(rows):
                yield slice(first, end), images
                images, first, pixels = {}, end, 0
