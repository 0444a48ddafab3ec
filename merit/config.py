"""Typed settings: one YAML per experiment, and params.yaml for the pipeline as a whole.

Unknown keys, wrong types and contradictions are refused with the file, the key and, where one
is close, the key that was probably meant.
"""

from __future__ import annotations

import difflib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from merit.errors import MeritError

PARAMS_FILE = Path("params.yaml")
EXPERIMENTS_DIR = Path("experiments")

Component = Literal["vision", "projector", "decoder"]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of every settings block: immutable, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# --- data -----------------------------------------------------------------------------------


class MiniWorldData(Settings):
    """The generated visual world (merit.data.world)."""

    source: Literal["mini_world"]
    seed: int
    num_examples: PositiveInt  # fine-tuning examples over all tasks
    num_images: PositiveInt  # distinct images behind them; tasks share images, as in Vision-FLAN
    num_conversations: PositiveInt  # multi-turn conversations of the base's instruction tuning
    num_questions: PositiveInt  # test questions a benchmark
    num_validation_questions: PositiveInt


DataSettings = MiniWorldData


# --- base -----------------------------------------------------------------------------------


class Architecture(Settings):
    """Sizes of a Qwen2.5-VL built from scratch; every other field keeps the real model's value."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    vision_hidden_size: PositiveInt
    vision_intermediate_size: PositiveInt
    vision_depth: PositiveInt
    vision_num_heads: PositiveInt
    patch_size: PositiveInt
    initializer_range: PositiveFloat


class Optimizer(Settings):
    """AdamW with a warm-up and a decay; used by a base phase and by every branch alike."""

    learning_rate: PositiveFloat
    batch_size: PositiveInt
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    betas: tuple[float, float] = (0.9, 0.999)

    @model_validator(mode="before")
    @classmethod
    def _betas_from_list(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("betas"), list):
            values = {**values, "betas": tuple(values["betas"])}
        return values


class Phase(Settings):
    """One phase of building the base: which data, which components learn, for how long."""

    name: str
    data: str  # a split that the data stage wrote: "labels", "captions", "conversations"
    trainable: list[Component]
    num_steps: PositiveInt
    optimizer: Optimizer


class Base(Settings):
    """theta0: built from scratch by phases, or loaded from a checkpoint folder."""

    seed: int = 0
    architecture: Architecture | None = None
    checkpoint: str | None = None
    phases: list[Phase] = []

    @model_validator(mode="after")
    def _one_origin(self) -> Base:
        if (self.architecture is None) == (self.checkpoint is None):
            raise ValueError("give exactly one of `architecture` (build) and `checkpoint` (load)")
        return self


# --- gradients and training -------------------------------------------------------------------


class Gradients(Settings):
    """Calibration of the mean task gradients (METHOD 2.1)."""

    num_examples: PositiveInt = 200  # at most this many examples a task
    stride: PositiveInt = 5  # keep one gradient entry in `stride`
    batch_size: PositiveInt = 16
    seed: int = 0


class Training(Settings):
    """Fine-tuning of one branch; the same for every branch, but for joint training's batch size."""

    trainable: list[Component]
    optimizer: Optimizer
    joint_batch_size: PositiveInt | None = None  # the paper searches it for joint training only


# --- methods ----------------------------------------------------------------------------------


class Method(Settings):
    """What all methods share: the seeds that are run."""

    seeds: Annotated[list[int], Field(min_length=1)] = [1]


class BaseMethod(Settings):
    """theta0 itself; nothing is trained."""

    partition: Literal["base"]


class JointMethod(Method):
    """One group that holds every task."""

    partition: Literal["joint"]
    epochs: PositiveFloat = 1.0


class RandomMethod(Method):
    """Random balanced groups; the seed draws the groups, too."""

    partition: Literal["random"]
    groups: PositiveInt
    epochs: PositiveFloat = 1.0


class SoupMethod(Method):
    """Joint runs that differ in data order only, averaged uniformly: `members` times the budget."""

    partition: Literal["soup"]
    members: Annotated[int, Field(ge=2)]
    epochs: PositiveFloat = 1.0


class MeritMethod(Method):
    """2^axes groups from recursive median splits along the top PCA axes of the cosine matrix."""

    partition: Literal["merit"]
    axes: Annotated[int, Field(ge=1, le=10)]
    epochs: PositiveFloat = 1.0


class ShrunkMethod(Method):
    """theta0 + alpha (joint - theta0), alpha such that the distance from theta0 is `match`'s.

    The control of METHOD 3b (WiSE-FT interpolation); it trains nothing.
    """

    partition: Literal["shrunk"]
    source: str  # a joint method
    match: str  # the method whose displacement is matched, seed by seed


AnyMethod = Annotated[
    BaseMethod | JointMethod | RandomMethod | SoupMethod | MeritMethod | ShrunkMethod,
    Field(discriminator="partition"),
]


# --- evaluation, report -----------------------------------------------------------------------


class Evaluation(Settings):
    """Which benchmarks (records in eval.benchmarks), and how answers are generated."""

    benchmarks: Annotated[list[str], Field(min_length=1)]
    batch_size: PositiveInt = 64
    max_new_tokens: PositiveInt = 64


class Tuning(Settings):
    """The grid in which `merit tune` looks for joint-1ep's settings, on the validation split."""

    learning_rate: Annotated[list[PositiveFloat], Field(min_length=1)]
    batch_size: Annotated[list[PositiveInt], Field(min_length=1)]


class Report(Settings):
    """What the report stage writes, and which of the paper's tables stands beside it."""

    title: str
    paper_table: str  # file stem in reports/paper/
    curves: list[str] = []  # methods whose training curves are drawn
    partition: str | None = None  # the method whose groups order the heat map and the PCA scatter


class Experiment(Settings):
    """One experiments/<name>.yaml."""

    name: str
    data: DataSettings
    base: Base
    gradients: Gradients
    training: Training
    methods: Annotated[dict[str, AnyMethod], Field(min_length=1)]
    evaluation: Evaluation
    report: Report
    tuning: Tuning | None = None

    @model_validator(mode="after")
    def _methods_exist(self) -> Experiment:
        for name, method in self.methods.items():
            if isinstance(method, ShrunkMethod):
                for key in ("source", "match"):
                    other = getattr(method, key)
                    if other not in self.methods:
                        raise ValueError(f"methods.{name}.{key}: no method is called {other!r}")
                    missing = set(method.seeds) - set(getattr(self.methods[other], "seeds", []))
                    if missing:
                        raise ValueError(
                            f"methods.{name}.seeds: {sorted(missing)} are not seeds of {other!r}"
                        )
                if not isinstance(self.methods[method.source], JointMethod):
                    raise ValueError(
                        f"methods.{name}.source: {method.source!r} is not a joint method"
                    )
        for name in [
            *self.report.curves,
            *([self.report.partition] if self.report.partition else []),
        ]:
            if name not in self.methods:
                raise ValueError(f"report: no method is called {name!r}")
        return self


class Tracking(Settings):
    """Where MLflow keeps its runs: a SQLite file, or a server's address."""

    uri: str = "sqlite:///mlflow.db"


class Params(Settings):
    """params.yaml: what the pipeline as a whole runs."""

    experiments: Annotated[list[str], Field(min_length=1)]
    workers: PositiveInt = 2  # branches trained side by side by `make repro`
    tracking: Tracking = Tracking()


# --- reading ----------------------------------------------------------------------------------


def load_params(path: Path = PARAMS_FILE) -> Params:
    """params.yaml, checked. Raises MeritError that names the file and the key."""
    return _load(path, Params)


def load_experiment(name: str, folder: Path = EXPERIMENTS_DIR) -> Experiment:
    """experiments/<name>.yaml, checked. Raises MeritError that names the file and the key."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise MeritError(f"{path}: no such experiment.{_nearest(name, known)}")
    experiment = _load(path, Experiment)
    if experiment.name != name:
        raise MeritError(
            f"{path}: key `name`: found {experiment.name!r}, the file is called {name!r}"
        )
    return experiment


def _load(path: Path, model: type[Any]) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found; run from the repository's root") from None
    except yaml.YAMLError as error:
        raise MeritError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise MeritError(f"{path}: expected keys and values, found {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{path}: {_explain(entry, model)}" for entry in error.errors()]
        raise MeritError("\n".join(lines)) from None


def _explain(entry: Any, model: type[BaseModel]) -> str:
    """One sentence for one pydantic error."""
    location = [str(part) for part in entry["loc"]]
    if location[0:1] == ["methods"]:
        del location[2:3]  # pydantic's tag of the method's kind, which is no key of the file
    key = ".".join(location) or "(top level)"
    if entry["type"] == "extra_forbidden":
        return f"unknown key `{key}`.{_nearest(location[-1], _fields_at(model, location[:-1]))}"
    if entry["type"] == "missing":
        return f"key `{key}` is missing"
    if entry["type"] == "value_error":
        prefix = f"key `{key}`: " if location else ""
        return prefix + str(entry["ctx"]["error"])
    return f"key `{key}`: found {entry['input']!r}: {entry['msg']}"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f" Did you mean `{close[0]}`?"
    return f" Known here: {', '.join(known)}." if known else ""


def _fields_at(model: Any, location: list[str]) -> list[str]:
    """Field names of the settings block at `location`; [] where the path leaves the models."""
    candidates = [model]
    for part in location:
        following: list[Any] = []
        for candidate in candidates:
            if part in candidate.model_fields:
                following += _models_in(candidate.model_fields[part].annotation)
        # a list index, a mapping's key or a union's tag stays at the models already found
        candidates = following or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, list, dict, types.UnionType):
        return [model for inner in get_args(annotation) for model in _models_in(inner)]
    return []
