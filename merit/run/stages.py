"""The stages of an experiment: the items of each, where their results lie, what decides them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merit.config import Experiment
from merit.config.branches import Plan, plan
from merit.io.artifacts import KEY, Artifacts, file_hash, read_json, study_folder, value_hash
from merit.run.keys import code_hash, make_key
from merit.run.store import Item, NotReady, hash_of, prune

SMALL = 32 * 2**20  # bytes of a folder that is hashed rather than dated
Basis = tuple[Any, Mapping[str, Any]]  # settings, inputs


@dataclass(frozen=True)
class Context:
    """An experiment and what follows from it.

    `read` collects what a basis asks for: items, and how the names of the files begin that count.
    """

    experiment: Experiment
    dump: dict[str, Any]
    plan: Plan
    paths: Artifacts
    read: set[tuple[Item, str]] = field(default_factory=set)

    @classmethod
    def of(cls, experiment: Experiment) -> Context:
        from merit.eval.studies import settings_of

        dump = experiment.model_dump(mode="json")
        dump["studies"] = {k: v.model_dump(mode="json") for k, v in settings_of(experiment).items()}
        return cls(experiment, dump, plan(experiment), Artifacts(experiment.name))

    def block(self, *keys: str) -> dict[str, Any]:
        return {key: self.dump[key] for key in keys}


@dataclass(frozen=True)
class Stage:
    """One stage: `outputs` says where an item lies, `basis` what decides it, `names` lists all.

    `code` names the modules that decide an item, by default only `module`. Below `roots` lie the
    items of a stage that has several, and nothing else.
    """

    name: str
    summary: str
    module: str  # with run(experiment, item)
    outputs: Callable[[Artifacts, str], tuple[Path, ...]]
    basis: Callable[[Context, str], Basis]
    names: Callable[[Context], list[str]] = lambda context: [""]
    code: Callable[[Context, str], list[str]] | None = None
    roots: Callable[[Artifacts], tuple[Path, ...]] = lambda paths: ()
    record_beside: bool = False  # the record is the last output, not a file of the first
    stored: bool = True
    preload: tuple[str, ...] = ()

    def item(self, context: Context, name: str) -> Item:
        outputs = self.outputs(context.paths, name)
        record = outputs[-1] if self.record_beside else outputs[0] / KEY
        return Item(context.experiment.name, self.name, name, outputs, record)

    def items(self, context: Context) -> list[Item]:
        return [self.item(context, name) for name in self.names(context)]

    def code_of(self, context: Context, name: str) -> str:
        return code_hash(self.code(context, name) if self.code else [self.module])

    def key(self, context: Context, name: str) -> dict[str, str]:
        """What decides the item. Raises NotReady if one of its inputs is not there."""
        settings, inputs = self.basis(context, name)
        return make_key(settings, inputs, self.code_of(context, name))

    def inputs(self, context: Context, name: str) -> set[tuple[Item, str]]:
        """What the item is made of, as `Context.read` has it."""
        context.read.clear()
        self.basis(context, name)
        return set(context.read)

    def prune(self, context: Context) -> list[Path]:
        """Remove the results of items that the plan does not name any more; returns which."""
        expected = [output for item in self.items(context) for output in item.outputs]
        return [path for root in self.roots(context.paths) for path in prune(root, expected)]


STAGES: dict[str, Stage] = {}


def stage(module: str, outputs: Any, **options: Any) -> Callable[[Any], Any]:
    """Add a stage behind those above it: the decorated function is its basis and has its name."""

    def add(basis: Callable[[Context, str], Basis]) -> Callable[[Context, str], Basis]:
        name = basis.__name__.strip("_")
        STAGES[name] = Stage(name, str(basis.__doc__), module, outputs, basis, **options)
        return basis

    return add


# --- inputs and code that several stages have in common -------------------------------------------

_TORCH = (
    *("torch", "transformers", "merit.train.model", "merit.train.loop"),
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2.modeling_qwen2",
)
_ANSWERING = (*_TORCH, "merit.eval.answering.generate")


def _made(c: Context, stage: str, name: str = "", below: str = "") -> str:
    """The hash of another item, or of its files whose names begin with `below`.

    Raises NotReady if the item is not there.
    """
    item = STAGES[stage].item(c, name)
    c.read.add((item, below))
    return hash_of(item.record, below)


def _current(c: Context, stage: str, name: str) -> str:
    """As `_made`. Raises NotReady if the item is missing or out of date, too."""
    item = STAGES[stage].item(c, name)
    if not item.is_current(STAGES[stage].key(replace(c, read=set()), name)):
        raise NotReady(f"{item.label} is missing or out of date")
    return _made(c, stage, name)


def _said(c: Context, stage: str, name: str, file: str) -> dict[str, Any]:
    """A small JSON file of another item, compared with the item's record."""
    _made(c, stage, name)
    item = STAGES[stage].item(c, name)
    path = item.outputs[0] / file
    item.check(str(path.relative_to(item.outputs[0].parent)))
    return read_json(path)


def _base_hash(c: Context) -> str:
    return _said(c, "base", "", "base.json")["base_hash"]


def _if_asked(c: Context) -> list[str]:
    """One item, none without benchmarks."""
    return [""] if c.experiment.evaluation.benchmarks else []


def _results(c: Context, with_scores: bool = True) -> dict[str, Any]:
    """Hashes of all that was measured of the experiment and of those that its studies read."""
    models = {m: _made(c, "merge", m) for m in c.plan.models}
    scores = {
        name: hash_of(Artifacts(name).predictions("x").parent / KEY)
        for name in ((c.experiment.name, *c.experiment.reads) if with_scores else ())
        if _if_asked(c)
    }
    encoded, data = _made(c, "encode"), _made(c, "data")
    return {"models": models, "scores": scores, "encoded": encoded, "data": data}


def _source_code(c: Context, _: str) -> list[str]:
    from merit.data.sources import SOURCES

    return ["merit.data.stage", SOURCES[c.experiment.data.source].partition(":")[0]]


def _base_code(c: Context, _: str) -> list[str]:
    from merit.train.registry import INITIALISERS, PRETRAINING

    base, places = c.experiment.base, ["merit.train.base"]
    if base.architecture is not None:
        world = "world" if base.architecture.has_vision else "text"
        places += [*INITIALISERS.values(), f"merit.mini.{world}"]  # with its vocabulary
    places += [PRETRAINING[phase.data] for phase in base.phases if phase.data in PRETRAINING]
    return [place.partition(":")[0] for place in places]


def own_files(experiment: Experiment) -> dict[str, Any]:
    """A hash of the user's own files: of the mixture, and of the base."""
    data, base = experiment.data, experiment.base
    places = {"data": data.folder if data.source == "jsonl" else None, "base": base.checkpoint}
    return {key: _listing(Path(place)) if place else None for key, place in places.items()}


def _listing(place: Path) -> str:
    """Of small files their contents, the same in every clone; of large ones size and time."""
    files = [f for f in (sorted(place.rglob("*")) if place.is_dir() else [place]) if f.is_file()]
    small = sum(f.stat().st_size for f in files) < SMALL
    return value_hash(
        [
            [str(f), file_hash(f) if small else [f.stat().st_size, f.stat().st_mtime_ns]]
            for f in files
        ]
    )


# --- the stages -----------------------------------------------------------------------------------


@stage("merit.data.stage", lambda paths, _: (paths.data,), code=_source_code)
def _data(c: Context, _: str) -> Basis:
    """Mixture, the base's lessons, benchmarks."""
    return c.block("data"), {"files": own_files(c.experiment)["data"]}


@stage("merit.train.base", lambda paths, _: (paths.base,), code=_base_code, preload=_TORCH)
def _base(c: Context, _: str) -> Basis:
    """Build or load theta0."""
    settings = c.block("base", "model", "encoding")
    lessons = _made(c, "data", below="data/pretraining") if c.experiment.base.phases else None
    return settings, {"lessons": lessons, "files": own_files(c.experiment)["base"]}


@stage("merit.train.encode", lambda paths, _: (paths.encoded,), preload=_TORCH)
def _encode(c: Context, _: str) -> Basis:
    """Tokenise the mixture, cache its image embeddings."""
    mixture = _made(c, "data", below="data/mixture")
    return c.block("model", "encoding"), {"mixture": mixture, "base": _base_hash(c)}


@stage("merit.train.task_gradients", lambda paths, _: (paths.gradients,), preload=_TORCH)
def _gradients(c: Context, _: str) -> Basis:
    """Mean gradient of every task at theta0."""
    settings = c.block("gradients", "model") | {"trainable": c.dump["training"]["trainable"]}
    return settings, {"encoded": _made(c, "encode"), "base": _base_hash(c)}


@stage("merit.partition.stage", lambda paths, _: (paths.partition,))
def _partition(c: Context, _: str) -> Basis:
    """Cosines, PCA, groups, a manifest per branch."""
    settings = c.block("methods", "sweeps", "training", "model", "encoding")
    gradients, encoded = _made(c, "gradients"), _made(c, "encode")
    return settings, {"gradients": gradients, "encoded": encoded, "base": _base_hash(c)}


@stage(
    "merit.train.branch",
    lambda paths, branch: (paths.branch(branch),),
    names=lambda c: list(c.plan.branches),
    roots=lambda paths: (paths.folder / "branches",),
    preload=(*_TORCH, "merit.train.branch"),
)
def _train(c: Context, branch: str) -> Basis:
    """Train every branch."""
    manifest = c.paths.manifest(branch)
    if not manifest.is_file():
        raise NotReady(f"{manifest} is not there yet")
    below = {"base": "", "encode": "", "partition": f"partition/manifests/{manifest.name}"}
    inputs = [(STAGES[stage].item(c, ""), files) for stage, files in below.items()]
    # folders may have been brought here without their records
    c.read.update((item, files) for item, files in inputs if item.record.is_file())
    return read_json(manifest), {}


@stage(
    "merit.merge.model",
    lambda paths, model: (paths.model(model),),
    # those made of branches first: shrunk models are made of them
    names=lambda c: sorted(c.plan.models, key=lambda m: c.plan.models[m].rule == "shrunk"),
    roots=lambda paths: (paths.folder / "models",),
    preload=("torch", "merit.merge.model", "merit.merge.write"),
)
def _merge(c: Context, model: str) -> Basis:
    """Merge every model from its branches."""
    from merit.merge.model import recipe

    made_of = recipe(c.experiment, c.plan.models[model])
    branches = {name: _current(c, "train", name) for name in made_of["branches"]}
    keys = [key for key in ("source", "match") if made_of[key]]
    others = {key: _current(c, "merge", made_of[key]) for key in keys}
    return made_of, {"base": _base_hash(c), "branches": branches, **others}


@stage(
    "merit.eval.stages.prompts",
    lambda paths, _: (paths.questions,),
    names=_if_asked,
    preload=_TORCH,
)
def _prompts(c: Context, _: str) -> Basis:
    """The benchmarks' questions as models are asked them."""
    from merit.eval.stages.prompts import asking

    questions = _made(c, "data", below="data/benchmarks")
    return asking(c.experiment), {"questions": questions, "base": _base_hash(c)}


@stage(
    "merit.eval.stages.evaluate",
    lambda paths, model: (paths.answers(model), paths.answers(model).with_suffix(".key.json")),
    names=lambda c: list(c.plan.models) if _if_asked(c) else [],
    roots=lambda paths: (paths.evaluation / "answers",),
    record_beside=True,
    preload=_ANSWERING,
)
def _evaluate(c: Context, model: str) -> Basis:
    """Every model's answers to all benchmarks."""
    merged = _said(c, "merge", model, "merge.json")
    model_hash = [merged.get("checkpoint_hash"), merged["failure"]]
    return None, {"questions": _made(c, "prompts"), "model": model_hash}


@stage(
    "merit.eval.stages.score",
    lambda paths, _: (paths.predictions("x").parent, paths.evaluation / "scores.json"),
    names=_if_asked,
)
def _score(c: Context, _: str) -> Basis:
    """Score all answers."""
    answers = {model: _current(c, "evaluate", model) for model in c.plan.models}
    settings = c.block("evaluation")
    return settings, {"questions": _made(c, "prompts"), "answers": answers}


def _reported(c: Context) -> list[str]:
    from merit.eval.studies import reported

    return sorted(reported(c.experiment), key="control".__ne__)  # which takes longest


def _study_record(paths: Artifacts, study: str) -> Path:
    return paths.folder / "studies" / f"{study}.json"


@stage(
    "merit.eval.stages.study",
    lambda p, study: (study_folder(p.experiment, study), _study_record(p, study)),
    names=_reported,
    code=lambda c, study: [f"merit.eval.studies.{study}.measure"],  # the module imports them all
    roots=lambda p: (_study_record(p, "x").parent, study_folder(p.experiment, "x").parent),
    record_beside=True,
    preload=(*_ANSWERING, "pandas", "scipy.stats"),
)
def _studies(c: Context, study: str) -> Basis:
    """The measurements besides the main tables."""
    from merit.eval.studies import settings_of

    settings = c.block(
        *("model", "gradients", "training", "merge_weights", "methods", "sweeps", "evaluation")
    )
    settings |= {"study": c.dump["studies"][study], "readiness": c.dump["studies"].get("readiness")}
    return settings, _results(c, settings_of(c.experiment)[study].reads_scores)


@stage(
    "merit.eval.stages.report",
    lambda p, _: (Path("reports", p.experiment), Path(f"artifacts/reports/{p.experiment}.json")),
    record_beside=True,
    stored=False,
)
def _report(c: Context, _: str) -> Basis:
    """Tables, figures and pages."""
    from merit.eval.report.bases import scores_hashes

    settings = c.block("data", "methods", "sweeps", "evaluation", "report", "studies")
    # of models, answers and mixture it reads what is small, and their hashes are not taken again
    small = {("merge", model): f"{model}/merge.json" for model in c.plan.models}
    small |= {("score", name): "scores.json" for name in _if_asked(c)}
    c.read.update((STAGES[stage].item(c, name), file) for (stage, name), file in small.items())
    inputs = _results(replace(c, read=set())) | {"partition": _made(c, "partition")}
    inputs["studies"] = {s: _made(c, "studies", s) for s in _reported(c)}
    paper = Path("reports/paper")
    inputs["paper"] = {file.name: file_hash(file) for file in sorted(paper.glob("*.csv"))}
    inputs["bases"] = scores_hashes(c.experiment)
    return settings, inputs
