"""What every objective promises, in every stage of its method as a run puts it together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from pipeline.config import ObjectiveConfig
from pipeline.models.student import Student
from pipeline.numerics.fused_classifier import _BLOCK_LOGITS
from pipeline.objectives import METHODS, OBJECTIVES, Stage
from pipeline.objectives.base import StudentOutput, SumsOverRows, TargetBatch, total_loss
from pipeline.training.loss_terms import FusedLossTerms, LossTerms
from storage_schemas.errors import TrainingError

SETTINGS = get_args(get_args(ObjectiveConfig)[0])
# Where gradients are stopped at what a loss also depends on, or reversed on their way back.
NOT_OF_FINITE_DIFFERENCES = {
    "meal adversarial",
    "online_subclass of logits",
    "online_subclass probability",
}
REMEDIES = {"soft": "concentrate label", "features": "concentrate label", "labels": "class folders"}


def at_rest(stage: Stage, output: StudentOutput, targets: TargetBatch) -> Mapping[str, Tensor]:
    """The terms for an output, outside training: no step is counted, nothing is remembered."""
    torch.manual_seed(5)
    terms: Mapping[str, Tensor] = stage.objective.eval()(output, targets)
    return terms


def test_every_objective_has_a_case(case_names) -> None:
    """Whoever registers an objective or a method adds a case, and settings for it."""
    registered = {*OBJECTIVES, *METHODS}
    assert {name.partition(" ")[0] for name in case_names} == registered
    assert {get_args(found.model_fields["name"].annotation)[0] for found in SETTINGS} == registered
    assert not OBJECTIVES.keys() & METHODS.keys()


def test_settings_tell_what_their_stages_take(case) -> None:
    """Stores are opened for all needs, at the temperature of the loss; epochs are shared out."""
    stages = [stage for stage, _ in case.stages()]
    settings = case.settings
    needs = frozenset().union(*(stage.objective.needs for stage in stages))
    assert needs - {"labels"} <= settings.reads <= {"soft", "features"}
    assert not (settings.hides_labels and "labels" in needs)
    assert settings.label_temperature == getattr(settings, "temperature", 1.0)
    assert sum(stage.epochs for stage in stages) == 4
    assert min(stage.epochs for stage in stages) > 0


def test_terms_are_finite_scalars(case) -> None:
    """All terms are finite scalars, at least one is a loss, and no target is written to."""
    before = dataclasses.asdict(case.batch.targets)
    for stage, network in case.stages():
        terms = case.terms(stage, network)
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        assert any(name.endswith("_loss") for name in terms)
    assert_same(before, dataclasses.asdict(case.batch.targets))


def assert_same(first: Any, second: Any) -> None:
    """Two nested values of tensors have the same bits."""
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, Mapping):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    else:
        assert first == second


def test_loss_has_a_gradient_in_what_learns_alone(case) -> None:
    """It reaches all that the stage trains and all that the objective owns, and nothing else.

    So no weight is forgotten outside `parameters()`, and no teacher or average learns.
    """
    for stage, network in case.stages():
        loss = total_loss(case.terms(stage, network))
        named = {
            **{f"network.{name}": p for name, p in network.named_parameters() if p.requires_grad},
            **{f"objective.{name}": p for name, p in stage.objective.named_parameters()},
        }
        names = {parameter: name for name, parameter in named.items()}
        assert {names.get(leaf, "not registered") for leaf in leaves(loss)} == set(named)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in names)
        assert max(p.grad.abs().max() for p in network.parameters() if p.requires_grad) > 1e-4


def leaves(loss: Tensor) -> set[Tensor]:
    """Every tensor that a backward pass would give a gradient."""
    found, seen, queue = set(), set(), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= {node.variable} if hasattr(node, "variable") else set()
            queue += [parent for parent, _ in node.next_functions]
    return found


def test_gradient_is_that_of_finite_differences(case) -> None:
    """In the logits, in float64; of those left out, their own modules test the gradient."""
    if case.name in NOT_OF_FINITE_DIFFERENCES:
        pytest.skip("gradients are stopped or reversed on their way")
    for stage, network in case.stages():
        output = case.output(stage, network)
        logits = output.logits.double().requires_grad_()

        def loss(values: Tensor, stage: Stage = stage, output: StudentOutput = output) -> Tensor:
            found = dataclasses.replace(output, logits=values)
            return total_loss(at_rest(stage, found, case.batch.targets))

        (gradient,) = torch.autograd.grad(loss(logits), logits, allow_unused=True)
        if gradient is None:
            assert stage.objective.taps, "a stage that reads no logits reads blocks"
            continue
        assert gradient.abs().max() > 1e-4
        assert torch.autograd.gradcheck(loss, logits, fast_mode=True)


def test_same_seed_gives_the_same_bits(case) -> None:
    """Put together twice, as for a run and its resumption, all terms of a stage are the same."""
    for one, other in zip(case.stages(), case.stages(), strict=True):
        assert_same(case.terms(*one), case.terms(*other))


def test_state_round_trip(case) -> None:
    """After some steps of one, another of other weights goes on from its state with its bits."""
    for (stage, network), (fresh, other) in zip(case.stages(0), case.stages(1), strict=True):
        for _ in range(2):
            case.terms(stage, network)
        other.load_state_dict(network.state_dict())
        fresh.objective.load_state_dict(stage.objective.state_dict())
        for _ in range(2):
            assert_same(case.terms(stage, network), case.terms(fresh, other))


def test_each_missing_signal_is_refused(case) -> None:
    """A source without a signal, and a batch without it, are refused with what to do."""
    for stage, network in case.stages():
        needs = stage.objective.needs
        assert needs
        stage.check_signals(case.provides)
        for field in needs:
            with pytest.raises(TrainingError, match=rf"\['{field}'\] missing; .*{REMEDIES[field]}"):
                stage.check_signals(case.provides - {field})
            lacking = dataclasses.replace(case.batch.targets, **{field: None})
            with pytest.raises(TrainingError, match=rf"needs .*, got none: .*{REMEDIES[field]}"):
                case.terms(stage, network, lacking)


def test_what_is_not_needed_may_be_absent(case) -> None:
    """Without the fields that are not in `needs`, the terms are the same."""
    for stage, network in case.stages():
        output = case.output(stage, network)
        spare = dict.fromkeys({"labels", "soft", "features"} - stage.objective.needs)
        fewer = dataclasses.replace(case.batch.targets, **spare)
        assert_same(at_rest(stage, output, case.batch.targets), at_rest(stage, output, fewer))


def test_terms_over_rows_are_those_of_a_fused_classifier(case, monkeypatch) -> None:
    """Logits of two rows at a time give the terms and gradients of all at once; others refuse."""
    monkeypatch.setitem(_BLOCK_LOGITS, "cpu", 10)  # two rows of five classes
    for stage, network in case.stages():
        by_rows = isinstance(stage.objective, SumsOverRows) and isinstance(network, Student)
        assert by_rows or case.auxiliary or not case.settings.by_rows
        if not by_rows:
            with pytest.raises(TypeError, match="needs"):
                FusedLossTerms(network, stage.objective, "float32")
            continue
        found = []
        for kind in (LossTerms, FusedLossTerms):
            torch.manual_seed(5)
            terms = kind(network, stage.objective, "float32")(case.batch.images, case.batch.targets)
            network.zero_grad()
            total_loss(terms).backward()
            found.append((terms, {name: p.grad for name, p in network.named_parameters()}))
        torch.testing.assert_close(*found)


def test_half_precision_outputs(case) -> None:
    """An output in bfloat16, as under autocast, gives float32 terms near those of float32."""
    for stage, network in case.stages():
        half = cast(case.output(stage, network), torch.bfloat16)
        full = cast(half, torch.float32)
        terms = [at_rest(stage, output, case.batch.targets) for output in (half, full)]
        torch.testing.assert_close(*terms)


def cast(output: StudentOutput, dtype: torch.dtype) -> StudentOutput:
    """An output with all its tensors in another precision."""
    values = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    blocks = {name: block.to(dtype) for name, block in values.pop("blocks").items()}
    values = {name: value.to(dtype) for name, value in values.items()}
    return dataclasses.replace(output, blocks=blocks, **values)
