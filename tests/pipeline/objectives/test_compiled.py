"""Objectives under torch.compile, as `compile: true` runs them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipeline.objectives.base import StudentOutput, total_loss


def leaf(output: StudentOutput) -> StudentOutput:
    """An output whose logits want a gradient."""
    return dataclasses.replace(output, logits=output.logits.detach().requires_grad_())


@pytest.mark.service
def test_every_objective_can_be_compiled(case) -> None:
    """The compiler's graph of an objective gives its terms and gradients, step after step."""
    for eager, traced in zip(case.stages(), case.stages(), strict=True):
        compiled = torch.compile(traced[0].objective, backend="aot_eager")
        for seed in range(2):
            found = []
            for (stage, network), objective in ((eager, eager[0].objective), (traced, compiled)):
                torch.manual_seed(seed)
                output = leaf(case.output(stage, network))
                terms = objective(output, case.batch.targets)
                total_loss(terms).backward()
                found.append((terms, output.logits.grad))
            torch.testing.assert_close(*found)
