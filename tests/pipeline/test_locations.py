"""Places on a disk and in a bucket: their names, and files replaced whole in both."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import locations
from pipeline.config import Project, load_project
from pipeline.durable_files import free_bytes, write_durably
from pipeline.report.provenance import shortened
from pipeline.workspace import read_record, write_record
from storage_schemas.errors import ConfigError, StoreError

on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
TREE = {
    "workspace": "s3://bucket/some/prefix",
    "data": {"source": "image_folder", "root": "images"},
    "teachers": [{"name": "birds", "builder": "torchvision:resnet18", "classes": ["a", "b"]}],
}


def load(folder: Path, workspace: str) -> Project:
    """Return a project file's settings."""
    path = folder / "project.yaml"
    path.write_text(yaml.safe_dump(TREE | {"workspace": workspace}))
    return load_project(path)


def test_a_bucket_is_kept_as_it_is_named(tmp_path):
    """The URL survives the project file, `/`, a round trip as text, and pickle."""
    place = load(tmp_path, "s3://bucket/some/prefix/").workspace
    assert str(place / "labels" / "birds") == "s3://bucket/some/prefix/labels/birds"
    assert str((place / "labels").relative_to(place)) == "labels"
    assert locations.location(str(place)) == place == pickle.loads(pickle.dumps(place))
    assert not locations.is_local(place)
    assert free_bytes(place) is None
    assert load(tmp_path, "s3://bucket").workspace / "a" == locations.location("s3://bucket/a")


def test_other_processes_are_seen(bucket):
    """Nothing that a bucket said is remembered: objects that others put are found at once."""
    assert list(bucket.glob("*")) == []
    other = (
        "import sys; from pipeline.locations import location\n"
        "(location(sys.argv[1]) / 'new').write_bytes(b'1')"
    )
    subprocess.run(
        [sys.executable, "-c", other, str(bucket)], check=True, cwd=Path(__file__).parents[2]
    )
    assert [path.name for path in bucket.glob("*")] == ["new"]


@pytest.mark.parametrize(
    "text", ["gs://bucket/a", "file:///tmp/a", "s3:/bucket/a", "s3://", "s3://b//a", "s3://b/../a"]
)
def test_what_names_no_place_is_refused(tmp_path, text):
    """Unknown schemes, collapsed URLs and parts that climb are errors of the project file."""
    with pytest.raises(ConfigError, match=r"workspace: .*s3://bucket/prefix"):
        load(tmp_path, text)
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        locations.location(text)


def test_a_missing_extra_is_named(monkeypatch):
    """Without s3fs the message says what to install."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r'pip install "concentrate\[s3\]"'):
        locations.location("s3://bucket/a")


def test_a_local_workspace_loads_no_s3():
    """The libraries for a bucket are imported for an s3:// text only."""
    code = (
        "import sys, pipeline.config, pipeline.data, pipeline.store.lock, pipeline.locations as l\n"
        "before = set(sys.modules)\n"
        "assert l.is_local(l.location('work'))\n"
        "assert not {'s3fs', 'upath', 'botocore'} & set(sys.modules), 'loaded'\n"
        "assert set(sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@on_both
def test_files_are_replaced_whole(location):
    """What was written is read back, and nothing else is there."""
    path = location / "a" / "b.json"
    for content in (b"first", b"", b"third"):
        write_durably(path, content)
        assert path.read_bytes() == content
    assert [other.name for other in path.parent.iterdir()] == ["b.json"]
    assert locations.folder_bytes(location / "a") == 5
    locations.remove(path)
    locations.remove(path)
    assert not path.exists()


@on_both
def test_records_are_read_back(location):
    """A record is what was written; one that is absent or torn is None."""
    path = location / "record.json"
    assert read_record(path) is None
    write_record(path, {"a": [1, "b"]})
    assert read_record(path) == {"a": [1, "b"]}
    path.write_bytes(b'{"a": [1,')
    assert read_record(path) is None


def test_a_record_that_cannot_be_read_is_not_absent(bucket, monkeypatch):
    """A server that does not answer is an error: nothing is done again because of it."""
    write_record(bucket / "record.json", {"a": 1})
    fail = OSError("503 Slow Down")

    def failing(path: Path) -> bytes:
        raise fail

    monkeypatch.setattr("pipeline.workspace.read_whole", failing)
    with pytest.raises(StoreError, match=r"record\.json cannot be read: 503"):
        read_record(bucket / "record.json")


def test_what_must_be_local_has_a_folder(tmp_path, monkeypatch):
    """A local workspace is that folder itself; each bucket has its own in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert locations.local_folder(tmp_path / "work") == tmp_path / "work"
    one, two = (locations.local_folder(locations.location(f"s3://b/{n}")) for n in "ab")
    assert one.parent == two.parent == tmp_path / "concentrate"
    assert one != two


def test_a_report_does_not_name_the_bucket():
    """Of a place in a bucket the page shows the last part, as of any path."""
    assert shortened({"workspace": "s3://bucket/some/prefix"}) == {"workspace": "prefix"}
    project = Project.model_validate(TREE)
    assert yaml.safe_load(yaml.safe_dump(shortened(project.model_dump(mode="python"))))
