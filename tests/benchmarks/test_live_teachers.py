"""The live teachers that the store is measured against say what a store would hold."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def live_teachers(monkeypatch):
    """The class of `benchmarks/epoch_speed.py`, whose folder is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("epoch_speed", FOLDER / "epoch_speed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.LiveTeachers
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_each_row_is_answered_by_its_own_teacher(live_teachers):
    """Ids are global, masses those of the full softmax; a row without a teacher has none."""
    torch.manual_seed(0)
    supports = [torch.tensor([0, 2, 4, 6]), torch.tensor([1, 3, 5])]
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(12, len(s))).eval() for s in supports]
    routes = np.zeros((8, 2), bool)
    for index, support in enumerate(supports):
        routes[support.numpy(), index] = True
    labels, images = torch.tensor([3, 0, -1, 6, 1]), torch.randn(5, 3, 2, 2)
    soft = (
        live_teachers(networks, supports, routes, k=2, temperature=2.0).targets(images, labels).soft
    )
    assert soft.teacher.tolist() == [[1, 0, -1, 0, 1]]
    for row, teacher in enumerate(soft.teacher[0].tolist()):
        if teacher < 0:
            assert (soft.ids[0, row] == -1).all()
            continue
        full = (networks[teacher](images[row : row + 1])[0] / 2).log_softmax(dim=0)
        order = full.argsort(descending=True)
        assert soft.ids[0, row].tolist() == supports[teacher][order[:2]].tolist()
        assert torch.allclose(soft.log_probs[0, row], full[order[:2]], atol=1e-5)
        assert torch.allclose(soft.log_tail[0, row], full[order[2:]].logsumexp(0), atol=1e-4)
