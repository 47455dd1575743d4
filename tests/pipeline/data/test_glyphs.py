from __future__ import annotations

import pickle
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import GlyphData
from pipeline.data import open_source
from pipeline.data.glyph_classes import merged_classes, vertical_of
from pipeline.data.glyph_rendering import UNASSIGNED, font_files, render_face
from pipeline.data.glyphs import GlyphSource, open_glyphs
from storage_schemas.errors import DataError, UnreadableImageError
from storage_schemas.manifest import TEST, TRAIN

SETTINGS = {"source": "glyphs", "verticals": ["armenian", "cyrillic", "lao"]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture(scope="module")
def source(workspace: Path) -> GlyphSource:
    return open_glyphs(GlyphData.model_validate(SETTINGS), workspace)


def pixels(source: GlyphSource, key: str) -> np.ndarray:
    return np.asarray(source.load(key))


def test_keys_classes_and_images(source: GlyphSource) -> None:
    """Keys name vertical, code point and face; images are gray squares."""
    samples = {sample.key: sample for sample in source.samples()}
    sample = samples["cyrillic/U+0436/DejaVuSerif"]
    assert sample.class_name == "cyrillic/CYRILLIC SMALL LETTER ZHE"
    image = source.load(sample.key)
    assert (image.mode, image.size) == ("L", (32, 32))
    assert {key.split("/")[0] for key in samples} == {"armenian", "cyrillic", "lao"}


def test_held_out_faces_are_the_test_split(source: GlyphSource) -> None:
    """An image is a test image exactly when its face is held out."""
    held_out = GlyphData.model_validate(SETTINGS).test_faces
    splits = {s.split for s in source.samples()}
    assert splits == {TRAIN, TEST}
    for sample in source.samples():
        assert (sample.split == TEST) == (sample.key.rpartition("/")[2] in held_out)


def test_no_image_appears_twice(source: GlyphSource) -> None:
    """No image has two labels, and no test image is also a training image."""
    seen: dict[bytes, str] = {}
    for sample in source.samples():
        content = pixels(source, sample.key).tobytes()
        assert content not in seen, (sample.key, seen.get(content))
        seen[content] = sample.key


def test_every_class_can_be_trained_on(source: GlyphSource) -> None:
    """Each class has at least two training images."""
    counts: dict[str | None, int] = defaultdict(int)
    for sample in source.samples():
        counts[sample.class_name] += sample.split == TRAIN
    assert min(counts.values()) >= 2


def test_look_alikes_are_one_class() -> None:
    """Equal in the first face that holds them: one class, named by the lowest code point."""
    ring, bar = np.zeros((2, 2), np.uint8), np.ones((2, 2), np.uint8)
    first, second = {10: ring, 7: ring, 8: bar}, {7: bar, 8: bar, 10: ring, 12: bar}
    assert merged_classes([first, second]) == {7: 7, 8: 8, 10: 7, 12: 12}


def test_merged_class_has_all_its_images(source: GlyphSource, tmp_path: Path) -> None:
    """Greek Alpha and Cyrillic A are one class; which vertical has it depends on the choice."""
    both = open_glyphs(
        GlyphData.model_validate(SETTINGS | {"verticals": ["greek", "cyrillic"]}), tmp_path
    )
    alpha, a = "greek/GREEK CAPITAL LETTER ALPHA", "cyrillic/CYRILLIC CAPITAL LETTER A"
    classes = {sample.key: sample.class_name for sample in both.samples()}
    assert classes["greek/U+0391/DejaVuSans"] == alpha
    assert classes["greek/U+0410/STIXGeneral"] == alpha  # drawn anew there, so one image more
    assert a not in classes.values()
    assert a in {sample.class_name for sample in source.samples()}


def test_glyphs_are_centred_and_not_clipped(source: GlyphSource) -> None:
    """The ink's box is centred to half a pixel and leaves a border."""
    for sample in source.samples():
        ink = pixels(source, sample.key) > 0
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        for marks in (rows, columns):
            assert abs((marks[0] + marks[-1]) / 2 - 15.5) <= 0.5, sample.key
            assert marks[0] >= 1, sample.key
            assert marks[-1] <= 30, sample.key


def test_missing_and_blank_glyphs_are_left_out() -> None:
    """A face's box for missing glyphs and its blanks are no images."""
    (face,) = (path for path in font_files(()) if path.stem == "DejaVuSans")
    found = render_face(face, [ord("A"), ord(UNASSIGNED), 0x10FFFE, 0x2800, 0x20], 32)
    assert list(found) == [ord("A")]


def test_rendering_is_deterministic(source: GlyphSource, workspace: Path, tmp_path: Path) -> None:
    """Rendered again elsewhere: the same folder name and the same bytes."""
    again = open_glyphs(GlyphData.model_validate(SETTINGS), tmp_path)
    assert again.folder.name == source.folder.name
    for name in ("images.npy", "samples.json"):
        assert (again.folder / name).read_bytes() == (source.folder / name).read_bytes()


def test_a_hierarchy_adds_classes_and_no_images(source: GlyphSource, workspace: Path) -> None:
    """Scripts and letters come with the same images, from the same cache; off by default."""
    names = {s.class_name for s in source.samples() if s.class_name is not None}
    assert source.parents(names, names) == {}
    deeper = open_glyphs(GlyphData.model_validate(SETTINGS | {"hierarchy": True}), workspace)
    assert deeper.folder == source.folder
    parents = deeper.parents(names, names)
    assert names < set(parents)
    inner = {above for up in parents.values() for above in up}
    assert inner.isdisjoint(names)
    assert {"lao/any lao", "cyrillic/any CYRILLIC LETTER ZHE"} < inner


def test_cache_is_used_and_leaves_no_remains(
    source: GlyphSource, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second opening renders nothing; nothing half-written stays behind."""
    monkeypatch.setattr("pipeline.data.glyphs.glyph_samples", None)
    again = open_source(GlyphData.model_validate(SETTINGS), workspace)
    assert isinstance(again, GlyphSource)
    assert again.folder == source.folder
    assert [path.name for path in (workspace / "data").iterdir()] == [source.folder.name]


def test_other_settings_have_another_cache(source: GlyphSource, tmp_path: Path) -> None:
    """Size, faces and verticals are in the folder's name."""
    small = SETTINGS | {"verticals": ["lao"], "size": 16}
    other = open_glyphs(GlyphData.model_validate(small), tmp_path)
    assert other.folder.name != source.folder.name
    assert other.load(next(iter(other.samples())).key).size == (16, 16)
    key = next(iter(other.samples())).key
    assert other.stamp(key) != source.stamp(key)


def test_extra_fonts_add_faces(tmp_path: Path) -> None:
    """A font found by a glob is one more face, named by its file."""
    (origin,) = (path for path in font_files(()) if path.stem == "DejaVuSansMono")
    shutil.copy(origin, tmp_path / "Mine.ttf")
    settings = SETTINGS | {"verticals": ["lao"], "fonts": [str(tmp_path / "*.ttf")]}
    assert [path.stem for path in font_files([str(tmp_path / "*.ttf")])][-1] == "Mine"
    with pytest.raises(DataError, match="finds no file"):
        font_files([str(tmp_path / "*.otf")])
    (tmp_path / "Broken.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match=r"Broken\.ttf is no readable font"):
        open_glyphs(GlyphData.model_validate(settings), tmp_path)


def test_source_is_picklable_and_knows_its_keys(source: GlyphSource) -> None:
    """A worker's copy maps the file anew; an unknown key is refused."""
    key = next(iter(source.samples())).key
    digest = source.content_digest(key)
    copy = pickle.dumps(source)
    assert len(copy) < 1000
    assert pickle.loads(copy).content_digest(key) == digest
    with pytest.raises(UnreadableImageError, match="no such glyph"):
        source.load("latin/U+0041/Nothing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verticals": ["klingon"]}, r"must be some of .*'greek'.* got \['klingon'\]"),
        ({"test_faces": ["Nothing"]}, "test_faces must be some"),
        ({"verticals": ["lao"], "min_faces": 99}, "must be some of"),
        ({"verticals": None, "min_faces": 99}, "leave no class"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    """Unknown verticals and faces are errors that list the known ones."""
    with pytest.raises(DataError, match=message):
        open_glyphs(GlyphData.model_validate(SETTINGS | settings), tmp_path)


@pytest.mark.parametrize(
    ("character", "vertical"),
    [
        ("a", "latin"),
        ("\u03b1", "greek"),
        ("→", "arrows"),
        ("+", "mathematics"),
        ("∀", "mathematics"),
        ("ℵ", "letterlike"),
        ("▲", "shapes"),
        ("☂", "symbols"),
        ("€", "punctuation"),
        ("!", "punctuation"),
        ("ˇ", "modifiers"),
        ("7", None),
        (" ", None),
        ("⠿", None),
        ("┼", None),
        ("\ufffd", None),
        ("\u0301", None),
    ],
)
def test_verticals_are_scripts_and_block_groups(character: str, vertical: str | None) -> None:
    """Letters go by script, shared signs by block; what is no class has no vertical."""
    assert vertical_of(ord(character)) == vertical


def test_cases_merge_into_letters(tmp_path: Path) -> None:
    """With `merge_cases` a class is a letter: both cases of it, with all their images."""
    settings = {"source": "glyphs", "verticals": ["armenian"]}
    plain = open_glyphs(GlyphData.model_validate(settings), tmp_path)
    letters = open_glyphs(GlyphData.model_validate(settings | {"merge_cases": True}), tmp_path)
    classes = {sample.key: sample.class_name for sample in letters.samples()}
    both = {classes[f"armenian/U+{c:04X}/DejaVuSans"] for c in (0x531, 0x561)}
    assert both == {"armenian/ARMENIAN CAPITAL LETTER AYB"}
    assert len(set(classes.values())) < len({s.class_name for s in plain.samples()})
    assert letters.folder != plain.folder
    explicit = GlyphData.model_validate(settings | {"merge_cases": False})
    assert open_glyphs(explicit, tmp_path).folder == plain.folder
