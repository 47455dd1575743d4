"""A teacher of 1,000 classes whose answers are as uncertain as those of a real one.

An MLP 64-256-1000 is trained with label smoothing on classes that lie in superclasses of Zipf
sizes, and answers views of random strength. What it is judged by is printed beside every figure
that depends on it: accuracy, mean and median p1, entropy, and the mass in the top ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 1_000
FEATURES = 64
SUPERCLASSES = 60
# Spread of superclasses, of classes in one, of samples in a class, and of the strongest view.
SPREAD = 1.0
WITHIN = 0.5
SAMPLE = 0.42
STRONGEST = 1.6
STEPS = 500
BATCH = 512
SMOOTHING = 0.02


@dataclass(frozen=True)
class Teacher:
    """A trained network and the classes it was trained on.

    Attributes:
        network: (B, 64) to (B, 1000) logits.
        prototypes: (1000, 64).
    """

    network: nn.Module
    prototypes: Tensor

    def samples(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (rows, 64) samples and their (rows,) classes."""
        labels = torch.randint(CLASSES, (rows,), generator=generator)
        noise = SAMPLE * torch.randn(rows, FEATURES, generator=generator)
        return self.prototypes[labels] + noise, labels

    def answers(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Return (rows, 1000) logits of one view of each sample."""
        with torch.no_grad():
            logits: Tensor = self.network(view_of(samples, generator))
        return logits


def view_of(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Return the samples with noise of a strength of their own."""
    strength = STRONGEST * torch.rand(len(samples), 1, generator=generator) ** 2
    return samples + strength * torch.randn(samples.shape, generator=generator)


def train_teacher(seed: int) -> Teacher:
    """Return a teacher; the same one for the same seed on the same machine."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 1 / torch.arange(1, SUPERCLASSES + 1, dtype=torch.float64)
    centres = SPREAD * torch.randn(SUPERCLASSES, FEATURES, generator=generator)
    of_class = torch.multinomial(sizes, CLASSES, replacement=True, generator=generator)
    within = WITHIN * torch.randn(CLASSES, FEATURES, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    teacher = Teacher(network, centres[of_class] + within)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for _ in range(STEPS):
        samples, labels = teacher.samples(BATCH, generator)
        logits = network(view_of(samples, generator))
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return teacher


def description(logits: Tensor, labels: Tensor) -> dict[str, float | dict[str, float]]:
    """Return what tells whether answers are like those of a real teacher."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    top = p.sort(dim=1, descending=True).values
    return {
        "top1": round(float((logits.argmax(dim=1) == labels).double().mean()), 4),
        "p1_mean": round(float(top[:, 0].mean()), 4),
        "p1_median": round(float(top[:, 0].median()), 4),
        "entropy_mean": round(float(-(p * log_p).sum(dim=1).mean()), 4),
        "mass_in_top": {str(k): round(float(top[:, :k].sum(dim=1).mean()), 4) for k in (4, 16, 64)},
    }
