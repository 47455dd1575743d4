"""What every objective promises, in every stage of its method as a run puts it together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import ObjectiveConfig
from pipeline.data.loader import Batch
from pipeline.models.student import Student
from pipeline.numerics.fused_classifier import _BLOCK_LOGITS
from pipeline.objectives import METHODS, OBJECTIVES, MethodInputs, Stage, build_method
from pipeline.objectives.base import StudentOutput, SumsOverRows, TargetBatch, total_loss
from pipeline.training.loss_terms import FusedLossTerms, LossTerms
from storage_schemas.errors import TrainingError

SETTINGS = get_args(get_args(ObjectiveConfig)[0])
LAYERS = [
    {
        "block": "blocks.1",
        "features": "blocks_1.pca",
        "into": ["blocks.2.conv1", "blocks.2.shortcut.1"],
    },
    {"block": "blocks.2", "features": "blocks_2.pca", "into": ["head.fc"]},
]
CODEWORDS = {"student": "blocks.1", "feature": "blocks_1.codewords"}
BLOCK = {"student": "blocks.1", "feature": "blocks_1.channel_mean"}
# Name of an objective and what is told apart, then its settings (`auxiliary`: the student's).
CASES: dict[str, dict[str, Any]] = {
    "hard_labels": {},
    "hard_labels smoothed": {"label_smoothing": 0.1},
    "hard_labels and a term": {"auxiliary": [{"name": "online_subclass", "bank": 30}]},
    "multi_label": {},
    "soft_labels": {},
    "soft_labels T=2": {"temperature": 2.0, "tail": "bucket", "hard_weight": 0.5},
    "knowledge_concentration": {},
    "knowledge_concentration T=2": {
        "temperature": 2.0,
        "tail": "drop",
        "vertical_weight": 0.3,
        "hard_weight": 0.5,
    },
    "knowledge_concentration sigmoid": {"form": "sigmoid", "hard_weight": 0.5},
    "meal": {},
    "meal mean": {"teacher": "mean", "teachers": ["a", "twin"], "temperature": 2.0},
    "meal blocks": {"blocks": [BLOCK]},
    "meal adversarial": {"blocks": [BLOCK], "adversarial": {"classes": 2}},
    "balanced": {},
    "balanced later": {"balanced_from": 0.5, "hard_weight": 0.0},
    "online_subclass": {},
    "online_subclass of logits": {"representation": "logits", "partner": "random"},
    "online_subclass probability": {"form": "probability", "neighbours": 2, "bank": 30},
    "amalgamation": {"temperature": 2.0},
    "amalgamation by blocks": {"scores": "blocks"},
    "amalgamation hints": {"layers": LAYERS, "hint_weight": 0.7, "tail": "bucket"},
    "amalgamation layerwise": {"layers": LAYERS, "layerwise_share": 0.5, "hint_weight": 0.7},
    "compact": {"budget": {"default": 0.5, "blocks.1": 0.3}},
    "compact soft labels alone": {"soft_weight": 1.0, "per_block": False},
    "compact hard labels alone": {"soft_weight": 0.0, "resource": "parameters"},
    "peer_collaborative": {"stage": "blocks.2"},
    "sparse_representation": {"layers": [CODEWORDS]},
    "sparse_representation sigmoids": {
        "layers": [CODEWORDS],
        "place_scores": "sigmoids",
        "targets": "shuffled",
    },
}
# Where gradients are stopped at what a loss also depends on, or reversed on their way back.
NOT_OF_FINITE_DIFFERENCES = {
    "meal adversarial",
    "online_subclass of logits",
    "online_subclass probability",
}
REMEDIES = {"soft": "concentrate label", "features": "concentrate label", "labels": "class folders"}


class Case:
    """One case, put together as often as it is asked for, and its batch."""

    def __init__(
        self,
        name: str,
        small_student: Callable[..., MethodInputs],
        batch_of: Callable[..., Batch],
    ) -> None:
        objective = {"name": name.partition(" ")[0], **CASES[name]}
        student = {"auxiliary": objective.pop("auxiliary", ()), "objective": objective}
        self.auxiliary = bool(student["auxiliary"])
        self._inputs = lambda seed: small_student(student, seed)
        inputs = self._inputs(0)
        self.settings, self.provides = inputs.config.objective, inputs.signals.provides
        self.batch = batch_of(inputs.signals)

    def stages(self, seed: int = 0) -> Iterator[tuple[Stage, nn.Module]]:
        """Each stage and the network that it trains: none took a step, all that froze is frozen."""
        method = build_method(self._inputs(seed), "student")
        network = method.network
        for stage in method.stages:
            if isinstance(network, Student):
                network.tap(stage.objective.taps)
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name.startswith(stage.trains))
            yield stage, network.train()
            network = stage.finish(network)

    def terms(
        self, stage: Stage, network: nn.Module, targets: TargetBatch | None = None
    ) -> Mapping[str, Tensor]:
        """The terms of the batch, with the same dropout each time."""
        torch.manual_seed(5)
        terms = LossTerms(network, stage.objective, "float32")
        return terms(self.batch.images, self.batch.targets if targets is None else targets)

    def output(self, stage: Stage, network: nn.Module) -> StudentOutput:
        """What the network says of the batch, without a gradient."""
        forced = stage.objective.forced(self.batch.targets)
        with torch.no_grad():
            found: StudentOutput = network(self.batch.images, *([forced] if forced else []))
        return found


def at_rest(stage: Stage, output: StudentOutput, targets: TargetBatch) -> Mapping[str, Tensor]:
    """The terms for an output, outside training: no step is counted, nothing is remembered."""
    torch.manual_seed(5)
    terms: Mapping[str, Tensor] = stage.objective.eval()(output, targets)
    return terms


@pytest.fixture(params=CASES, scope="module")
def case(request, small_student, batch_of) -> Case:
    """Every case in turn; each test puts stages of its own together."""
    return Case(request.param, small_student, batch_of)


def test_every_objective_has_a_case() -> None:
    """Whoever registers an objective or a method adds a case, and settings for it."""
    registered = {*OBJECTIVES, *METHODS}
    assert {name.partition(" ")[0] for name in CASES} == registered
    assert {get_args(found.model_fields["name"].annotation)[0] for found in SETTINGS} == registered
    assert not OBJECTIVES.keys() & METHODS.keys()


def test_settings_tell_what_their_stages_take(case: Case) -> None:
    """Stores are opened for all needs, at the temperature of the loss; epochs are shared out."""
    stages = [stage for stage, _ in case.stages()]
    settings = case.settings
    needs = frozenset().union(*(stage.objective.needs for stage in stages))
    assert needs - {"labels"} <= settings.reads <= {"soft", "features"}
    assert not (settings.hides_labels and "labels" in needs)
    assert settings.label_temperature == getattr(settings, "temperature", 1.0)
    assert sum(stage.epochs for stage in stages) == 4
    assert min(stage.epochs for stage in stages) > 0


def test_terms_are_finite_scalars(case: Case) -> None:
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


def test_loss_has_a_gradient_in_what_learns_alone(case: Case) -> None:
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


@pytest.mark.parametrize(
    "case", [name for name in CASES if name not in NOT_OF_FINITE_DIFFERENCES], indirect=True
)
def test_gradient_is_that_of_finite_differences(case: Case) -> None:
    """In the logits, in float64; of those left out, their own modules test the gradient."""
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


def test_same_seed_gives_the_same_bits(case: Case) -> None:
    """Put together twice, as for a run and its resumption, all terms of a stage are the same."""
    for one, other in zip(case.stages(), case.stages(), strict=True):
        assert_same(case.terms(*one), case.terms(*other))


def test_state_round_trip(case: Case) -> None:
    """After some steps of one, another of other weights goes on from its state with its bits."""
    for (stage, network), (fresh, other) in zip(case.stages(0), case.stages(1), strict=True):
        for _ in range(2):
            case.terms(stage, network)
        other.load_state_dict(network.state_dict())
        fresh.objective.load_state_dict(stage.objective.state_dict())
        for _ in range(2):
            assert_same(case.terms(stage, network), case.terms(fresh, other))


def test_each_missing_signal_is_refused(case: Case) -> None:
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


def test_what_is_not_needed_may_be_absent(case: Case) -> None:
    """Without the fields that are not in `needs`, the terms are the same."""
    for stage, network in case.stages():
        output = case.output(stage, network)
        spare = dict.fromkeys({"labels", "soft", "features"} - stage.objective.needs)
        fewer = dataclasses.replace(case.batch.targets, **spare)
        assert_same(at_rest(stage, output, case.batch.targets), at_rest(stage, output, fewer))


def test_terms_over_rows_are_those_of_a_fused_classifier(case: Case, monkeypatch) -> None:
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


def test_half_precision_outputs(case: Case) -> None:
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
