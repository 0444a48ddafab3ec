"""One experiments/<name>.yaml: its blocks, what must agree, and what is run at a level."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from merit.config.base import MAIN, Base, OtherBase
from merit.config.data import DataSettings
from merit.config.evaluation import Evaluation, Report
from merit.config.methods import Method, Sweep, included, runs_at
from merit.config.params import PARAMS_FILE, load_params
from merit.config.settings import Level, Settings, load_yaml, nearest
from merit.config.training import Encoding, Gradients, Optimizer, Runtime, Training
from merit.errors import MeritError

EXPERIMENTS_DIR = Path("experiments")
REHEARSAL = "rehearsal"  # <name>-rehearsal: the experiment cut down (merit.config.rehearsal)
# what a branch's budget counts when branches are averaged; see merit.method.average
MergeWeights = Literal["tokens", "loss_tokens", "samples", "uniform"]
# what merged models are written in: every tensor as the base has it, or all in one type
MergeDtype = Literal["base", "float32", "bfloat16", "float16"]


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
    studies: dict[str, Any] = {}  # merit.eval.studies checks and reads them

    @property
    def table_benchmarks(self) -> list[str]:
        """Those of the report's own table: its averages, and the studies', are over them."""
        return self.report.benchmarks or self.evaluation.benchmarks

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        for name, method in self.methods.items():
            self._check_method(name, method)
        unasked = [*set(self.report.benchmarks) - set(self.evaluation.benchmarks)]
        if unasked:
            raise ValueError(f"report.benchmarks: {unasked[0]!r} is not in evaluation.benchmarks")
        if self.report.also_tables and not self.report.paper_table:
            raise ValueError("report.also_tables: needs report.paper_table, the report's own table")
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


def load_experiment(name: str, folder: Path = EXPERIMENTS_DIR) -> Experiment:
    """experiments/<name>.yaml, checked, at the level of the params.yaml beside `folder`.

    <name>-<base> is the part of it that starts from one of its `bases`, <name>-rehearsal what
    merit.config.rehearsal makes of it. Without a params.yaml, at the default level. Raises MeritError that
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
        from merit.config.rehearsal import rehearsed

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
        update=_tables_at(experiment, level)
        | {
            "methods": chosen,
            "sweeps": sweeps,
            "studies": _studies_at(experiment.studies, level),
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
    return other.model_copy(update={"methods": methods, "sweeps": {}, "studies": {}})


def _studies_at(studies: Mapping[str, Any], level: Level) -> dict[str, Any]:
    """The studies of this level, without the key that says so."""
    found = {}
    for name, block in studies.items():
        block = dict(block) if isinstance(block, Mapping) else block
        own = block.pop("level", "default") if isinstance(block, dict) else "default"
        if own in included(level):
            found[name] = block
    return found


def _tables_at(experiment: Experiment, level: Level) -> dict[str, Any]:
    """`evaluation` and `report` with the tables, and their benchmarks, of this level."""
    evaluation, report = experiment.evaluation, experiment.report
    also = report.also_tables if level == "full" else {}
    asked = dict.fromkeys([*evaluation.benchmarks, *itertools.chain(*also.values())])
    own = report.benchmarks or (evaluation.benchmarks if also else [])
    return {
        "evaluation": evaluation.model_copy(update={"benchmarks": list(asked)}),
        "report": report.model_copy(update={"also_tables": also, "benchmarks": own}),
    }


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
