"""A source that a user's own callable returns.

In: finding `module:function`, calling it, checking what came back, and placing bare class names
in verticals. Left out: any search path of our own; the module must be importable.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from PIL import Image

from pipeline.config import PythonData
from pipeline.data.source import Parents, Sample, Source, qualified_names
from storage_schemas.errors import DataError


@dataclass(frozen=True, kw_only=True)
class NamedVerticalsSource(Source):
    """Another source whose bare class names are placed in verticals.

    Attributes:
        source: The source as the user wrote it.
        verticals: Vertical -> class names; None leaves `vertical/name` as it is and puts names
            without a "/" in the vertical "all".
    """

    source: Source
    verticals: Mapping[str, tuple[str, ...]] | None

    def samples(self) -> Iterable[Sample]:
        """List the samples with qualified class names."""
        samples = list(self.source.samples())
        bare = {s.class_name for s in samples if s.class_name is not None}
        if self.verticals is None:
            bare = {name for name in bare if "/" not in name}
        names = qualified_names(sorted(bare), self.verticals, owner=type(self.source).__name__)
        for sample in samples:
            if sample.class_name is None:
                yield sample
            else:
                name = names.get(sample.class_name, sample.class_name)
                yield replace(sample, class_name=name)

    def load(self, key: str) -> Image.Image:
        """Load from the source beneath."""
        return self.source.load(key)

    def content_digest(self, key: str) -> bytes:
        """Digest of the source beneath."""
        return self.source.content_digest(key)

    def parents(self, classes: Collection[str], labelled: Collection[str]) -> Parents:
        """Parents of the source beneath, which names classes as `vertical/name` here."""
        return self.source.parents(classes, labelled)

    def stamp(self, key: str) -> tuple[int, int] | None:
        """Stamp of the source beneath."""
        return self.source.stamp(key)


def open_python_data(config: PythonData) -> Source:
    """Call `module:function` with `args` and return the source it gives.

    Raises:
        DataError: If it cannot be imported, fails, or returns something else.
    """
    module_name, _, attribute = config.callable.partition(":")
    if not module_name or not attribute:
        raise DataError(f"data.callable must be 'module:function', got {config.callable!r}")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"data.callable {config.callable!r} cannot be imported ({error}); is the package "
            "installed, or its folder on PYTHONPATH?"
        ) from error
    try:
        source = function(**config.args)
    except TypeError as error:
        raise DataError(f"data.callable {config.callable!r} refused data.args: {error}") from error
    if not isinstance(source, Source):
        raise DataError(
            f"data.callable {config.callable!r} must return a pipeline.data.Source, got "
            f"{type(source).__name__}"
        )
    return NamedVerticalsSource(source=source, verticals=config.verticals)
