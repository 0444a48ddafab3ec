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
from pydantic import BaseModel, Field, ValidationError, model_validator

from merit.config_studies import Studies
from merit.errors import MeritError
from merit.settings import Fraction, PositiveFloat, PositiveInt, Settings

PARAMS_FILE = Path("params.yaml")
EXPERIMENTS_DIR = Path("experiments")

Component = Literal["vision", "projector", "decoder"]
Level = Literal["default", "full"]  # how much is run: `studies` of params.yaml
Reading = Literal["within", "between"]  # of conflict-2; see merit.core.partition.conflict_groups
# what a branch's budget counts when branches are averaged; see merit.core.merge.average
MergeWeights = Literal["tokens", "loss_tokens", "samples", "uniform"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator in use accepts
Axes = Annotated[int, Field(ge=1, le=10)]


# --- data -----------------------------------------------------------------------------------


class MiniWorldData(Settings):
    """The generated visual world (merit.data.world)."""

    source: Literal["mini_world"]
    seed: int
    units: Literal["tasks", "sources"] = "tasks"  # 136 tasks, or 176 sources that include them
    size_spread: PositiveFloat = 0.6  # standard deviation of the units' log sizes
    num_examples: PositiveInt  # fine-tuning examples over all tasks
    num_images: PositiveInt  # distinct images behind them; tasks share images, as in Vision-FLAN
    num_conversations: PositiveInt  # multi-turn conversations of the base's instruction tuning
    # of the 32 skills, those that the base has not seen; see merit.data.world.conversations
    num_new_skills: Annotated[int, Field(ge=0, le=16)] = 6
    num_recaptions: Annotated[int, Field(ge=0)] = 0  # further images, of the base's stage 1.5
    num_questions: PositiveInt  # test questions a benchmark
    num_validation_questions: PositiveInt


class MiniTextData(Settings):
    """The generated text world (merit.data.text)."""

    source: Literal["mini_text"]
    seed: int
    num_examples: PositiveInt  # fine-tuning examples over all tasks
    num_recall: PositiveInt  # paragraphs that are looked up in themselves, read by the base first
    num_documents: PositiveInt  # plain text that the base is pre-trained on
    num_conversations: PositiveInt  # the base's few questions and answers
    num_questions: PositiveInt  # test questions a benchmark
    num_validation_questions: PositiveInt


DataSettings = Annotated[MiniWorldData | MiniTextData, Field(discriminator="source")]


# --- base -----------------------------------------------------------------------------------

VISION_SIZES = (
    *("vision_hidden_size", "vision_intermediate_size", "vision_depth", "vision_num_heads"),
    "patch_size",
)


class Architecture(Settings):
    """Sizes of a model built from scratch; every other field keeps the real model's value.

    With the vision part's sizes (all of them) a Qwen2.5-VL, without any a Qwen2 text model.
    """

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    vision_hidden_size: PositiveInt | None = None
    vision_intermediate_size: PositiveInt | None = None
    vision_depth: PositiveInt | None = None
    vision_num_heads: PositiveInt | None = None
    patch_size: PositiveInt | None = None
    initializer_range: PositiveFloat

    @property
    def has_vision(self) -> bool:
        return self.vision_depth is not None

    @model_validator(mode="after")
    def _whole_vision_part(self) -> Architecture:
        sizes = {name: getattr(self, name) for name in VISION_SIZES}
        missing = [name for name, size in sizes.items() if size is None]
        if 0 < len(missing) < len(sizes):
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in missing)} missing: give all sizes of the "
                "vision part, or none of them for a text model"
            )
        return self


class Optimizer(Settings):
    """An optimiser with a warm-up and a decay; used by a base phase and by every branch alike.

    `sgd` has no momentum (table 18); `betas` are AdamW's alone. `muon` is torch's Muon on matrices
    and AdamW on what else there is: a small base built from scratch needs half the steps.
    """

    algorithm: Literal["adamw", "sgd", "muon"] = "adamw"
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
    data: str  # what the data stage wrote: "labels", "captions", "corpus", "conversations", ...
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
    """What all methods but the base share: which seeds are run, and at which level of work.

    `seeds` are run with `studies: default` in params.yaml, `full_seeds` (the same ones where none
    are given) with `studies: full`. A method with `when: full` exists at that level only.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)] = [1]
    full_seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    when: Level = "default"

    def seeds_at(self, level: Level) -> list[int]:
        """The seeds that are run at this level."""
        return self.full_seeds if level == "full" and self.full_seeds is not None else self.seeds

    @model_validator(mode="after")
    def _full_holds_default(self) -> Method:
        missing = sorted(set(self.seeds) - set(self.seeds_at("full")))
        if missing:
            # otherwise switching to the full level would throw runs away
            raise ValueError(f"`full_seeds` must hold all of `seeds`; {missing} are missing")
        return self


class TrainedMethod(Method):
    """A method that trains branches, each for `epochs` passes over its group's examples."""

    epochs: PositiveFloat = 1.0


class BaseMethod(Settings):
    """theta0 itself; nothing is trained."""

    partition: Literal["base"]


class JointMethod(TrainedMethod):
    """One group that holds every task."""

    partition: Literal["joint"]


class RandomMethod(TrainedMethod):
    """Random balanced groups; the seed draws the groups, too."""

    partition: Literal["random"]
    groups: PositiveInt


class SoupMethod(TrainedMethod):
    """Joint runs that differ in data order only, averaged uniformly: `members` times the budget."""

    partition: Literal["soup"]
    members: Annotated[int, Field(ge=2)]


class MeritMethod(TrainedMethod):
    """2^axes groups from recursive median splits along the top PCA axes of the cosine matrix."""

    partition: Literal["merit"]
    axes: Axes


class RawpcaMethod(TrainedMethod):
    """MERIT's splits along the PCA axes of the raw gradients' Gram matrix (table 20)."""

    partition: Literal["rawpca"]
    axes: Axes


class KmeansMethod(TrainedMethod):
    """K-means on the gradients' directions (table 10); the seed draws its starts, too."""

    partition: Literal["kmeans"]
    groups: Annotated[int, Field(ge=2)]


class ConflictMethod(TrainedMethod):
    """Two groups, greedily from the most conflicting pair of tasks, in one of two readings."""

    partition: Literal["conflict"]
    reading: Reading = "within"


class ShrunkMethod(Method):
    """theta0 + alpha (joint - theta0), alpha such that the distance from theta0 is `match`'s.

    The control of METHOD 3b (WiSE-FT interpolation); it trains nothing.
    """

    partition: Literal["shrunk"]
    source: str  # a joint method
    match: str  # the method whose displacement is matched, seed by seed


AnyMethod = Annotated[
    BaseMethod
    | JointMethod
    | RandomMethod
    | SoupMethod
    | MeritMethod
    | RawpcaMethod
    | KmeansMethod
    | ConflictMethod
    | ShrunkMethod,
    Field(discriminator="partition"),
]


# --- evaluation, report -----------------------------------------------------------------------


class Evaluation(Settings):
    """Which benchmarks (records in eval.benchmarks), and how answers are generated."""

    benchmarks: Annotated[list[str], Field(min_length=1)]
    batch_size: PositiveInt = 64
    max_new_tokens: PositiveInt = 64


class Tuning(Settings):
    """The grid in which `merit tune` looks for merge-ready settings, on the validation split."""

    learning_rate: Annotated[list[PositiveFloat], Field(min_length=1)]
    batch_size: Annotated[list[PositiveInt], Field(min_length=1)]
    num_random: PositiveInt = 2  # draws of the random split at every point


class Report(Settings):
    """What the report stage writes, and which of the paper's tables stands beside it."""

    title: str
    paper_table: str  # file stem in reports/paper/
    paper_build: str | None = None  # which of that table's models, where it has several
    curves: list[str] = []  # methods whose training curves are drawn
    partition: str | None = None  # the method whose groups order the heat map and the PCA scatter


class Experiment(Settings):
    """One experiments/<name>.yaml."""

    name: str
    data: DataSettings
    base: Base
    gradients: Gradients
    training: Training
    merge_weights: MergeWeights = "tokens"
    methods: Annotated[dict[str, AnyMethod], Field(min_length=1)]
    evaluation: Evaluation
    report: Report
    tuning: Tuning | None = None
    studies: Studies = Studies()

    @model_validator(mode="after")
    def _methods_exist(self) -> Experiment:
        if not select(self, "default").methods:
            raise ValueError("methods: all are `when: full`; at least one must run by default")
        for name, method in self.methods.items():
            if isinstance(method, ShrunkMethod):
                self._check_shrunk(name, method)
        for name in [
            *self.report.curves,
            *([self.report.partition] if self.report.partition else []),
        ]:
            if name not in self.methods:
                raise ValueError(f"report: no method is called {name!r}")
            if name not in select(self, "default").methods:
                raise ValueError(
                    f"report: {name!r} is `when: full`; name a method that runs by default, too"
                )
        return self

    def _check_shrunk(self, name: str, method: ShrunkMethod) -> None:
        """Its source and match exist wherever it does, seed by seed."""
        for key in ("source", "match"):
            other_name = getattr(method, key)
            if other_name not in self.methods:
                raise ValueError(f"methods.{name}.{key}: no method is called {other_name!r}")
            levels: tuple[Level, ...] = ("full",) if method.when == "full" else ("default", "full")
            for level in levels:
                other = select(self, level).methods.get(other_name)
                if other is None:
                    raise ValueError(
                        f"methods.{name}.{key}: {other_name!r} is `when: full`; "
                        f"{name!r} must be, too"
                    )
                wanted = method.seeds_at(level)
                missing = sorted(set(wanted) - set(getattr(other, "seeds", [])))
                if missing:
                    field = "seeds" if wanted is method.seeds else "full_seeds"
                    where = "" if level == "default" else " with `studies: full`"
                    raise ValueError(
                        f"methods.{name}.{field}: {missing} are not seeds of {other_name!r}{where}"
                    )
        if not isinstance(self.methods[method.source], JointMethod):
            raise ValueError(f"methods.{name}.source: {method.source!r} is not a joint method")


def select(experiment: Experiment, level: Level) -> Experiment:
    """The experiment as `studies: <level>` in params.yaml runs it.

    "default" leaves out the methods with `when: full`; "full" has all, with their `full_seeds` as
    `seeds`. Whatever runs at the default level is part of the full one.
    """
    methods = {
        name: method.model_copy(update={"seeds": method.seeds_at(level)})
        if isinstance(method, Method)
        else method
        for name, method in experiment.methods.items()
        if level == "full" or getattr(method, "when", "default") == "default"
    }
    return experiment.model_copy(update={"methods": methods})


class Tracking(Settings):
    """Where MLflow keeps its runs: a SQLite file, or a server's address."""

    uri: str = "sqlite:///mlflow.db"


class Params(Settings):
    """params.yaml: what the pipeline as a whole runs."""

    experiments: Annotated[list[str], Field(min_length=1)]
    studies: Level = "default"  # "full": every method, seed and study
    workers: PositiveInt = 2  # branches trained side by side by `make repro`
    tracking: Tracking = Tracking()


# --- reading ----------------------------------------------------------------------------------


def load_params(path: Path = PARAMS_FILE) -> Params:
    """params.yaml, checked. Raises MeritError that names the file and the key."""
    return _load(path, Params)


def load_experiment(name: str, folder: Path = EXPERIMENTS_DIR) -> Experiment:
    """experiments/<name>.yaml, checked, as the params.yaml beside `folder` asks for it (`select`).

    Without a params.yaml, at the default level. Raises MeritError that names the file and the key.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise MeritError(f"{path}: no such experiment.{_nearest(name, known)}")
    experiment = _load(path, Experiment)
    if experiment.name != name:
        raise MeritError(
            f"{path}: key `name`: found {experiment.name!r}, the file is called {name!r}"
        )
    params = folder.parent / PARAMS_FILE
    return select(experiment, load_params(params).studies if params.is_file() else "default")


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
    place = location[:-1]  # where other keys are known
    if location[0:1] == ["methods"]:
        # pydantic adds a tag, the method's kind: no key of the file, but it tells the known keys
        place = [part for i, part in enumerate(place) if i != 1]
        del location[2:3]
    elif location[0:1] == ["data"]:
        del location[1:2]  # likewise, the data's source
    key = ".".join(location) or "(top level)"
    if entry["type"] == "extra_forbidden":
        return f"unknown key `{key}`.{_nearest(location[-1], _fields_at(model, place))}"
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
        # a union's tag picks one of its models; a list index or a mapping's key picks none
        tagged = [candidate for candidate in candidates if part in _tags(candidate)]
        candidates = following or tagged or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _tags(model: Any) -> set[str]:
    """Values of the model's fields that can have one value only: what a tagged union goes by."""
    choices = [
        get_args(field.annotation)
        for field in model.model_fields.values()
        if get_origin(field.annotation) is Literal
    ]
    return {values[0] for values in choices if len(values) == 1}


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, list, dict, types.UnionType):
        return [model for inner in get_args(annotation) for model in _models_in(inner)]
    return []
