"""Peer Collaborative Learning: who sees what, who teaches whom, and which peer is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import Project, StudentConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.models.peers import PeerStudent
from pipeline.models.student import Student, build_student
from pipeline.objectives import Method, MethodInputs, build_method
from pipeline.objectives.base import LabelContext, PeerOutput, TargetBatch, total_loss
from pipeline.objectives.peer_collaborative import PeerCollaborativeObjective, ramp_weight
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.training.fit import FitResult
from pipeline.training.fit_stages import fit_stages
from storage_schemas.errors import ConfigError
from storage_schemas.label_space import LabelSpace

M, N, ROWS = 3, 2, 24
SPACE = LabelSpace(classes=("a/0", "a/1", "b/0", "b/1"))
C = len(SPACE)


def config(stage: str = "blocks.2", **settings: object) -> StudentConfig:
    """A small glyph network with three peers."""
    method = {"name": "peer_collaborative", "stage": stage, "peers": M, "decay": 0.9}
    values = {
        "builder": "pipeline.models.backbones:glyph_resnet",
        "builder_args": {"width": 8, "dropout": 0.0},
        "input": {"size": 32, "channels": 1},
        "objective": method,
        "views_per_image": M,
        "epochs": 2,
        "batch_size": 6,
        "checkpoint_every_steps": 2,
        "log_every_steps": 1,
    }
    return StudentConfig.model_validate(values | settings)


def context(total_steps: int = 24) -> LabelContext:
    """The label space of a run without teachers."""
    return LabelContext(
        num_classes=C,
        vertical_of=torch.from_numpy(SPACE.vertical_of),
        supports=(),
        total_steps=total_steps,
    )


def method(settings: StudentConfig) -> Method:
    """The method of a fresh student."""
    torch.manual_seed(0)
    labels = np.arange(ROWS, dtype=np.int32) % C
    inputs = MethodInputs(
        config=settings,
        student=build_student(settings, SPACE),
        context=context(),
        signals=StoredSignals(labels),
        rows=np.arange(ROWS, dtype=np.int64),
        views=M,
    )
    return build_method(inputs, "student")


def trained(settings: StudentConfig) -> PeerStudent:
    """The network of the method, with batch statistics of some images."""
    network = method(settings).network
    assert isinstance(network, PeerStudent)
    channels = settings.input.channels
    for seed in range(2):
        torch.manual_seed(seed)
        network(torch.randn(N * M, channels, 32, 32))
        with torch.no_grad():
            for parameter in network.network.parameters():
                parameter.mul_(1.01).add_(0.001)
    return network.eval()


RESNET = {
    "stage": "layer4",
    "builder": "torchvision:resnet18",
    "builder_args": {},
    "input": {"size": 32, "channels": 3},
}


@pytest.mark.parametrize("settings", [{}, RESNET], ids=["glyph_resnet", "resnet18"])
def test_each_peer_has_its_view_and_one_is_kept(settings: dict[str, object]) -> None:
    """Row i * m + j is what peer j alone says of it; a peer is a student with all its weights."""
    made = config(**settings)
    network = trained(made)
    images = torch.randn(N * M, made.input.channels, 32, 32)
    with torch.inference_mode():
        found = network(images)
        for index in range(M):
            peer = network.peer(index).eval()
            alone = peer(images[index::M]).logits
            torch.testing.assert_close(found.averaged[index::M], alone, rtol=1e-4, atol=1e-4)
    plain = build_student(made, SPACE)
    plain.load_state_dict(peer.state_dict())  # by the same names
    assert not torch.equal(found.averaged[0], network.peer(1).eval()(images[:1]).logits[0])
    assert found.ensemble.shape == (N, C)


def test_the_average_follows_the_weights_without_learning() -> None:
    """It takes min(1 - 1 / (t + 1), decay) of itself, no gradient, and rests in evaluation."""
    network = method(config()).network.train()
    name = "backbone.stem.0.weight"
    mean = network.network.state_dict()[name].clone()
    for step in range(15):
        with torch.no_grad():
            network.network.state_dict()[name].add_(1.0)
        decay = min(1 - 1 / (step + 1), 0.9)
        mean = decay * mean + (1 - decay) * network.network.state_dict()[name]
        output = network(torch.randn(N * M, 1, 32, 32))
    torch.testing.assert_close(network.average.state_dict()[name], mean)
    output.logits.sum().backward()
    assert all(parameter.grad is None for parameter in network.average.parameters())
    assert not output.averaged.requires_grad
    before = copy.deepcopy(network.average.state_dict())
    network.eval()(torch.randn(N * M, 1, 32, 32))
    after = network.average.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def output() -> PeerOutput:
    """Float64 logits of two images and three peers that want a gradient."""
    generator = torch.Generator().manual_seed(1)

    def draw(rows: int) -> Tensor:
        drawn = torch.randn(rows, C, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    return PeerOutput(
        logits=draw(N * M), features=draw(N * M), ensemble=draw(N), averaged=draw(N * M)
    )


def test_the_loss_is_that_of_the_paper() -> None:
    """Terms equal a loop over peers, and no gradient flows into either teacher by them."""
    settings, t = config().objective, 3.0
    objective = PeerCollaborativeObjective(settings, context()).eval()
    objective._progress.steps.fill_(3)  # of 24; the ramp ends at 6
    found, w = output(), float(np.exp(-5 * (1 - 3 / 6) ** 2))
    labels = torch.tensor([1, 1, 1, 3, 3, 3])

    def kl(teacher: Tensor, student: Tensor) -> Tensor:
        target = teacher.detach().div(t).softmax(1)
        divergence = functional.kl_div(student.div(t).log_softmax(1), target, reduction="batchmean")
        return t**2 * divergence

    expected = functional.cross_entropy(found.ensemble, labels[::M])
    for i in range(M):
        own = found.logits[i::M]
        expected = expected + functional.cross_entropy(own, labels[i::M])
        expected = expected + w * kl(found.ensemble, own)
        others = [kl(found.averaged[j::M], own) for j in range(M) if j != i]
        expected = expected + w * torch.stack(others).mean()
    terms = objective(found, TargetBatch(labels=labels))
    torch.testing.assert_close(total_loss(terms), expected)
    inputs = (found.logits, found.ensemble)
    wanted, given = (
        torch.autograd.grad(loss, inputs, retain_graph=True)
        for loss in (expected, total_loss(terms))
    )
    torch.testing.assert_close(given, wanted)


def test_the_ramp_goes_by_the_share_of_the_run() -> None:
    """exp(-5) at the start, 1 from the share on, and counted over calls in training."""
    shares = torch.tensor([0.0, 0.125, 0.25, 0.9])
    expected = torch.tensor([np.exp(-5), np.exp(-1.25), 1.0, 1.0], dtype=torch.float32)
    torch.testing.assert_close(ramp_weight(shares, 0.25), expected)
    assert ramp_weight(shares[:1], 0.0).item() == 1
    objective = PeerCollaborativeObjective(config().objective, context(total_steps=8))
    targets = TargetBatch(labels=torch.zeros(N * M, dtype=torch.int64))
    ramps = [objective(output(), targets)["ramp"].item() for _ in range(4)]
    assert ramps == pytest.approx([np.exp(-5), np.exp(-1.25), 1.0, 1.0])


def run(
    folder: Path, report: Callable[[int, int, Mapping[str, float]], None] | None = None
) -> FitResult:
    """Train the peers on noise."""
    settings = config()

    def read(rows: np.ndarray, views: np.ndarray) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(ROWS, M, 1, 32, 32, generator=generator)
        return images[torch.from_numpy(rows), torch.from_numpy(views)]

    def fetch(rows: np.ndarray, views: np.ndarray) -> TargetBatch:
        return TargetBatch(labels=torch.from_numpy(rows % C))

    order = BatchOrder(
        rows=np.arange(ROWS, dtype=np.int64), batch_size=6, views=M, seed=0, views_per_image=M
    )
    device = torch.device("cpu")
    dataset = BatchDataset(read, fetch)
    return fit_stages(
        method(settings), dataset, order, settings, folder, device=device, report=report
    )


def test_a_stopped_run_keeps_the_same_peer(tmp_path: Path) -> None:
    """Average, ramp and peers go on where they were: the same bits as without a stop."""
    whole = run(tmp_path / "whole")
    assert isinstance(whole.model, Student)
    assert whole.steps == 24

    def stop(step: int, total: int, values: Mapping[str, float]) -> None:
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop)
    rest = run(tmp_path / "stopped")
    assert rest.resumed_from == 8
    for first, second in zip(
        whole.model.state_dict().values(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)


def test_what_does_not_fit_is_refused() -> None:
    """A stage that is not there, views that are not one a peer, mixed images, added terms."""
    with pytest.raises(ConfigError, match=r"must be a module of .*'blocks\.2'.*got 'layer4'"):
        method(config("layer4"))
    with pytest.raises(ValueError, match=r"views_per_image must be the number of peers \(3\)"):
        config(views_per_image=2)
    with pytest.raises(ConfigError, match="cannot be added to 'peer_collaborative'"):
        method(config(auxiliary=[{"name": "online_subclass"}]))
    teacher = {"name": "t", "builder": "torchvision:resnet18", "classes": ["a/0"]}
    project = {
        "workspace": "w",
        "data": {"source": "glyphs"},
        "teachers": [teacher],
        "views": {"count": 3, "mix": {"kind": "mixup"}},
        "student": config().model_dump(mode="json"),
    }
    with pytest.raises(ValueError, match=r"views\.mix does not fit"):
        Project.model_validate(project)
