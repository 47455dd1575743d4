"""Which stages of the pipeline a run takes: all of them, one, or one and all after it."""

from __future__ import annotations

from typing import Literal

from storage_schemas.errors import ConfigError

Stage = Literal["specialists", "label", "verify", "train", "evaluate", "report"]

STAGES: tuple[Stage, ...] = ("specialists", "label", "verify", "train", "evaluate", "report")
OF_TEACHERS: tuple[Stage, ...] = ("specialists", "label", "verify")
REPEATABLE: tuple[Stage, ...] = ("train", "evaluate", "report")


def select_stages(
    only: Stage | None = None,
    from_stage: Stage | None = None,
    teacher: str | None = None,
    again: bool = False,
) -> tuple[Stage, ...]:
    """Return the stages of a run, in order.

    `again` is for stages whose products may be made anew. Labels are not among them: they are a
    function of weights and recipe, so a sound label written again is the same label, and a damaged
    one is found by `verify` and written again by `label`. A specialist is not either: its weights
    name its stores.

    Args:
        only: This stage alone.
        from_stage: This stage and all after it.
        teacher: Whose specialist, labels and check alone are wanted.
        again: Do the chosen stages again although they are up to date.

    Raises:
        ConfigError: If the wishes contradict each other; lists every problem.
    """
    stages = STAGES if from_stage is None else STAGES[STAGES.index(from_stage) :]
    stages = stages if only is None else (only,)
    problems = []
    if only is not None and from_stage is not None:
        problems.append(f"--only {only} and --from {from_stage} exclude each other; give one")
    if teacher is not None and not set(stages) & set(OF_TEACHERS):
        problems.append(
            f"--teacher {teacher} has no effect on {', '.join(stages)}: these take all teachers "
            f"(it narrows {', '.join(OF_TEACHERS)})"
        )
    fixed = [stage for stage in stages if stage not in REPEATABLE]
    if again and fixed:
        problems.append(
            f"--again is for {', '.join(REPEATABLE)}, got {', '.join(fixed)}: sound labels would "
            "be written to the same bytes. To label from the start, remove the store's folder; for "
            "damaged shards run `concentrate verify --depth full`, then `concentrate label`"
        )
    if problems:
        raise ConfigError("run", problems)
    return stages
