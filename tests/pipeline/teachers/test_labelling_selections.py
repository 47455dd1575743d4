"""Labelling with top_p and sampled, on a tiny real project: same bits, right mass, own stores."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import load_project
from pipeline.data import open_source, update_manifest
from pipeline.data.view_reader import ViewReader
from pipeline.models.builders import build_classifier
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.plan import plan_labels
from pipeline.store.published import SPLIT_NAMES, open_published, publish, read_exactness
from pipeline.teachers.exactness import measure_exactness
from pipeline.teachers.labelling import label_shards, load_teacher, teacher_cost
from pipeline.teachers.spec import resolve_teacher
from pipeline.teachers.stores import missing_work, open_or_create, store_schema
from pipeline.training.evaluation import evaluate_specialists
from pipeline.workspace import Workspace, write_record
from storage_schemas.errors import ConfigError, SchemaMismatchError
from storage_schemas.manifest import TEST, TRAIN
from storage_schemas.view_recipe import ViewRecipe

BUILDER = "pipeline.models.backbones:glyph_resnet"
CLASSES = ("apple", "pear", "plum", "fig", "lime")
SAMPLED = ("labels.selection=sampled", "labels.k=64", "labels.temperatures=[2.0]")
TOP_P = ("labels.selection=top_p", "labels.top_p=0.5", "labels.k=4", "labels.precision=exact")
OVERRIDES = {"top_k": (), "top_p": TOP_P, "sampled": SAMPLED}


@pytest.fixture
def root(tmp_path):
    """A project of one vertical of five classes and one checkpoint of random weights."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        folder = tmp_path / "images" / "fruit" / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    torch.manual_seed(0)
    arguments = {"width": 8, "in_channels": 3}
    network = build_classifier(BUILDER, len(CLASSES), arguments)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    last = list(state)[-2]
    state[last] = state[last] * 20  # answers that differ from class to class
    save_file(state, tmp_path / "fruit.safetensors")
    config = {
        "workspace": "work",
        "data": {
            "source": "image_folder",
            "root": "images",
            "vertical_depth": 1,
            "test_fraction": 0.3,
        },
        "views": {"count": 2, "seed": 5, "crop": {"scale": [0.5, 1.0]}},
        "teachers": [
            {
                "name": "fruit",
                "builder": BUILDER,
                "builder_args": arguments,
                "weights": "fruit.safetensors",
                "classes": {"vertical": "fruit"},
                "input": {"size": 32},
                "batch_size": 4,
            }
        ],
        "labels": {"k": 2, "temperatures": [1.0, 2.0], "shard_rows": 8, "chunk_rows": 4},
        "student": {"objective": {"name": "soft_labels", "temperature": 2.0}},
    }
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def resolved(root, overrides):
    """The project, its data and its teacher."""
    project = load_project(root / "project.yaml", overrides)
    update = update_manifest(project)
    teacher = project.teachers[0]
    return project, update, resolve_teacher(project, teacher, update.label_space, update.manifest)


def label(root, overrides=(), limit=None):
    """Label what is missing, or at most `limit` shards of each store, and publish."""
    project, update, spec = resolved(root, overrides)
    stores = {}
    for split in (TRAIN, TEST):
        schema = store_schema(project, spec, update.label_space, update.manifest, split)
        stores[split] = open_or_create(project, schema, update.label_space)
        work = missing_work(project, schema, spec, update.manifest)[:limit]
        label_shards(project, spec, update.manifest, stores[split], work)
    names = {SPLIT_NAMES[split]: store.schema.fingerprint for split, store in stores.items()}
    publish(Workspace(project.workspace), spec.name, names, teacher_cost(spec))
    return project, update, stores


def dense(project, update, rows, views, recipe=None):
    """The teacher's logits of the very views that were labelled."""
    spec = resolve_teacher(project, project.teachers[0], update.label_space, update.manifest)
    source = open_source(project.data, project.workspace)
    recipe = recipe or project.views
    reader = ViewReader(source, update.manifest.keys, recipe, spec.config.input)
    with torch.inference_mode():
        return load_teacher(spec, torch.device("cpu"))(reader.read(rows, views)).double()


@pytest.mark.parametrize("selection", OVERRIDES)
def test_an_interrupted_store_ends_like_an_undisturbed_one(root, tmp_path_factory, selection):
    """Labelled once, in two goes, or with a shard made again: the digests are the same."""
    other = tmp_path_factory.mktemp("other") / "project"
    shutil.copytree(root, other)
    overrides = OVERRIDES[selection]
    _, _, stores = label(root, overrides)
    label(other, overrides, limit=1)
    _, _, again = label(other, overrides)
    for split, store in stores.items():
        commits = store.commits
        assert (commits[:, :, 0] > 0).any()
        assert np.array_equal(commits, again[split].commits)
        view, shard = map(int, np.argwhere(commits[:, :, 0] > 0)[-1])
        store.discard_shard(view, shard)
        label(root, overrides)
        assert np.array_equal(store.commits, commits)


def test_shares_are_drawn_from_the_dense_answer(root):
    """Shares of 64 draws agree with softmax at their temperature; other views, other draws."""
    project, update, stores = label(root, SAMPLED)
    rows = update.manifest.rows(TRAIN)
    labels = [stores[TRAIN].read(rows, view, 2.0) for view in range(2)]
    z = []
    for view, found in enumerate(labels):
        p = (dense(project, update, rows, np.full_like(rows, view)) / 2).softmax(dim=1)
        shares = torch.zeros(len(rows), len(CLASSES) + 1, dtype=torch.float64)
        shares.scatter_add_(1, found.ids[0] % (len(CLASSES) + 1), found.log_probs[0].double().exp())
        z.append(((shares[:, :-1] - p) / (p * (1 - p) / 64).clamp(min=1e-12).sqrt())[p > 0.02])
    scores = torch.cat(z)
    assert len(scores) > 100
    assert scores.abs().max() < 5
    assert 0.7 < scores.std() < 1.3  # drawn, not rounded to the nearest 64th
    assert not torch.equal(labels[0].log_probs, labels[1].log_probs)
    counts = labels[0].log_probs.double().exp() * 64
    assert torch.allclose(counts, counts.round(), atol=1e-4)
    assert torch.isneginf(labels[0].log_tail).all()


def test_a_nucleus_holds_the_mass_that_was_asked_for(root):
    """Kept classes are the fewest whose dense mass reaches 0.5; all probabilities are right."""
    project, update, stores = label(root, TOP_P)
    rows = update.manifest.rows(TRAIN)
    found = stores[TRAIN].read(rows, 1)
    p = dense(project, update, rows, np.ones_like(rows)).softmax(dim=1)
    ranked = p.sort(dim=1, descending=True).values
    sizes = 1 + (ranked.cumsum(dim=1)[:, :3] < 0.5).sum(dim=1)
    kept = (found.ids[0] >= 0).sum(dim=1)
    assert torch.equal(kept, sizes)
    assert len(set(kept.tolist())) > 1
    for row, size in enumerate(kept.tolist()):
        error = found.log_probs[0, row, :size].exp() - ranked[row, :size]
        assert error.abs().max() < 2e-3
        rest = 1 - ranked[row, :size].sum()
        assert (found.log_tail[0, row].exp() - rest).abs() < 2e-3


@pytest.mark.parametrize("selection", ["top_p", "sampled"])
def test_test_rows_are_always_top_k(root, selection):
    """A specialist's accuracy is the same whatever is kept of the training labels."""
    overrides = ["labels.temperatures=[2.0]", "labels.k=5"]
    accuracies = []
    for chosen in ("top_k", selection):
        project, update, stores = label(root, [*overrides, f"labels.selection={chosen}"])
        assert stores[TEST].schema.selection == "top_k"
        assert stores[TRAIN].schema.selection == chosen
        published = open_published(project, update.label_space, update.manifest, TEST)
        accuracies.append(evaluate_specialists(published, update.label_space, update.manifest))
    assert accuracies[0] == accuracies[1]


def test_a_selection_is_part_of_the_fingerprint_unless_it_is_the_default(root):
    """Stores of before keep their name; another selection or mass is another store."""
    names = []
    for overrides in ((), ("labels.selection=top_k",), TOP_P[:1], TOP_P[:2], SAMPLED[::2]):
        project, update, spec = resolved(root, overrides)
        schema = store_schema(project, spec, update.label_space, update.manifest, TRAIN)
        names.append(schema.fingerprint)
        parts = {"selection", "top_p"} & set(schema.fingerprint_parts)
        assert bool(parts) == (schema.selection != "top_k")
    assert names[0] == names[1]
    assert len(set(names[1:])) == 4


def test_labels_of_another_selection_are_refused_and_planned(root):
    """A student that asks for sampled labels is told what there is; plan says what changed."""
    label(root)
    project, update, spec = resolved(root, SAMPLED)
    with pytest.raises(SchemaMismatchError) as caught:
        open_published(project, update.label_space, update.manifest, TRAIN)
    text = str(caught.value)
    assert "fruit: selection must be sampled, got top_k" in text
    assert "fruit: k must be 64, got 2" in text
    assert "fruit: temperatures must be (2.0,), got (1.0, 2.0)" in text
    work = plan_labels(project, spec, update.label_space, update.manifest)
    assert work[0].reason == (
        "changed since the published store: k 2 -> 64, selection None -> 'sampled', temperatures "
        "[1.0, 2.0] -> [2.0]"
    )


def test_an_undeclared_temperature_is_refused_with_the_list(root):
    """By the project file, by the published stores, and before a student's first batch."""
    project, update, _ = label(root)
    with pytest.raises(ConfigError, match=r"one of labels.temperatures \[1.0, 2.0\], got 4.0"):
        load_project(root / "project.yaml", ["student.objective.temperature=4.0"])
    wider = ["labels.temperatures=[1.0, 4.0]", "student.objective.temperature=4.0"]
    other = load_project(root / "project.yaml", wider)
    with pytest.raises(SchemaMismatchError, match=r"must be \(1.0, 4.0\), got \(1.0, 2.0\)"):
        open_published(other, update.label_space, update.manifest, TRAIN)
    published = open_published(project, update.label_space, update.manifest, TRAIN)
    with pytest.raises(SchemaMismatchError, match=r"one of \[1.0, 2.0\], got 4.0"):
        StoredSignals(
            update.manifest.labels,
            stores=published.stores,
            routes=published.routes,
            temperature=4.0,
        )


@pytest.mark.parametrize("precision", ["compact", "exact"])
def test_what_labels_lost_is_the_distance_of_the_test_store(root, precision):
    """The record's mean and largest KL are those of stored test labels and dense answers."""
    project, update, stores = label(root, [f"labels.precision={precision}", "labels.k=3"])
    _, _, spec = resolved(root, [f"labels.precision={precision}", "labels.k=3"])
    found = measure_exactness(project, spec, update.manifest, stores[TRAIN].schema)
    rows = update.manifest.rows(TEST)
    answers = dense(project, update, rows, rows * 0, ViewRecipe.evaluation_recipe())
    assert (found.split, found.rows, found.ranks) == ("test", len(rows), 3)
    assert [lost.temperature for lost in found.losses] == [1.0, 2.0]
    for lost in found.losses:
        p = (answers / lost.temperature).softmax(dim=1)
        stored = stores[TEST].read(rows, 0, lost.temperature)
        q = (stored.log_tail[0].double().exp() / 2)[:, None].expand(-1, 5).clone()
        q.scatter_(1, stored.ids[0], stored.log_probs[0].double().exp())
        total = (p * (p / q).log()).sum(dim=1)
        assert lost.uniform.mean == pytest.approx(total.mean().item(), abs=1e-6)
        assert lost.uniform.max == pytest.approx(total.max().item(), abs=1e-6)
        outside = 1 - p.gather(1, stored.ids[0]).sum(dim=1)
        assert lost.outside.mean == pytest.approx(outside.mean().item(), abs=1e-6)
        own = lost.quantisation[precision]
        assert lost.truncation.mean + own.mean == pytest.approx(lost.uniform.mean)
        assert own.mean == pytest.approx(lost.bucket.mean, abs=1e-12)
        assert lost.quantisation["exact"].mean < lost.quantisation["compact"].mean / 100
        assert lost.drop.mean > 0


@pytest.mark.parametrize("selection", ["top_p", "sampled", "sigmoid"])
def test_what_labels_lost_holds_only_what_is_defined(root, selection):
    """Draws have no tail and no code; sigmoid labels have no tail; without test rows, train."""
    overrides = [*OVERRIDES.get(selection, ()), "data.test_fraction=0.0"]
    if selection == "sigmoid":
        objective = "{name: knowledge_concentration, form: sigmoid, temperature: 2.0}"
        overrides += ["labels.activation=sigmoid", f"student.objective={objective}"]
    if selection == "sampled":
        overrides += ["labels.k=6"]
    project, update, spec = resolved(root, overrides)
    schema = store_schema(project, spec, update.label_space, update.manifest, TRAIN)
    found = measure_exactness(project, spec, update.manifest, schema)
    assert (found.split, found.rows) == ("train", 40)
    assert 1 < found.ranks < 4
    assert (found.ranks == 2) == (selection == "sigmoid")
    for lost in found.losses:
        assert lost.drop.mean > 0
        assert (lost.uniform is None) == (selection != "top_p")
        assert (lost.bucket is None) == (selection != "top_p")
        assert (lost.truncation is None) == (selection == "sampled")
        assert set(lost.quantisation) == (set() if selection == "sampled" else {"compact", "exact"})
    path = Workspace(project.workspace).exactness("fruit")
    write_record(path, found.model_dump(mode="json"))
    assert read_exactness(Workspace(project.workspace), "fruit") == found
    path.write_text('{"version": 2}')
    assert read_exactness(Workspace(project.workspace), "fruit") is None
