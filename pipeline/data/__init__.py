"""Samples: where they come from, and the manifest that numbers them. Imports no torch."""

from __future__ import annotations

from pipeline.data.catalogue import open_source
from pipeline.data.manifest import ManifestUpdate, update_manifest
from pipeline.data.manifest_files import load_label_space, load_manifest
from pipeline.data.source import Sample, Source

__all__ = [
    "ManifestUpdate",
    "Sample",
    "Source",
    "load_label_space",
    "load_manifest",
    "open_source",
    "update_manifest",
]
