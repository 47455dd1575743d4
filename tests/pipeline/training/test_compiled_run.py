"""`compile: true`: a run whose network and loss go through torch.compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import HardLabels, StudentConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.models.student import build_student
from pipeline.objectives import build_objective
from pipeline.objectives.base import LabelContext, TargetBatch
from pipeline.objectives.method import Stage
from pipeline.training.fit import fit
from storage_schemas.errors import TrainingError
from storage_schemas.label_space import LabelSpace

CLASSES = 5
SPACE = LabelSpace(classes=tuple(f"a/{number}" for number in range(CLASSES)))
IMAGES = torch.randn(60, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(folder, *, stop_at=None, fused=False, **settings):
    """Train for twelve steps, or until one; return all tensors of the network."""
    config = StudentConfig.model_validate(
        {
            "builder": "pipeline.models.backbones:glyph_resnet",  # batch norm and dropout
            "builder_args": {"width": 8},
            "input": {"size": 32, "channels": 1},
            "checkpoint_every_steps": 4,
            # Adam would make steps of roundings, which some gradients before batch norm are.
            "optimizer": {"name": "sgd", "lr": 0.01},
            **settings,
        }
    )
    torch.manual_seed(1)
    model = build_student(config, SPACE)
    context = LabelContext(
        num_classes=CLASSES, vertical_of=torch.zeros(CLASSES, dtype=torch.int64), supports=()
    )
    objective = build_objective(HardLabels(name="hard_labels"), context)

    def report(step, total, values):
        if step == stop_at:
            raise KeyboardInterrupt

    fit(
        model,
        Stage(name="student", objective=objective, epochs=2, fused_classifier=fused),
        BatchDataset(
            lambda rows, views: IMAGES[rows],
            lambda rows, views: TargetBatch(labels=torch.from_numpy(rows % CLASSES)),
        ),
        BatchOrder(rows=np.arange(60, dtype=np.int64), batch_size=10, views=1, seed=3),
        config,
        folder,
        device=torch.device("cpu"),
        report=report,
    )
    return model.state_dict()


@pytest.fixture
def fresh_compiler():
    """Nothing that was compiled before is used."""
    from torch._inductor.utils import fresh_cache

    torch.compiler.reset()
    with fresh_cache():
        yield
    torch.compiler.reset()


@pytest.mark.service
@pytest.mark.parametrize("fused", [False, True])
def test_a_compiled_run_gives_the_same_student(tmp_path, fresh_compiler, fused):
    """Up to roundings that of a run without, and the same bits when it is stopped and goes on."""
    import torch._inductor.config as inductor

    with inductor.patch(fallback_random=True):  # the same dropout masks
        eager = trained(tmp_path / "eager", fused=fused)
        whole = trained(tmp_path / "whole", fused=fused, compile=True)
        torch.testing.assert_close(whole, eager, rtol=1e-3, atol=1e-4)
        assert eager.keys() == whole.keys()
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", fused=fused, compile=True, stop_at=7)
        again = trained(tmp_path / "stopped", fused=fused, compile=True)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_missing_compiler_is_named(tmp_path, fresh_compiler):
    """Without a C++ compiler the run ends with what to do."""
    import torch._inductor.config as inductor

    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(TrainingError, match=r"compile: torch.compile failed .* compile: false"),
    ):
        trained(tmp_path, compile=True)
