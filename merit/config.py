"""Typed settings: one YAML an experiment, and params.yaml for the pipeline as a whole.

Everything that is run has a level: the default one, `full` (the default and more) or `tune`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator

from merit.config_data import JsonlData, PublicData
from merit.config_studies import Studies
from merit.errors import MeritError
from merit.settings import (
    Fraction,
    Level,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
    load_yaml,
    nearest,
)

PARAMS_FILE = Path("params.yaml")
EXPERIMENTS_DIR = Path("experiments")
MAIN = "main"  # what `base` calls the experiment's own base
REHEARSAL = "rehearsal"  # <name>-rehearsal: the experiment cut down (merit.rehearsal)

Rule = Literal["base", "joint", "random", "soup", "merit", "rawpca", "kmeans", "conflict", "shrunk"]
Reading = Literal["within", "between"]  # of conflict-2; see merit.core.partition.conflict_groups
# what a branch's budget counts when branches are averaged; see merit.core.merge.average
MergeWeights = Literal["tokens", "loss_tokens", "samples", "uniform"]
# what merged models are written in: every tensor as the base has it, or all in one type
MergeDtype = Literal["base", "float32", "bfloat16", "float16"]
Algorithm = Literal["adamw", "sgd", "muon"]
Axes = Annotated[int, Field(ge=1, le=10)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
# tagged, so that a mistake is told of the one that was meant; the tags are no keys of the file
SeedsByLevel = Annotated[
    Annotated[Seeds, Tag("(list)")] | Annotated[dict[Level, Seeds], Tag("(by level)")],
    Discriminator(lambda value: "(by level)" if isinstance(value, dict) else "(list)"),
]


# --- data -----------------------------------------------------------------------------------


class MiniWorldData(Settings):
    """The generated visual world (merit.mini.world)."""

    num_skills: ClassVar[int] = 32

    source: Literal["mini_world"]
    seed: int
    units: Literal["tasks", "sources"] = "tasks"  # 136 tasks, or 176 sources that include them
    size_spread: PositiveFloat = 0.6  # standard deviation of the units' log sizes
    num_examples: PositiveInt  # fine-tuning examples over all tasks
    num_images: PositiveInt  # distinct images behind them; tasks share images, as in Vision-FLAN
    num_conversations: PositiveInt  # multi-turn conversations of the base's instruction tuning
    # of the 32 skills, those that the base has not seen; see merit.mini.world.conversations
    num_new_skills: Annotated[int, Field(ge=0, le=16)] = 6
    num_recaptions: Annotated[int, Field(ge=0)] = 0  # further images, of the base's stage 1.5
    num_questions: PositiveInt  # test questions a benchmark
    num_validation_questions: PositiveInt


class MiniTextData(Settings):
    """The generated text world (merit.mini.text)."""

    source: Literal["mini_text"]
    seed: int
    num_examples: PositiveInt  # fine-tuning examples over all tasks
    num_recall: PositiveInt  # paragraphs that are looked up in themselves, read by the base first
    num_documents: PositiveInt  # plain text that the base is pre-trained on
    num_conversations: PositiveInt  # the base's few questions and answers
    num_questions: PositiveInt  # test questions a benchmark
    num_validation_questions: PositiveInt


DataSettings = Annotated[
    MiniWorldData | MiniTextData | PublicData | JsonlData, Field(discriminator="source")
]


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

    algorithm: Algorithm = "adamw"
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


COMPONENTS = ("vision", "projector", "decoder")


def _component_or_pattern(value: str) -> str:
    if value.isidentifier() and value not in COMPONENTS:
        raise ValueError(
            f"found {value!r}: neither a component nor a pattern.{nearest(value, COMPONENTS)}"
        )
    return value


# a component, or a regular expression that whole parameter names match
Trainable = Annotated[
    list[Annotated[str, AfterValidator(_component_or_pattern)]], Field(min_length=1)
]


class Phase(Settings):
    """One phase of building the base: which data, which components learn, for how long."""

    name: str
    data: str  # what the data stage wrote: "labels", "captions", "corpus", "conversations", ...
    trainable: Trainable
    num_steps: PositiveInt
    optimizer: Optimizer
    # how a step is computed: as in `training`
    precision: Literal["float32", "bfloat16"] = "float32"
    pack_tokens: PositiveInt | None = None
    gradient_checkpointing: bool = False
    workers: Annotated[int, Field(ge=0)] = 0


class Origin(Settings):
    """A finished model: a folder, or a repository of the hub at a commit."""

    checkpoint: str | None = None
    hub: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Origin:
        if (self.checkpoint is None) == (self.hub is None):
            raise ValueError("give either `checkpoint` or `hub`")
        check_revision(self.hub, self.revision)
        return self


class Assembly(Settings):
    """A Qwen2.5-VL of one's vision encoder, a Qwen2's language model and a fresh projector: where
    LLaVA's recipe begins.
    """

    vision: Origin
    decoder: Origin


def check_revision(hub: str | None, revision: str | None) -> None:
    if (hub is None) != (revision is None):
        raise ValueError("`hub` and `revision` go together: a name and the commit of it")


class Base(Settings):
    """theta0: built from scratch by phases, or taken from a folder or the hub, and then by phases.

    A model of the hub is named with its `revision`, a commit, so that it is the same one tomorrow.
    """

    seed: int = 0
    architecture: Architecture | None = None
    checkpoint: str | None = None
    hub: str | None = None
    revision: str | None = None
    assemble: Assembly | None = None
    phases: list[Phase] = []

    @model_validator(mode="after")
    def _one_origin(self) -> Base:
        origins = (self.architecture, self.checkpoint, self.hub, self.assemble)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("give exactly one of `architecture`, `checkpoint`, `hub`, `assemble`")
        check_revision(self.hub, self.revision)
        return self


class Runtime(Settings):
    """How theta0, and every model that comes from it, is held in memory and run.

    `stored` keeps the checkpoint's own type; trained parameters are float32 all the same. `auto`
    takes a GPU where there is one; `spread` cuts a model that only reads over all GPUs of the host.
    `varlen` is torch's variable-length flash attention, for packed rows on a GPU.
    """

    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    spread: bool = False
    attention: Literal["sdpa", "eager", "varlen", "flash_attention_2"] = "sdpa"


# --- encoding, gradients and training ---------------------------------------------------------


class Encoding(Settings):
    """How examples become token ids.

    `chat` writes the turns as the model's own chat template does, `plain` as prompt, line break,
    answer and end mark (a pretrained text model). `cache_images` keeps the frozen vision part's
    embeddings on disk: for miniatures, since a picture of 784 tokens takes 3 MB.
    """

    template: Literal["chat", "plain"] = "chat"
    cache_images: bool = False
    min_pixels: PositiveInt | None = None  # of an image as the model sees it; None: the processor's
    max_pixels: PositiveInt | None = None
    max_tokens: PositiveInt | None = None  # of an example, image tokens included
    on_long_example: Literal["error", "cut"] = "error"  # cut: answers from the end, never an image
    workers: PositiveInt = 1  # processes, each with a task of its own


class Gradients(Settings):
    """Calibration of the mean task gradients (docs/method.md 2) and what is kept of them."""

    num_examples: PositiveInt = 200  # at most this many examples a task
    representation: Literal["stride", "sketch"] = "stride"
    stride: PositiveInt = 5  # keep one gradient entry in `stride`, as the paper does
    # or as many signed sums, whatever the model's size; a prime, see docs/decisions.md
    sketch_size: PositiveInt = 65_537
    sketch_seed: Annotated[int, Field(ge=0)] = 0  # of the signs
    batch_size: PositiveInt = 16
    seed: int = 0


class Lora(Settings):
    """Low-rank adapters in place of full fine-tuning; branches merge as weight deltas B A."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = 128.0
    # whole module names: every linear map of the decoder, and none of the vision encoder
    targets: str = r"model\.(language_model\.)?layers\.\d+\.(self_attn|mlp)\.\w+_proj"


class Training(Settings):
    """Fine-tuning of one branch; the same for every branch, but for joint training's batch size.

    A step is `optimizer.batch_size` examples however it is computed: as one padded batch, or packed
    into rows of at most `pack_tokens` tokens, each a forward and backward pass of its own; its
    loss is the mean over its loss-bearing tokens. `bfloat16` computes in it and keeps trained
    parameters, gradients' sums and the optimiser's state in float32.
    """

    trainable: Trainable
    optimizer: Optimizer
    joint_batch_size: PositiveInt | None = None  # the paper searches it for joint training only
    precision: Literal["float32", "bfloat16"] = "float32"
    pack_tokens: PositiveInt | None = None
    gradient_checkpointing: bool = False  # of the decoder's layers
    lora: Lora | None = None
    checkpoint_minutes: PositiveFloat | None = None  # between two of a branch's checkpoints
    workers: Annotated[int, Field(ge=0)] = 0  # processes that read and resize images ahead


# --- methods ----------------------------------------------------------------------------------

# rule -> the keys that it needs, besides those that it may have
PARAMETERS: dict[Rule, tuple[str, ...]] = {
    "base": (),
    "joint": (),
    "random": ("groups",),
    "soup": ("members",),
    "merit": ("axes",),
    "rawpca": ("axes",),
    "kmeans": ("groups",),
    "conflict": (),
    "shrunk": ("source", "match"),
}


def optional_keys(rule: Rule) -> tuple[str, ...]:
    """What a method of this rule may have; only trained ones take epochs and an optimiser."""
    if rule == "base":
        return ()
    trained = () if rule == "shrunk" else ("epochs", "optimizer", "may_diverge")
    return ("seeds", "base", *trained, *(("reading",) if rule == "conflict" else ()))


class Method(Settings):
    """How tasks are assigned to branches (`partition`), and how the branches are trained.

    base: theta0 itself. joint: one group of all tasks. random: `groups` balanced groups, drawn by
    the seed. soup: `members` joint runs that differ in data order, averaged uniformly. merit:
    2^axes groups from median splits along the PCA axes of the cosine matrix. rawpca: the same along
    those of the raw gradients' Gram matrix (table 20). kmeans: on the gradients' directions, its
    starts drawn by the seed (table 10). conflict: two groups, greedily from the most conflicting
    pair of tasks, in one of two readings. shrunk: theta0 + alpha (source - theta0), alpha such that
    the distance from theta0 is `match`'s, seed by seed (the control; it trains nothing).

    `seeds` of a list are run at every level; `{default: [...], full: [...]}` says what the full
    level adds. `optimizer` overrides keys of `training.optimizer`; `base` names one of `bases`. A
    training that `may_diverge` leaves a result without a model where its loss is not finite.
    """

    partition: Rule
    seeds: SeedsByLevel = [1]
    epochs: PositiveFloat = 1.0
    groups: Annotated[int, Field(ge=2)] | None = None
    members: Annotated[int, Field(ge=2)] | None = None
    axes: Axes | None = None
    reading: Reading = "within"
    source: str | None = None
    match: str | None = None
    optimizer: dict[str, Any] = {}
    base: str = MAIN
    may_diverge: bool = False

    @model_validator(mode="after")
    def _rule_has_its_parameters(self) -> Method:
        needed = PARAMETERS[self.partition]
        known = ("partition", *needed, *optional_keys(self.partition))
        for name, field in type(self).model_fields.items():
            if name not in known and getattr(self, name) != field.default:
                raise ValueError(
                    f"`{name}` is no key of `partition: {self.partition}`."
                    f"{nearest(name, sorted(known))}"
                )
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is missing; `partition: {self.partition}` needs it")
        for level in get_args(Level):
            twice = sorted(seed for seed, n in Counter(self.seeds_at(level)).items() if n > 1)
            if twice:
                raise ValueError(
                    f"`seeds`: {twice} are listed twice; every level but `default` says what it "
                    "adds to that one"
                )
        return self

    @property
    def trained(self) -> bool:
        return self.partition not in ("base", "shrunk")

    @property
    def num_groups(self) -> int:
        """K: how many groups the tasks are split into; 1 of joint training and soups."""
        if self.partition == "conflict":
            return 2
        return 2**self.axes if self.axes else self.groups or 1

    def seeds_at(self, level: Level) -> list[int]:
        """The seeds that are run at this level, in the order of the YAML."""
        if isinstance(self.seeds, list):
            return self.seeds
        return [seed for name in included(level) for seed in self.seeds.get(name, [])]


class Sweep(Settings):
    """Methods again at other settings: every combination of what is listed, as further methods.

    A list that is left out stands for the experiment's own value. Such a method is called
    `<method>-<what differs>` (`joint-1ep-lr0.00025`), is no row of the main tables, and may
    diverge: finding out where is what a sweep is for.
    """

    level: Level = "default"
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds = [1]
    learning_rate: list[PositiveFloat] = []
    batch_size: list[PositiveInt] = []
    algorithm: Algorithm | None = None
    bases: Annotated[list[str], Field(min_length=1)] = [MAIN]


def included(level: Level) -> tuple[Level, ...]:
    """The levels that are run at `level`."""
    return ("default",) if level == "default" else ("default", level)


# --- evaluation, report -----------------------------------------------------------------------


class JudgeSettings(Settings):
    """A judge behind an OpenAI-compatible endpoint: who scores what matching cannot.

    `model` is the snapshot; `key_variable` names the environment variable that holds the key, null
    where the endpoint asks for none. `temperature` goes before VLMEvalKit's own, which for MM-Vet
    and MathVista rises with every retry. With `replay_only` nobody is asked: answers come from the
    record of an earlier run.
    """

    url: str  # up to and with /v1
    model: str
    temperature: Annotated[float, Field(ge=0)] | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    timeout: PositiveFloat = 60.0  # seconds
    num_parallel: PositiveInt = 4
    replay_only: bool = False


class Evaluation(Settings):
    """Which benchmarks (records in eval.benchmarks), and how answers are generated.

    `min_pixels` and `max_pixels` are what images are scaled to lie between; without them the
    checkpoint's own. `cache_images` encodes the images once for all models (`prompts`): for small
    experiments whose fine-tuning leaves the vision part as it is. A benchmark's record may have
    limits of its own. `check_files` refuses files of VLMEvalKit's whose MD5 it does not know.

    Of lm-eval's own tasks: `text_data` is a folder with their repositories as on the hub, null for
    the hub; `chat_template` whether their questions are put into the model's; `run_model_code`
    allows HumanEval, in a sandbox.
    """

    benchmarks: Annotated[list[str], Field(min_length=1)]
    batch_size: PositiveInt = 64
    max_new_tokens: PositiveInt = 64
    generator: Literal["transformers", "vllm"] = "transformers"
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    cache_images: bool = False
    check_files: bool = True
    judge: JudgeSettings | None = None
    text_data: str | None = None
    chat_template: bool = True
    run_model_code: bool = False
    max_questions: PositiveInt | None = None  # a benchmark (or subtask): a rehearsal's

    @model_validator(mode="after")
    def _pixels_are_a_range(self) -> Evaluation:
        low, high = self.min_pixels, self.max_pixels
        if (low is None) != (high is None) or (low and high and low > high):
            raise ValueError(f"`min_pixels` {low} and `max_pixels` {high}: give both, least first")
        if self.cache_images and self.generator == "vllm":
            raise ValueError("`cache_images` is for `generator: transformers`")
        return self


class Report(Settings):
    """What the report stage writes, and which of the paper's tables stands beside it."""

    title: str
    paper_table: str  # file stem in reports/paper/
    paper_build: str | None = None  # which of that table's models, where it has several
    curves: list[str] = []  # methods whose training curves are drawn
    partition: str | None = None  # the method whose groups order the heat map and the PCA scatter


class OtherBase(Settings):
    """Another theta0 of the same mixture: what differs in `data` and, by name, in base phases."""

    data: dict[str, Any] = {}
    phases: dict[str, dict[str, Any]] = {}


class Experiment(Settings):
    """One experiments/<name>.yaml."""

    name: str
    data: DataSettings
    base: Base
    bases: dict[str, OtherBase] = {}
    model: Runtime = Runtime()
    encoding: Encoding = Encoding()
    gradients: Gradients
    training: Training
    merge_weights: MergeWeights = "tokens"
    merge_dtype: MergeDtype = "base"
    methods: Annotated[dict[str, Method], Field(min_length=1)]
    sweeps: dict[str, Sweep] = {}
    evaluation: Evaluation
    report: Report
    studies: Studies = Studies()

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        for name, method in self.methods.items():
            self._check_method(name, method)
        shown = [self.report.partition] if self.report.partition else []
        for name in [*self.report.curves, *shown]:
            if name not in self.methods:
                raise ValueError(f"report: no method is called {name!r}")
            if not runs_at(self.methods[name], "default"):
                raise ValueError(
                    f"report: {name!r} has no seeds at the default level; give it some"
                )
        if not any(runs_at(method, "default") for method in self.methods.values()):
            raise ValueError("methods: none has seeds at the default level; at least one must")
        for name, sweep in self.sweeps.items():
            self._check_sweep(f"sweeps.{name}", sweep)
        for name in self.bases:
            if name in (MAIN, REHEARSAL) or not name.isidentifier():
                raise ValueError(
                    f"bases.{name}: letters, digits and _ only, and neither {MAIN!r}, which is the "
                    f"experiment's own, nor {REHEARSAL!r}"
                )
            other_base(self, name)
        return self

    def _check_method(self, name: str, method: Method) -> None:
        self._check_base(f"methods.{name}.base", method.base)
        overridden(self.training.optimizer, method.optimizer, f"methods.{name}.optimizer")
        if method.partition != "shrunk":
            return
        for key in ("source", "match"):
            other_name = getattr(method, key)
            if other_name not in self.methods:
                raise ValueError(f"methods.{name}.{key}: no method is called {other_name!r}")
            other = self.methods[other_name]
            for level in ("default", "full"):
                missing = sorted(set(method.seeds_at(level)) - set(other.seeds_at(level)))
                if missing or other.partition == "base":
                    where = "" if level == "default" else " at the full level"
                    raise ValueError(
                        f"methods.{name}.seeds: {missing} are not seeds of {other_name!r}{where}"
                    )
        assert method.source is not None
        if self.methods[method.source].partition != "joint":
            raise ValueError(f"methods.{name}.source: {method.source!r} is not a joint method")

    def _check_sweep(self, where: str, sweep: Sweep) -> None:
        for name in sweep.methods:
            if name not in self.methods:
                raise ValueError(f"{where}.methods: no method is called {name!r}")
            method = self.methods[name]
            if method.partition == "base":
                raise ValueError(f"{where}.methods: {name!r} is the base, which has no settings")
            if not runs_at(method, sweep.level):
                raise ValueError(
                    f"{where}.methods: {name!r} has no seeds at the {sweep.level} level; give it "
                    "some"
                )
            needed = [other for other in (method.source, method.match) if other]
            missing = [other for other in needed if other not in sweep.methods]
            if missing:
                raise ValueError(f"{where}.methods: {name!r} needs {missing[0]!r} there, too")
        for base in sweep.bases:
            self._check_base(f"{where}.bases", base)

    def _check_base(self, key: str, base: str) -> None:
        known = [MAIN, *self.bases]
        if base not in known:
            raise ValueError(f"{key}: no base is called {base!r}.{nearest(base, known)}")


def runs_at(method: Method, level: Level) -> bool:
    return method.partition == "base" or bool(method.seeds_at(level))


def overridden(optimizer: Optimizer, changes: Mapping[str, Any], key: str) -> Optimizer:
    """`optimizer` with some of its keys changed. Raises ValueError that names `key`."""
    try:
        return Optimizer.model_validate(optimizer.model_dump() | dict(changes))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        hint = nearest(field, list(Optimizer.model_fields))
        raise ValueError(f"{key}.{field}: {first['msg'].lower()}.{hint}") from None


def other_base(experiment: Experiment, name: str) -> Experiment:
    """The experiment with the data and the base of `bases.<name>`, itself called <name>-<base>.

    Raises ValueError where a key or a phase does not exist.
    """
    changes, where = experiment.bases[name], f"bases.{name}"
    phases = [
        phase.model_dump() | changes.phases.get(phase.name, {}) for phase in experiment.base.phases
    ]
    known = [phase.name for phase in experiment.base.phases]
    for phase in changes.phases:
        if phase not in known:
            raise ValueError(
                f"{where}.phases: no phase is called {phase!r}.{nearest(phase, known)}"
            )
    try:
        base = Base.model_validate(experiment.base.model_dump() | {"phases": phases})
        data = type(experiment.data).model_validate(experiment.data.model_dump() | changes.data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {field}: {first['msg']}") from None
    return experiment.model_copy(
        update={"name": f"{experiment.name}-{name}", "data": data, "base": base}
    )


class Tracking(Settings):
    """Where MLflow keeps its runs: a SQLite file, or a server's address."""

    uri: str = "sqlite:///mlflow.db"


# what `merit launch` says to sbatch itself, besides the keys of the block
OWN_SBATCH = ("array", "error", "job-name", "open-mode", "output", "partition", "signal", "time")


class Launch(Settings):
    """How `merit launch` trains branches (docs/machines.md); no result depends on it.

    `local` is processes on this host: a slot a branch, with GPUs of its own. `slurm` is a job a
    branch; what concerns Slurm alone stands below it.
    """

    backend: Literal["local", "slurm"] = "local"
    gpus_per_branch: Annotated[int, Field(ge=0)] = 1  # on a host without any, the CPU trains
    # branches side by side on this host; by default what its GPUs allow, without any `workers`
    slots: PositiveInt | None = None
    retries: Annotated[int, Field(ge=0)] = 20  # how often a branch that was stopped goes on
    minutes: PositiveInt = 24 * 60  # a Slurm job's time limit; then the branch goes on in another
    seconds_to_stop: PositiveInt = 300  # before the limit: what writing a checkpoint may take
    partition: str | None = None  # Slurm's, which has nothing to do with the partition of tasks
    sbatch: dict[str, str | int | bool] = {}  # further options: {account: x, cpus-per-task: 16}
    setup: list[str] = []  # shell lines before the command: `module load cuda`

    @model_validator(mode="after")
    def _own_options(self) -> Launch:
        for key in self.sbatch:
            if key.replace("_", "-").lstrip("-") in OWN_SBATCH:
                raise ValueError(f"`sbatch`: `{key}` is set by `merit launch`; take it out")
        if self.seconds_to_stop >= 60 * self.minutes:
            raise ValueError(
                f"`seconds_to_stop`: {self.seconds_to_stop} s before the end of {self.minutes} "
                "minutes is before the beginning; lower it or raise `minutes`"
            )
        return self


class Params(Settings):
    """params.yaml: what the pipeline as a whole runs."""

    experiments: Annotated[list[str], Field(min_length=1)]
    level: Level = "default"  # "full": every method, seed and study; "tune": the search of settings
    workers: PositiveInt = 2  # stages side by side in `make repro`
    launch: Launch = Launch()
    tracking: Tracking = Tracking()


# --- reading ----------------------------------------------------------------------------------


def load_params(path: Path = PARAMS_FILE) -> Params:
    """params.yaml, checked. Raises MeritError that names the file and the key."""
    return load_yaml(path, Params)


def load_experiment(name: str, folder: Path = EXPERIMENTS_DIR) -> Experiment:
    """experiments/<name>.yaml, checked, at the level of the params.yaml beside `folder`.

    <name>-<base> is the part of it that starts from one of its `bases`, <name>-rehearsal what
    merit.rehearsal makes of it. Without a params.yaml, at the default level. Raises MeritError that
    names the file and the key.
    """
    stem, _, base = name.partition("-")
    path = folder / f"{stem}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise MeritError(f"{path}: no such experiment.{nearest(name, known)}")
    experiment = load_yaml(path, Experiment)
    if experiment.name != stem:
        raise MeritError(
            f"{path}: key `name`: found {experiment.name!r}, the file is called {stem!r}"
        )
    if base == REHEARSAL:
        from merit.rehearsal import rehearsed

        return rehearsed(experiment)
    params = folder.parent / PARAMS_FILE
    level = load_params(params).level if params.is_file() else "default"
    if not base:
        return select(experiment, level)
    if base not in experiment.bases:
        raise MeritError(
            f"{path}: key `bases`: no base is called {base!r}.{nearest(base, [*experiment.bases])}"
        )
    return select(experiment, level, base)


def select(experiment: Experiment, level: Level, base: str = MAIN) -> Experiment:
    """What is run of the experiment at `level` from one of its bases.

    Methods without seeds at this level, sweeps and studies of another level are left out; `seeds`
    are plain lists. From another base than the main one the methods are those of its sweeps.
    """
    chosen = {
        name: method.model_copy(update={"seeds": method.seeds_at(level)})
        for name, method in experiment.methods.items()
        if runs_at(method, level)
    }
    sweeps = {n: s for n, s in experiment.sweeps.items() if s.level in included(level)}
    found = experiment.model_copy(
        update={
            "methods": chosen,
            "sweeps": sweeps,
            "studies": experiment.studies.at(included(level)),
        }
    )
    if base == MAIN:
        return found.model_copy(
            update={"methods": {n: m for n, m in chosen.items() if m.base == MAIN}}
        )
    other = other_base(found, base)
    methods = {
        name: method
        for name, method in (*found.methods.items(), *variants(found, base))
        if method.base == base or method.partition == "base"
    }
    return other.model_copy(update={"methods": methods, "sweeps": {}, "studies": Studies()})


def variants(experiment: Experiment, base: str = MAIN) -> Iterator[tuple[str, Method]]:
    """(name, method) of what the sweeps add to the experiment's own methods from this base."""
    for sweep in experiment.sweeps.values():
        if base in sweep.bases:
            for changes in combinations(sweep, experiment.training.optimizer):
                tag = suffix(changes)
                if not tag and base == MAIN:
                    continue  # the experiment's own methods
                for name in sweep.methods:
                    method = experiment.methods[name]
                    update: dict[str, Any] = {"seeds": sweep.seeds, "base": base}
                    if method.trained:
                        update["optimizer"] = method.optimizer | changes
                        update["may_diverge"] = True
                    else:
                        update |= {k: f"{getattr(method, k)}{tag}" for k in ("source", "match")}
                    yield f"{name}{tag}", method.model_copy(update=update)


def every_method(experiment: Experiment) -> dict[str, Method]:
    """The experiment's own methods and those of its sweeps, by name."""
    return {**experiment.methods, **dict(variants(experiment))}


def combinations(sweep: Sweep, own: Optimizer) -> Iterator[dict[str, Any]]:
    """Every point of the sweep as the keys in which it differs from the experiment's optimiser."""
    for rate in sweep.learning_rate or [own.learning_rate]:
        for size in sweep.batch_size or [own.batch_size]:
            point: dict[str, Any] = {"algorithm": sweep.algorithm or own.algorithm}
            point |= {"learning_rate": rate, "batch_size": size}
            yield {key: value for key, value in point.items() if value != getattr(own, key)}


def suffix(changes: Mapping[str, Any]) -> str:
    """What the name of a sweep's method ends in: "" where nothing differs, else "-sgd-lr0.1-b4"."""
    form = {"algorithm": "-{}", "learning_rate": "-lr{:g}", "batch_size": "-b{}"}
    return "".join(form.get(key, f"-{key}{{}}").format(value) for key, value in changes.items())
