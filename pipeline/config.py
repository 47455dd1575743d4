"""The project file: one YAML file as frozen pydantic models.

In: every setting of every stage with its bounds and default, overrides by dotted key, and a
loader that reports all problems at once. Left out: looking at disks and data (the stages do
that) and any import of torch, so that the command line starts fast.

Relative paths are relative to the project file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from storage_schemas.errors import ConfigError
from storage_schemas.view_recipe import ViewRecipe

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of all models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


# --- data ---------------------------------------------------------------------------------------


class GlyphData(Settings):
    """The built-in data set: code points rendered from fonts (DESIGN section 8)."""

    source: Literal["glyphs"]
    verticals: tuple[str, ...] | None = None
    fonts: tuple[str, ...] = Field((), description="extra font files, as globs")
    min_faces: int = Field(6, ge=2, description="faces that must hold a code point")
    size: int = Field(32, ge=8, le=512, description="pixels per side")
    test_faces: tuple[str, ...] = Field(
        ("DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic"),
        description="faces held out for testing, by file stem",
    )


class ImageFolderData(Settings):
    """A folder of class folders, or of vertical/class folders."""

    source: Literal["image_folder"]
    root: Path
    vertical_depth: Literal[0, 1] = Field(0, description="1: vertical/class/image folders")
    test_root: Path | None = Field(None, description="same layout; else a share of root is held")
    test_fraction: Fraction = 0.1
    verticals: Mapping[str, tuple[str, ...]] | None = Field(
        None, description="vertical -> class names, where the folders do not say"
    )


class TorchvisionData(Settings):
    """A classification data set of torchvision that is already on disk; nothing is downloaded."""

    source: Literal["torchvision"]
    dataset: str
    root: Path
    args: dict[str, Any] = Field(default_factory=dict)
    test_fraction: Fraction = Field(0.1, description="used when the data set has no test split")
    verticals: Mapping[str, tuple[str, ...]] | None = None


class PythonData(Settings):
    """A callable `module:function` that returns a `pipeline.data.Source`."""

    source: Literal["python"]
    callable: str
    args: dict[str, Any] = Field(default_factory=dict)
    verticals: Mapping[str, tuple[str, ...]] | None = None


DataConfig = Annotated[
    GlyphData | ImageFolderData | TorchvisionData | PythonData, Field(discriminator="source")
]

# --- networks -----------------------------------------------------------------------------------


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

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 256
    optimizer: Annotated[AdamWConfig | SGDConfig, Field(discriminator="name")] = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema_decay: float | None = Field(None, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on a GPU that has it, float32 elsewhere"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    checkpoint_every_steps: PositiveInt = 200
    keep_checkpoints: PositiveInt = 2
    log_every_steps: PositiveInt = 10


class SpecialistConfig(TrainingConfig):
    """How a teacher without weights is trained on its own rows (hard labels)."""

    label_smoothing: Fraction = 0.0


class VerticalClasses(Settings):
    """A teacher that names all classes of one vertical, in label space order."""

    vertical: str


class TeacherConfig(Settings):
    """One specialist: how it is built, loaded, fed, and what its outputs mean."""

    name: Name
    builder: str = Field(description="torchvision:NAME, timm:NAME or python:module:function")
    builder_args: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = Field(None, description="null: train it first on its own rows")
    classes: VerticalClasses | Path | tuple[str, ...] = Field(
        description="{vertical: NAME}, a text file with one class a line, or a list"
    )
    routing: Literal["own", "all"] = Field("own", description="which rows it labels")
    input: InputConfig = InputConfig()
    batch_size: PositiveInt = 256
    training: SpecialistConfig | None = Field(None, description="overrides `specialists`")


# --- labels -------------------------------------------------------------------------------------


class LabelConfig(Settings):
    """What is kept of each teacher output."""

    k: int = Field(16, ge=1, le=1024)
    activation: Literal["softmax", "sigmoid"] = "softmax"
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), min_length=1)
    precision: Literal["compact", "exact"] = "compact"
    shard_rows: PositiveInt | None = Field(None, description="null: by the number of rows")
    chunk_rows: PositiveInt | None = None

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> LabelConfig:
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures must differ, got {list(self.temperatures)}")
        if self.shard_rows and self.chunk_rows and self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"shard_rows must be a multiple of chunk_rows, got {self.shard_rows} and "
                f"{self.chunk_rows}"
            )
        return self


# --- student ------------------------------------------------------------------------------------


class LinearHead(Settings):
    """One dense layer from the pooled features to all classes."""

    name: Literal["linear"] = "linear"


class StructurallyConnectedHead(Settings):
    """FC(s1)-SC(s2, x) of Knowledge Concentration: one shared layer, one block per vertical."""

    name: Literal["structurally_connected"]
    hidden: PositiveInt = Field(512, description="s1: width of the shared layer")
    block: PositiveInt = Field(128, description="s2: width each vertical's logits see")
    shared: int = Field(0, ge=0, description="x: how many of the s2 units all verticals share")
    self_paced: Literal["none", "vertical", "class"] = Field(
        "none", description="learned scale on each vertical's L2-normalised logits"
    )
    self_paced_init: float = Field(1.0, gt=0, description="multiple of sqrt(N_v) at the start")

    @model_validator(mode="after")
    def _shared_units_fit(self) -> StructurallyConnectedHead:
        if self.shared > self.block:
            raise ValueError(
                f"shared must be at most block ({self.block} units), got {self.shared}"
            )
        return self


class HardLabels(Settings):
    """The control: cross-entropy with the human labels."""

    name: Literal["hard_labels"]
    label_smoothing: Fraction = 0.0


class SoftLabels(Settings):
    """Sparse KL to the teachers' soft labels over all classes."""

    name: Literal["soft_labels"]
    temperature: float = Field(1.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    hard_weight: float = Field(0.0, ge=0, description="weight of an added hard-label loss")


class KnowledgeConcentration(Settings):
    """Knowledge Concentration (Gao et al. 2017), in either of two forms."""

    name: Literal["knowledge_concentration"]
    form: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = Field(1.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    vertical_weight: float = Field(
        1.0, ge=0, description="softmax form: weight of the loss that picks the vertical"
    )
    hard_weight: float = Field(0.0, ge=0)


ObjectiveConfig = Annotated[
    HardLabels | SoftLabels | KnowledgeConcentration, Field(discriminator="name")
]


class StudentConfig(TrainingConfig):
    """The one network that learns all classes, and how."""

    name: Name = "student"
    builder: str = "torchvision:resnet18"
    builder_args: dict[str, Any] = Field(default_factory=dict)
    input: InputConfig = InputConfig()
    head: Annotated[LinearHead | StructurallyConnectedHead, Field(discriminator="name")] = (
        LinearHead()
    )
    objective: ObjectiveConfig = SoftLabels(name="soft_labels")
    views_per_image: PositiveInt = Field(1, description="views drawn from one decoded image")
    control: bool = Field(True, description="also train the same network on hard labels")
    memory_budget_mb: int = Field(
        2048, ge=1, description="stored labels held in memory; above it, shards are streamed"
    )


class RuntimeConfig(Settings):
    """Where and how wide the work runs; never changes a result, so it is in no fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int = Field(0, ge=0, description="loader processes; 0: in the process itself")


class ReportConfig(Settings):
    """What the HTML report shows."""

    samples: int = Field(12, ge=0, le=200, description="images shown with their top-5")


class Project(Settings):
    """A whole project file."""

    workspace: Path
    data: DataConfig
    views: ViewRecipe = ViewRecipe()
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    specialists: SpecialistConfig = SpecialistConfig()
    labels: LabelConfig = LabelConfig()
    student: StudentConfig = StudentConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Project:
        names = [teacher.name for teacher in self.teachers]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"teachers: names must differ, got {doubles} more than once")
        objective = self.student.objective
        temperature = getattr(objective, "temperature", None)
        if temperature is not None and temperature not in self.labels.temperatures:
            raise ValueError(
                f"student.objective.temperature must be one of labels.temperatures "
                f"{list(self.labels.temperatures)}, got {temperature}"
            )
        sigmoid_loss = getattr(objective, "form", None) == "sigmoid"
        sigmoid_labels = self.labels.activation == "sigmoid"
        if objective.name != "hard_labels" and sigmoid_loss != sigmoid_labels:
            raise ValueError(
                f"labels.activation {self.labels.activation!r} does not fit the objective "
                f"{objective.name!r}: the sigmoid form of knowledge_concentration, and only it, "
                "trains on sigmoid labels"
            )
        if self.student.views_per_image > self.views.count:
            raise ValueError(
                f"student.views_per_image must be at most views.count ({self.views.count}), "
                f"got {self.student.views_per_image}"
            )
        return self

    def teacher(self, name: str) -> TeacherConfig:
        """Return one teacher by name.

        Raises:
            ConfigError: If the project has no such teacher.
        """
        for teacher in self.teachers:
            if teacher.name == name:
                return teacher
        known = [teacher.name for teacher in self.teachers]
        raise ConfigError("teachers", [f"name must be one of {known}, got {name!r}"])


# --- loading ------------------------------------------------------------------------------------


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the keys known where an unknown one was found, for the error message."""
    current: Any = model
    for part in location:
        annotation = None
        if isinstance(current, type) and issubclass(current, BaseModel):
            info = current.model_fields.get(str(part))
            annotation = info.annotation if info else None
        current = _model_in(annotation, part) or current
    if isinstance(current, type) and issubclass(current, BaseModel):
        return sorted(current.model_fields)
    return []


def _model_in(annotation: Any, tag: str | int) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument, tag)
        if found is not None:
            return found
    return None


def _sentence(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        known = _known_keys(Project, error["loc"][:-1])
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key{hint}" + (f" (known: {', '.join(known)})" if known else "")
    if error["type"] == "missing":
        return f"{where}: required, and missing"
    message = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] == "value_error" else f", got {error.get('input')!r}"
    return f"{where}: {message}{got}" if where else f"{message}{got}"


def _apply_override(tree: dict[str, Any], override: str) -> str | None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        return f"--set must be key.path=value, got {override!r}"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return f"--set {key}: value is not YAML ({error})"
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            match = [x for x in node if isinstance(x, dict) and x.get("name") == part]
            if not match:
                return f"--set {key}: no entry named {part!r}"
            node = match[0]
        elif isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            return f"--set {key}: {part!r} is below a plain value"
    if not isinstance(node, dict):
        return f"--set {key}: {last!r} is not below a mapping"
    node[last] = value
    return None


def _absolute(path: Path, base: Path) -> Path:
    path = path.expanduser()
    return (path if path.is_absolute() else base / path).resolve()


def _resolve_paths(project: Project, base: Path) -> Project:
    data = project.data
    if isinstance(data, ImageFolderData | TorchvisionData):
        data = data.model_copy(update={"root": _absolute(data.root, base)})
    if isinstance(data, ImageFolderData) and data.test_root is not None:
        data = data.model_copy(update={"test_root": _absolute(data.test_root, base)})
    if isinstance(data, GlyphData):
        fonts = tuple(str(_absolute(Path(pattern), base)) for pattern in data.fonts)
        data = data.model_copy(update={"fonts": fonts})
    teachers = []
    for teacher in project.teachers:
        update: dict[str, Any] = {}
        if teacher.weights is not None:
            update["weights"] = _absolute(teacher.weights, base)
        if isinstance(teacher.classes, Path):
            update["classes"] = _absolute(teacher.classes, base)
        teachers.append(teacher.model_copy(update=update))
    return project.model_copy(
        update={
            "workspace": _absolute(project.workspace, base),
            "data": data,
            "teachers": tuple(teachers),
        }
    )


def load_project(path: Path | str, overrides: Sequence[str] = ()) -> Project:
    """Read a project file, apply `key.path=value` overrides, and check it.

    An entry of a list is addressed by its `name`: `teachers.birds.weights=new.safetensors`.

    Args:
        path: The YAML file.
        overrides: Values are YAML; later ones win.

    Raises:
        ConfigError: With every problem found, for a missing file, bad YAML, unknown keys and
            values out of bounds.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file; `concentrate init` writes one"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(str(path), [f"is not YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [f"must be a mapping, got {type(tree).__name__}"])
    problems = [p for p in (_apply_override(tree, override) for override in overrides) if p]
    if problems:
        raise ConfigError(str(path), problems)
    try:
        project = Project.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(str(path), [_sentence(e) for e in error.errors()]) from None
    return _resolve_paths(project, path.resolve().parent)
