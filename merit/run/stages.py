"""The stages of an experiment: the items of each, where their results lie, what decides them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """An experiment and what follows from it."""

    experiment: Experiment
    dump: dict[str, Any]
    plan: Plan
    paths: Artifacts

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
    """One stage. `names` lists its items; `outputs` and `basis` say where one lies, what decides
    it.
    """

    name: str
    summary: str
    module: str  # with run(experiment, item)
    outputs: Callable[[Artifacts, str], tuple[Path, ...]]
    basis: Callable[[Context, str], Basis]
    names: Callable[[Context], list[str]] = lambda context: [""]
    code: Callable[[Context, str], list[str]] = lambda context, item: []  # modules besides `module`
    looped: bool = False
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
        own = [] if self.name == "studies" else [self.module]  # this one imports every study
        return code_hash([*own, *self.code(context, name)])

    def key(self, context: Context, name: str) -> dict[str, str]:
        """What decides the item. Raises NotReady if one of its inputs is not there."""
        settings, inputs = self.basis(context, name)
        return make_key(settings, inputs, self.code_of(context, name))


# --- what decides an item -------------------------------------------------------------------------


def _current(c: Context, stage: str, name: str) -> str:
    """The hash of another item. Raises NotReady if it is missing or out of date."""
    item = STAGES[stage].item(c, name)
    if not item.is_current(STAGES[stage].key(c, name)):
        raise NotReady(f"{item.label} is missing or out of date")
    return hash_of(item.record)


def _base_hash(paths: Artifacts) -> str:
    hash_of(paths.base / KEY)
    return read_json(paths.base / "base.json")["base_hash"]


def _data(c: Context, _: str) -> Basis:
    return c.block("data"), {"files": own_files(c.experiment)["data"]}


def _base(c: Context, _: str) -> Basis:
    settings = c.block("base", "model", "encoding")
    lessons = hash_of(c.paths.data / KEY, "data/pretraining") if c.experiment.base.phases else None
    return settings, {"lessons": lessons, "files": own_files(c.experiment)["base"]}


def _encode(c: Context, _: str) -> Basis:
    mixture = hash_of(c.paths.data / KEY, "data/mixture")
    return c.block("model", "encoding"), {"mixture": mixture, "base": _base_hash(c.paths)}


def _gradients(c: Context, _: str) -> Basis:
    settings = c.block("gradients", "model") | {"trainable": c.dump["training"]["trainable"]}
    return settings, {"encoded": hash_of(c.paths.encoded / KEY), "base": _base_hash(c.paths)}


def _partition(c: Context, _: str) -> Basis:
    settings = c.block("methods", "sweeps", "training", "model", "encoding")
    inputs = {
        "gradients": hash_of(c.paths.gradients / KEY),
        "encoded": hash_of(c.paths.encoded / KEY),
        "base": _base_hash(c.paths),
    }
    return settings, inputs


def _train(c: Context, branch: str) -> Basis:
    manifest = c.paths.manifest(branch)
    if not manifest.is_file():
        raise NotReady(f"{manifest} is not there yet")
    return read_json(manifest), {}


def _merge(c: Context, model: str) -> Basis:
    from merit.merge.model import recipe

    made_of = recipe(c.experiment, c.plan.models[model])
    branches = {name: _current(c, "train", name) for name in made_of["branches"]}
    keys = [key for key in ("source", "match") if made_of[key]]
    others = {key: _current(c, "merge", made_of[key]) for key in keys}
    return made_of, {"base": _base_hash(c.paths), "branches": branches, **others}


def _prompts(c: Context, _: str) -> Basis:
    from merit.eval.stages.prompts import asking

    questions = hash_of(c.paths.data / KEY, "data/benchmarks")
    return asking(c.experiment), {"questions": questions, "base": _base_hash(c.paths)}


def _evaluate(c: Context, model: str) -> Basis:
    made = c.paths.model(model)
    hash_of(made / KEY)
    merged = read_json(made / "merge.json")
    inputs = {
        "questions": hash_of(c.paths.questions / KEY),
        "model": [merged.get("checkpoint_hash"), merged["failure"]],
    }
    return None, inputs


def _score(c: Context, _: str) -> Basis:
    answers = {model: _current(c, "evaluate", model) for model in c.plan.models}
    settings = c.block("evaluation")
    return settings, {"questions": hash_of(c.paths.questions / KEY), "answers": answers}


def _study(c: Context, study: str) -> Basis:
    settings = c.block(
        *("model", "gradients", "training", "merge_weights", "methods", "sweeps", "evaluation")
    )
    settings |= {"study": c.dump["studies"][study], "readiness": c.dump["studies"].get("readiness")}
    from merit.eval.studies import settings_of

    return settings, _results(c, settings_of(c.experiment)[study].reads_scores)


def _results(c: Context, with_scores: bool = True) -> dict[str, Any]:
    """Hashes of all that was measured of the experiment and of those that its studies read."""
    models = {m: hash_of(c.paths.model(m) / KEY) for m in c.plan.models}
    scores = {
        name: hash_of(Artifacts(name).predictions("x").parent / KEY)
        for name in ((c.experiment.name, *c.experiment.reads) if with_scores else ())
        if _if_asked(c)
    }
    encoded, data = hash_of(c.paths.encoded / KEY), hash_of(c.paths.data / KEY)
    return {"models": models, "scores": scores, "encoded": encoded, "data": data}


def _studies(c: Context) -> list[str]:
    from merit.eval.studies import reported

    return sorted(reported(c.experiment), key="control".__ne__)  # which takes longest


def _report(c: Context, _: str) -> Basis:
    settings = c.block("data", "methods", "sweeps", "evaluation", "report", "studies")
    inputs: dict[str, Any] = _results(c) | {"partition": hash_of(c.paths.partition / KEY)}
    inputs["studies"] = {s: hash_of(_study_record(c.paths, s)) for s in _studies(c)}
    paper = Path("reports/paper")
    inputs["paper"] = {file.name: file_hash(file) for file in sorted(paper.glob("*.csv"))}
    from merit.eval.report.bases import scores_hashes

    inputs["bases"] = scores_hashes(c.experiment)
    return settings, inputs


def _study_record(paths: Artifacts, study: str) -> Path:
    return paths.folder / "studies" / f"{study}.json"


def _if_asked(c: Context) -> list[str]:
    """One item, none without benchmarks."""
    return [""] if c.experiment.evaluation.benchmarks else []


def _models(c: Context) -> list[str]:
    """Those made of branches first: shrunk models are made of them."""
    return sorted(c.plan.models, key=lambda model: c.plan.models[model].rule == "shrunk")


def _source_code(c: Context, _: str) -> list[str]:
    from merit.data.sources import SOURCES

    return [SOURCES[c.experiment.data.source].partition(":")[0]]


def _base_code(c: Context, _: str) -> list[str]:
    from merit.train.registry import INITIALISERS, PRETRAINING

    base, places = c.experiment.base, []
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


# --- the table ------------------------------------------------------------------------------------

_TORCH = (
    *("torch", "transformers", "merit.train.model", "merit.train.loop"),
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2.modeling_qwen2",
)

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "data",
            "mixture, the base's lessons, benchmarks",
            "merit.data.stage",
            lambda paths, _: (paths.data,),
            _data,
            code=_source_code,
        ),
        Stage(
            "base",
            "build or load theta0",
            "merit.train.base",
            lambda paths, _: (paths.base,),
            _base,
            code=_base_code,
            preload=_TORCH,
        ),
        Stage(
            "encode",
            "tokenise the mixture, cache its image embeddings",
            "merit.train.encode",
            lambda paths, _: (paths.encoded,),
            _encode,
            preload=_TORCH,
        ),
        Stage(
            "gradients",
            "mean gradient of every task at theta0",
            "merit.train.task_gradients",
            lambda paths, _: (paths.gradients,),
            _gradients,
            preload=_TORCH,
        ),
        Stage(
            "partition",
            "cosines, PCA, groups, a manifest per branch",
            "merit.partition.stage",
            lambda paths, _: (paths.partition,),
            _partition,
        ),
        Stage(
            "train",
            "train every branch",
            "merit.train.branch",
            lambda paths, branch: (paths.branch(branch),),
            _train,
            lambda c: list(c.plan.branches),
            looped=True,
            preload=(*_TORCH, "merit.train.branch"),
        ),
        Stage(
            "merge",
            "merge every model from its branches",
            "merit.merge.model",
            lambda paths, model: (paths.model(model),),
            _merge,
            _models,
            looped=True,
            preload=("torch", "merit.merge.model", "merit.merge.write"),
        ),
        Stage(
            "prompts",
            "the benchmarks' questions as models are asked them",
            "merit.eval.stages.prompts",
            lambda paths, _: (paths.questions,),
            _prompts,
            _if_asked,
            preload=_TORCH,
        ),
        Stage(
            "evaluate",
            "every model's answers to all benchmarks",
            "merit.eval.stages.evaluate",
            lambda paths, model: (
                paths.answers(model),
                paths.answers(model).with_suffix(".key.json"),
            ),
            _evaluate,
            lambda c: list(c.plan.models) if _if_asked(c) else [],
            looped=True,
            record_beside=True,
            preload=(*_TORCH, "merit.eval.answering.generate"),
        ),
        Stage(
            "score",
            "score all answers",
            "merit.eval.stages.score",
            lambda paths, _: (paths.predictions("x").parent, paths.evaluation / "scores.json"),
            _score,
            _if_asked,
        ),
        Stage(
            "studies",
            "the measurements besides the main tables",
            "merit.eval.stages.study",
            lambda paths, study: (
                study_folder(paths.experiment, study),
                _study_record(paths, study),
            ),
            _study,
            _studies,
            lambda c, study: [f"merit.eval.studies.{study}.measure"],
            looped=True,
            record_beside=True,
            preload=(*_TORCH, "pandas", "scipy.stats", "merit.eval.answering.generate"),
        ),
        Stage(
            "report",
            "tables, figures and pages",
            "merit.eval.stages.report",
            lambda paths, _: (
                Path("reports", paths.experiment),
                Path("artifacts/reports", f"{paths.experiment}.json"),
            ),
            _report,
            record_beside=True,
            stored=False,
        ),
    )
}


def prune_outputs(stage: Stage, context: Context) -> list[Path]:
    """Remove the results of items that the plan does not name any more."""
    if not stage.looped:
        return []
    expected = [output for item in stage.items(context) for output in item.outputs]
    paths = context.paths
    roots = {
        "train": [paths.folder / "branches"],
        "merge": [paths.folder / "models"],
        "evaluate": [paths.evaluation / "answers"],
        "studies": [paths.folder / "studies", study_folder(paths.experiment, "x").parent],
    }
    return [path for root in roots[stage.name] for path in prune(root, expected)]
