"""What a network takes, and how it is trained."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.config.base import Fraction, PositiveInt, Settings


class InputConfig(Settings):
    """What a network takes: side in pixels, channels, and the normalisation of [0, 1] values."""

    size: int = Field(224, ge=8, le=2048)
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @model_validator(mode="before")
    @classmethod
    def _gray_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("channels") == 1:
            return {"mean": (0.5,), "std": (0.25,)} | value
        return value

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> InputConfig:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"{name} must have one value per channel ({self.channels}), got {len(values)}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self


class AdamWConfig(Settings):
    """AdamW (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)


class SGDConfig(Settings):
    """SGD with Nesterov momentum."""

    name: Literal["sgd"]
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    momentum: Fraction = 0.9
    nesterov: bool = True


class ScheduleConfig(Settings):
    """Learning rate over the steps of a run: linear warm-up, then the named shape."""

    name: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup: Fraction = Field(0.05, description="share of all steps spent rising to the peak")
    final: Fraction = Field(0.0, description="last learning rate as a share of the peak")


class TrainingConfig(Settings):
    """How one network is trained; the same settings drive specialists, student and control."""

    # Settings that came after the first runs: a run that does not use one keeps its fingerprint.
    left_out_unless_set: ClassVar[tuple[str, ...]] = ("compile",)

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 256
    optimizer: Annotated[AdamWConfig | SGDConfig, Field(discriminator="name")] = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema_decay: float | None = Field(None, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on a GPU that has it, float32 elsewhere"
    )
    compile: bool = Field(
        False,
        description="torch.compile of network and loss: a minute or more at the start for faster "
        "steps; needs a C++ compiler, or Triton on a GPU",
    )
    seed: int = Field(0, ge=0, lt=2**32)
    checkpoint_every_steps: PositiveInt = 200
    keep_checkpoints: PositiveInt = 2
    log_every_steps: PositiveInt = 10

    @model_serializer(mode="wrap")
    def _without_unused_settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if v or k not in self.left_out_unless_set}
