"""One experiments/<name>.yaml: its blocks, what must agree, and what it takes from another one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from merit.config.base import Base
from merit.config.data import DataSettings
from merit.config.evaluation import Evaluation, Report
from merit.config.methods import Method, Sweep, combinations, overridden, suffix
from merit.config.settings import Settings, checked, nearest, read_yaml
from merit.config.training import Encoding, Gradients, Runtime, Training
from merit.errors import MeritError

EXPERIMENTS_DIR = Path("experiments")
REHEARSAL = "_rehearsal"  # what a rehearsal's name ends in (merit.config.rehearsal)
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# part of files' names, of DVC's and of MLflow's; DVC would read the words as values
MethodName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]*$")]
VALUES = {"null", "true", "false", "yes", "no", "on", "off"}
# what a branch's budget counts when branches are averaged; see merit.method.average
MergeWeights = Literal["tokens", "loss_tokens", "samples", "uniform"]
# what merged models are written in: every tensor as the base has it, or all in one type
MergeDtype = Literal["base", "float32", "bfloat16", "float16"]


class Experiment(Settings):
    """One experiments/<name>.yaml; `name` is the file's."""

    name: Name
    data: DataSettings
    base: Base
    model: Runtime = Runtime()
    encoding: Encoding = Encoding()
    gradients: Gradients
    training: Training
    merge_weights: MergeWeights = "tokens"
    merge_dtype: MergeDtype = "base"
    methods: Annotated[dict[MethodName, Method], Field(min_length=1)]
    sweeps: dict[MethodName, Sweep] = {}
    evaluation: Evaluation = Evaluation()
    report: Report
    studies: dict[str, Any] = {}  # merit.eval.studies checks and reads them

    @property
    def table_benchmarks(self) -> list[str]:
        """Those of the report's own table: its averages, and the studies', are over them."""
        return self.report.benchmarks or self.evaluation.benchmarks

    @property
    def reads(self) -> list[str]:
        """The experiments whose results this one's studies read: what they name as `other`."""
        blocks = (block for block in self.studies.values() if isinstance(block, dict))
        return sorted({other for block in blocks if (other := block.get("other"))})

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        for name in (self.name, *self.methods):
            if name in VALUES:
                raise ValueError(f"name {name!r}: a value in YAML, not a name; choose another")
        runs: dict[str, str] = {}
        for name, method in self.methods.items():
            for run in (f"{name}-s{seed}" for seed in method.seeds):
                if runs.setdefault(run, name) != name:
                    raise ValueError(f"methods {runs[run]} and {name}: two runs are called {run}")
            if name in runs:
                raise ValueError(f"methods.{name}: a run of {runs[name]} is called so")
        for name, method in self.methods.items():
            self._check_method(name, method)
        for name, sweep in self.sweeps.items():
            self._check_sweep(f"sweeps.{name}", sweep)
        self._check_report()
        kernels = {self.training.kernels, *(phase.kernels for phase in self.base.phases)}
        if self.model.device == "cpu" and "liger" in kernels:
            raise ValueError("kernels: 'liger' is for a GPU, and model.device is 'cpu'")
        return self

    def _check_report(self) -> None:
        report, asked = self.report, self.evaluation.benchmarks
        for name in chain(report.benchmarks, *report.also_tables.values()):
            if name not in asked:
                raise ValueError(f"report: benchmark {name!r} is not in evaluation.benchmarks")
        if report.also_tables and not report.paper_table:
            raise ValueError("report.also_tables: needs report.paper_table, the report's own table")
        for method in (*report.curves, *filter(None, [report.partition])):
            if method not in self.methods:
                raise ValueError(f"report: no method is called {method!r}")

    def _check_method(self, name: str, method: Method) -> None:
        overridden(self.training.optimizer, method.optimizer, f"methods.{name}.optimizer")
        if method.partition != "shrunk":
            return
        for key in ("source", "match"):
            other_name = getattr(method, key)
            other = self.methods.get(other_name)
            if other is None:
                raise ValueError(f"methods.{name}.{key}: no method is called {other_name!r}")
            missing = sorted(set(method.seeds) - set(other.seeds))
            if missing or other.partition == "base":
                raise ValueError(f"methods.{name}.seeds: {missing} are not seeds of {other_name!r}")
            if key == "source" and other.partition != "joint":
                raise ValueError(f"methods.{name}.source: {other_name!r} is not a joint method")

    def _check_sweep(self, where: str, sweep: Sweep) -> None:
        for name in sweep.methods:
            if name not in self.methods:
                raise ValueError(f"{where}.methods: no method is called {name!r}")
            method = self.methods[name]
            if method.partition == "base":
                raise ValueError(f"{where}.methods: {name!r} is the base, which has no settings")
            for needed in (method.source, method.match):
                if needed is not None and needed not in sweep.methods:
                    raise ValueError(f"{where}.methods: {name!r} needs {needed!r} there, too")


def load_experiment(name: str, folder: Path = EXPERIMENTS_DIR) -> Experiment:
    """The settings of experiments/<name>.yaml, with those of what it `extends`.

    With `rehearsal: true` they are cut down by merit.config.rehearsal; <name>_rehearsal needs no
    file of its own. Raises MeritError that names the file and the key.
    """
    path = folder / f"{name}.yaml"
    values = read_experiment(name, folder)
    rehearsal = values.pop("rehearsal", False)
    if not isinstance(rehearsal, bool):
        raise MeritError(f"{path}: key `rehearsal`: found {rehearsal!r}, expected true or false")
    if values.setdefault("name", name) != name:
        raise MeritError(
            f"{path}: key `name`: found {values['name']!r}, the file is called {name!r}"
        )
    experiment = checked(values, Experiment, path)
    if not rehearsal:
        return experiment
    from merit.config.rehearsal import rehearsed

    return rehearsed(experiment)


def read_experiment(
    name: str, folder: Path = EXPERIMENTS_DIR, children: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The keys and values of experiments/<name>.yaml, merged into those of what it `extends`.

    Args: children: the experiments that led here by extending one another.
    """
    path, lineage = folder / f"{name}.yaml", (*children, name)
    if name in children:
        raise MeritError(
            f"{folder / children[0]}.yaml: key `extends`: {' extends '.join(lineage)}: no "
            "experiment may extend itself"
        )
    rehearsed = name.removesuffix(REHEARSAL)
    if path.is_file():
        values = read_yaml(path)
    elif rehearsed != name and (folder / f"{rehearsed}.yaml").is_file():
        values = {"extends": rehearsed, "rehearsal": True}
    else:
        where = f"{folder / children[-1]}.yaml: key `extends`: " if children else ""
        known = nearest(name, sorted(p.stem for p in folder.glob("*.yaml")))
        raise MeritError(f"{where}{path}: no such experiment.{known}")
    if "extends" not in values:
        return values
    parent = values.pop("extends")
    if not isinstance(parent, str):
        raise MeritError(f"{path}: key `extends`: found {parent!r}, expected an experiment's name")
    inherited = read_experiment(parent, folder, lineage)
    inherited.pop("name", None)
    return merged(inherited, values)


def merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """The parent's mapping with the child's keys: mappings are merged, other values replaced.

    `null` removes a key of the parent. A new key follows the one before it in the child, or comes
    last: the order of methods is that of a table's rows.
    """
    values, order, place = dict(parent), list(parent), len(parent)
    for key, value in child.items():
        if key not in parent:
            order.insert(place, key)
        elif isinstance(value, dict) and isinstance(parent[key], dict):
            value = merged(parent[key], value)
        place = order.index(key) + 1
        values[key] = value
    removed = {key for key in parent if values[key] is None and parent[key] is not None}
    return {key: values[key] for key in order if key not in removed}


def variants(experiment: Experiment) -> Iterator[tuple[str, Method]]:
    """(name, method) of what the sweeps add to the experiment's own methods."""
    for sweep in experiment.sweeps.values():
        for changes in combinations(sweep, experiment.training.optimizer):
            tag = suffix(changes)
            if not tag:
                continue  # the experiment's own methods
            for name in sweep.methods:
                method = experiment.methods[name]
                update: dict[str, Any] = {"seeds": sweep.seeds}
                if method.trained:
                    update["optimizer"] = method.optimizer | changes
                    update["may_diverge"] = True
                else:
                    update |= {k: f"{getattr(method, k)}{tag}" for k in ("source", "match")}
                yield f"{name}{tag}", method.model_copy(update=update)


def every_method(experiment: Experiment) -> dict[str, Method]:
    """The experiment's own methods and those of its sweeps, by name."""
    return {**experiment.methods, **dict(variants(experiment))}
