"""The loop itself on two ranks, without torchrun: what they share and what is their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IN_GROUP = """
    import hashlib, importlib.util, os, pathlib, sys
    import torch, torch.distributed as dist
    from torch import nn
    spec = importlib.util.spec_from_file_location("test_fit", {file!r})
    fit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fit)

    class Scaled(nn.Module):
        needs = frozenset()
        def __init__(self):
            super().__init__()
            self.inner, self.scale = fit.make_stage().objective, nn.Parameter(torch.ones(()))
            self.forced = self.inner.forced
        def forward(self, output, targets):
            (loss,) = self.inner(output, targets).values()
            return {{"task_loss": loss * self.scale.exp() - self.scale}}

    from pipeline.config import OnlineSubclassTerm
    from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch
    from pipeline.objectives.online_subclass import SubclassTerm

    points = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 2])
    context = LabelContext(
        num_classes=4, vertical_of=torch.zeros(4), supports=(), feature_dim=4
    )

    def subclass(mine):
        term = SubclassTerm(OnlineSubclassTerm(name="online_subclass", bank=8), context)
        for rows in (points, points.flip(0)):  # the second finds partners in the bank
            output = StudentOutput(logits=rows[mine], features=rows[mine])
            terms = term(output, TargetBatch(labels=labels[mine]))
        return terms, term.bank_points

    alone, bank = subclass(slice(None))
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method="file://{folder}/store", rank=rank, world_size=2)
    masks = []

    from pipeline.objectives.targets import batch_mean
    from pipeline.training.ranks import mean_over_ranks
    mean = batch_mean(torch.tensor(3.0 + 3 * rank), torch.tensor(1 + 3 * rank))
    assert float(mean_over_ranks({{"loss": mean}})["loss"]) == fit.pytest.approx((3 + 6) / (1 + 4))
    assert float(batch_mean(torch.tensor(0.0), torch.tensor(0))) == 0

    terms, shared = subclass(slice(0, 2) if rank == 0 else slice(2, 7))
    found = mean_over_ranks(terms)["subclass_loss"]
    assert float(found) == fit.pytest.approx(float(alone["subclass_loss"]))
    assert torch.equal(shared, bank)

    def train(name, stop=None):
        def report(step, total, values):
            if step == stop:
                raise KeyboardInterrupt
        torch.manual_seed(1)
        model, objective = fit.TinyStudent(), Scaled()
        model.dropout.register_forward_hook(lambda m, i, o: masks.append((o == 0).tolist()))
        rows = fit.np.arange(60, dtype=fit.np.int64)
        order = fit.BatchOrder(
            rows=rows, batch_size=10, views=2, seed=3, rank=rank, world_size=2
        )
        config = fit.TrainingConfig(checkpoint_every_steps=4, log_every_steps=2)
        stage = fit.Stage(name="student", objective=objective, epochs=3)
        data = fit.BatchDataset(fit.read_images, fit.fetch_targets)
        fit.fit(
            model, stage, data, order, config, pathlib.Path("{folder}", name),
            device=torch.device("cpu"), report=report,
        )
        tensors = [p.detach() for p in (*model.parameters(), *objective.parameters())]
        assert float(objective.scale.detach()) != 1.0
        return hashlib.sha256(torch.cat([t.flatten() for t in tensors]).numpy()).hexdigest()

    whole = train("whole")
    try:
        train("stopped", stop=11)
    except KeyboardInterrupt:
        pass
    print(whole, train("stopped"), hashlib.sha256(str(masks).encode()).hexdigest())
"""


@pytest.mark.slow
def test_ranks_agree_and_resume_exactly(tmp_path):
    """Two ranks with dropout and an objective that learns end with the same weights, bit by bit.

    A resume with the same number of ranks does too. Their dropout masks differ. A mean counts the
    rows of both, however unevenly those that count are spread. Partners of a row (Online Subclass
    KD) are looked for among the rows of both, and remembered alike.
    """
    file = str(Path(__file__).with_name("test_fit.py"))
    script = textwrap.dedent(IN_GROUP.format(file=file, folder=tmp_path))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    (whole, resumed, masks), (other_whole, other_resumed, other_masks) = (
        output.split() for output, _ in outputs
    )
    assert whole == resumed == other_whole == other_resumed
    assert masks != other_masks
