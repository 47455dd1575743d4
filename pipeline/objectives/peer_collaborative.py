"""Peer Collaborative Learning: peers of one network teach each other; one of them is kept.

Wu, Gong, "Peer Collaborative Learning for Online Knowledge Distillation", AAAI 2021, arXiv
2006.04147. m peers share the early stages; each has its own last stage and classifier, and is
shown its own view of every image. Two teachers come out of them while they train: a classifier
over the features of all peers (ens), and the moving average of each peer (mean_j).

    CE(ens) + sum_i [ CE(p_i) + w T^2 KL(ens || p_i) + w mean_{j != i} T^2 KL(mean_j || p_i) ]
    w = exp(-5 (1 - e / E)^2) up to step e = E, then 1

In: these terms, with hard labels alone, and the network of peers (pipeline.models.peers). The ramp
goes by steps, not by epochs, and E is a share of the run: 80 of 300 epochs in the paper, a quarter
here. Kept is the average of peer 0, not the best of m on the test set. Left out: soft labels of
other teachers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import PeerCollaborative
from pipeline.objectives.base import (
    LabelContext,
    Objective,
    PeerOutput,
    StudentOutput,
    TargetBatch,
)
from pipeline.objectives.hard_labels import hard_label_loss
from pipeline.objectives.method import Method, MethodInputs, Stage
from pipeline.objectives.progress import Progress
from pipeline.objectives.targets import batch_mean, required_labels


class PeerCollaborativeObjective(Objective):
    """`task_loss` of the peers, `ensemble_task_loss`, `ensemble_loss`, `mean_loss`; metric `ramp`.

    Raises:
        ValueError: If the context has no steps, of which the ramp is a share.
    """

    def __init__(self, config: PeerCollaborative, context: LabelContext) -> None:
        super().__init__()
        self.needs = frozenset({"labels"})
        self._config = config
        self._progress = Progress(context.total_steps)

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms of (n * m) rows, m views of each image in turn.

        Raises:
            TrainingError: If there are no hard labels.
            TypeError: If the output is not that of peers.
        """
        config = self._config
        if not isinstance(output, PeerOutput):
            raise TypeError(f"peers must return a PeerOutput, got {type(output).__name__}")
        m = config.peers
        labels = required_labels(targets, config.name)
        smoothing = config.label_smoothing
        task = hard_label_loss(output.logits, targets, config.name, label_smoothing=smoothing)
        ensemble_task = hard_label_loss(
            output.ensemble,
            TargetBatch(labels=labels[::m]),
            config.name,
            label_smoothing=smoothing,
        )
        log_probs = _log_probs(output.logits, m, config.softening)
        ensemble = _log_probs(output.ensemble.detach(), 1, config.softening)
        means = _log_probs(output.averaged.detach(), m, config.softening)
        ramp = ramp_weight(self._progress(), config.ramp)
        scale = ramp * config.softening**2
        images = log_probs.new_tensor(float(len(log_probs)))
        from_ensemble = (ensemble.exp() * (ensemble - log_probs)).sum()
        from_means = _from_the_others(means, log_probs).sum()
        return {
            "task_loss": m * task,
            "ensemble_task_loss": ensemble_task,
            "ensemble_loss": config.ensemble_weight * scale * batch_mean(from_ensemble, images),
            "mean_loss": config.mean_weight * scale * batch_mean(from_means, images),
            "ramp": ramp,
        }


def ramp_weight(done: Tensor, ramp: float) -> Tensor:
    """Return () w after the () share `done` of the run; 1 from the share `ramp` on."""
    if ramp == 0:
        return torch.ones_like(done)
    return torch.exp(-5 * (1 - (done / ramp).clamp(max=1)).square())


def _log_probs(logits: Tensor, peers: int, temperature: float) -> Tensor:
    """Return (n, peers, C) log probabilities of (n * peers, C) logits."""
    logits = logits.float() if logits.itemsize < 4 else logits
    return logits.div(temperature).log_softmax(dim=1).reshape(-1, peers, logits.shape[1])


def _from_the_others(means: Tensor, log_probs: Tensor) -> Tensor:
    """Return (n, m): of each peer, the mean KL from the mean teachers of the other peers."""
    others = means.shape[1] - 1
    probs = means.exp()
    negative_entropy = (probs * means).sum(dim=2)
    entropy_of_others = (negative_entropy.sum(dim=1, keepdim=True) - negative_entropy) / others
    probs_of_others = (probs.sum(dim=1, keepdim=True) - probs) / others
    return entropy_of_others - (probs_of_others * log_probs).sum(dim=2)


def peer_collaborative_method(config: PeerCollaborative, inputs: MethodInputs) -> Method:
    """Return the peers around the student, their one stage, and which of them is kept.

    Raises:
        ConfigError: If the backbone has no module of the name of the stage.
    """
    # Networks import what they return from this package.
    from pipeline.models.builders import build_backbone
    from pipeline.models.peers import PeerStudent

    student = inputs.config
    network = PeerStudent(
        inputs.student,
        lambda: build_backbone(student.builder, student.builder_args)[0],
        peers=config.peers,
        stage=config.stage,
        num_classes=inputs.context.num_classes,
        decay=config.decay,
    )
    stage = Stage(
        name="peers",
        objective=PeerCollaborativeObjective(config, inputs.context),
        epochs=student.epochs,
        trains=("network.",),
    )

    def kept(trained: torch.nn.Module) -> torch.nn.Module:
        assert isinstance(trained, PeerStudent)
        return trained.peer()

    return Method(network=network, stages=(stage,), student=kept)
