"""What MLflow is to show, read only from the records: runs of methods, models and branches.

Nothing here knows MLflow; `merit.track` carries these runs into it. Which runs exist follows from
`merit.config.branches.plan`, never from what lies in a folder; what has not been run yet is left
out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merit.config import Experiment, every_method
from merit.config.branches import Branch, Model, plan
from merit.io.artifacts import Artifacts, read_json, read_jsonl, study_folder, value_hash

# few, so that MLflow's charts stay readable; the records have more
STEP_METRICS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")
FIGURES = ("pca", "similarity", "average")  # on every method's run
# of an experiment: what no single run depends on
NOT_A_RUNS = {"methods", "sweeps", "studies", "report"}
Row = dict[str, Any]


class Point(NamedTuple):
    """One value of one metric; `time` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class Run:
    """One MLflow run: a method, below it a model per seed, below that its branches.

    `key` and `parent` are keys: method/<name>, a model's id, or branch/<id>; names are unique, too.
    The base is a model without a method above it. `files` maps a path inside the run's artifacts to
    a file of the same name.
    """

    key: str
    name: str
    parent: str | None
    params: dict[str, str]
    tags: dict[str, str]
    points: list[Point]
    files: dict[str, Path]

    @property
    def start(self) -> int:
        return min((point.time for point in self.points), default=0)


def runs(experiment: Experiment, paths: Artifacts) -> list[Run]:
    """Every run that has something to show, parents before children.

    A branch that several models share is one run, below the first of them. Raises MeritError if a
    record is unreadable.
    """
    return _Records(experiment, paths).runs()


def mixture(experiment: Experiment, paths: Artifacts) -> dict[str, str] | None:
    """What the branches train on, by MLflow's names for a dataset; None before it is written.

    The digest is that of the data's settings and of every task's name and number of examples.
    """
    if not (path := paths.mixture / "tasks.json").is_file():
        return None
    tasks = read_json(path)
    counts = {"num_tasks": len(tasks), "num_examples": sum(task["num_examples"] for task in tasks)}
    return {
        "name": f"{experiment.name}-mixture",
        "digest": value_hash([experiment.data.model_dump(mode="json"), tasks])[:16],
        "source_type": "local",
        "source": json.dumps({"uri": paths.data.as_posix()}),
        "profile": json.dumps(counts),
    }


class _Records:
    """One experiment's records, as runs."""

    def __init__(self, experiment: Experiment, paths: Artifacts) -> None:
        self.experiment, self.paths, self.plan = experiment, paths, plan(experiment)
        self.scores = _optional(paths.evaluation / "scores.json").get("scores", {})
        self.held_out = self._study("held_out")
        found = (paths.report / "figures" / f"{name}.png" for name in FIGURES)
        self.figures = {f"figures/{path.name}": path for path in found if path.is_file()}

    def _study(self, name: str) -> Row:
        result = _optional(study_folder(self.experiment.name, name) / "result.json")
        return dict(result.get("summary", {}))

    def runs(self) -> list[Run]:
        models = self.plan.models.values()
        branches = {
            branch.id: self.branch(branch, [m for m in models if branch.id in m.branches])
            for branch in self.plan.branches.values()
            if (self.paths.branch(branch.id) / "summary.json").is_file()
        }
        shown = {}
        for model in models:
            if run := self.model(model, [branches[b] for b in model.branches if b in branches]):
                shown[model] = run
        found = [*shown.values(), *branches.values()]
        # MLflow's tables begin with the newest runs: the methods, in the order of the report
        newest = max((point.time for run in found for point in run.points), default=0)
        names = dict.fromkeys(model.method for model in shown if model.rule != "base")
        methods = [self.method(name, shown, newest - i) for i, name in enumerate(names)]
        return [*methods, *found]

    def branch(self, branch: Branch, models: Sequence[Model]) -> Run:
        """A branch's run, below the first of the `models` that have it."""
        folder, written = self.paths.branch(branch.id), self.paths.timing(branch.id)
        file = folder / "manifest.json"  # what it was trained by, not what is planned by now
        summary, manifest = read_json(folder / "summary.json"), read_json(file)
        params, tags = self._settings_and_tags(models[0], branch.seed)
        hashes = {key: str(v) for key, v in (manifest | summary).items() if key.endswith("_hash")}
        tags |= {f"merit.{key}": value for key, value in hashes.items()} | {
            "merit.branch": branch.id,
            "merit.models": ", ".join(model.id for model in models),
            "merit.tasks": ", ".join(manifest.pop("tasks", [])),  # where too long, MLflow cuts it
            "merit.checkpoint": _checkpoint(folder, summary),
            "merit.failure": summary["failure"] or "",
        }
        timing = {row["step"]: row for row in _rows(written)}
        rows = [timing.get(row["step"], {}) | row for row in _rows(folder / "records.jsonl")]
        points = _step_points(rows, written)
        if "displacement" in summary:
            time = points[-1].time if points else 0
            points.append(Point("displacement", summary["displacement"], 0, time))
        params |= flatten({"manifest": manifest})
        files = {f"manifests/{branch.id}/manifest.json": file}
        # the id of a method's only branch reads like a model's
        name = branch.id if branch.num_groups > 1 else f"branch {branch.id}"
        return Run(f"branch/{branch.id}", name, models[0].id, params, tags, points, files)

    def model(self, model: Model, branches: Sequence[Run]) -> Run | None:
        """A model's run; None if there is nothing of it yet."""
        merged, records = self.paths.model(model.id), self.paths.base / "records.jsonl"
        merge, is_base = _optional(merged / "merge.json"), model.rule == "base"
        points = _step_points(_rows(records), records) if is_base else []
        values = dict(self.scores.get(model.id, {}))
        values |= {"average": sum(values.values()) / len(values)} if values else {}
        for key in ("loss", "accuracy"):
            found = self.held_out.get(key, {})
            values |= {f"held_out_{key}": found[model.id]} if model.id in found else {}
        if not (branches or merge or points or values):
            return None
        params, tags = self._settings_and_tags(model, model.seed)
        counts = ("num_tokens", "num_loss_tokens", "weighted_by", "alpha")
        params |= flatten({"rule": model.rule, "num_branches": len(model.branches)})
        params |= flatten({key: merge.get(key) for key in counts})
        hashes = {run.tags.get("merit.partition_hash", "") for run in branches} - {""}
        lineage = {
            "base_hash": _optional(self.paths.base / "base.json").get("base_hash"),
            "partition_hash": ", ".join(sorted(hashes)),
            "branches": ", ".join(run.tags["merit.branch"] for run in branches),
            "source": model.source,
            "match": model.match,
            "checkpoint_hash": merge.get("checkpoint_hash"),
            "checkpoint": _checkpoint(merged, merge),
            "failure": merge.get("failure"),
        }
        tags |= {f"merit.{key}": str(value) for key, value in lineage.items() if value}
        if "displacement" in merge:
            values["displacement"] = merge["displacement"]
        files = (merged / "merge.json", self.paths.evaluation / "scores.json")
        times = [point.time for run in branches for point in run.points]
        last = max(times or map(_modified, files))
        points += [Point(key, value, 0, last) for key, value in values.items()]
        if is_base:
            return Run(model.id, model.id, None, params, tags, points, self.figures)
        name, parent = f"{model.method}, seed {model.seed}", f"method/{model.method}"
        return Run(model.id, name, parent, params, tags, points, {})

    def method(self, method: str, models: Mapping[Model, Run], time: int) -> Run:
        """The mean of every metric over the method's models, and the loss of their branches."""
        mine = [model for model in models if model.method == method]
        params, tags = self._settings_and_tags(mine[0], None)
        params |= flatten({"num_models": len(mine), "num_branches": len(mine[0].branches)})
        values: dict[str, list[float]] = {}
        for point in (point for model in mine for point in models[model].points):
            values.setdefault(point.key, []).append(point.value)
        points = [Point(key, float(np.mean(found)), 0, time) for key, found in values.items()]
        branches = dict.fromkeys(branch for model in mine for branch in model.branches)
        folders = [self.paths.branch(branch) for branch in branches]
        done = [_optional(folder / "summary.json") for folder in folders]
        if all(summary and not summary["failure"] for summary in done):  # half a curve is none
            curve = loss_by_epoch(
                [_rows(folder / "records.jsonl") for folder in folders],
                [read_json(folder / "manifest.json")["num_tokens"] for folder in folders],
            )
            points += [Point("training_loss", loss, step, time) for step, loss in curve]
        return Run(f"method/{method}", method, None, params, tags, points, self.figures)

    def _settings_and_tags(
        self, model: Model, seed: int | None
    ) -> tuple[dict[str, str], dict[str, str]]:
        """All settings that the run depends on, flattened, and the tags that every run has.

        `training.optimizer` is the run's own: the experiment's with what the method changes in it.
        Other methods' blocks and the report's are not among the settings, so that adding a method
        leaves the runs that exist as they are.
        """
        values = self.experiment.model_dump(mode="json", exclude=NOT_A_RUNS)
        own = every_method(self.experiment)[model.method].model_dump(
            mode="json", exclude={"seeds"}, exclude_defaults=True
        )
        values["training"]["optimizer"] |= own.get("optimizer", {})
        settings = flatten({**values, "method": {"name": model.method, **own}, "seed": seed})
        tags = {
            "merit.experiment": self.experiment.name,
            "merit.method": model.method,
            "merit.model": model.id,
            "merit.seed": "" if seed is None else str(seed),
            "merit.params_hash": value_hash(settings),
        }
        readiness = self._study("readiness")
        if "merge_ready" in readiness:
            tags["merit.merge_ready"] = str(readiness["merge_ready"]).lower()
            tags["merit.readiness"] = str(readiness["verdict"])
        return settings, tags


# --- values -------------------------------------------------------------------------------------


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and strings; a list of blocks is numbered, None left out."""
    result: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            result |= flatten(item, f"{prefix}{name}.")
        elif isinstance(item, (list, tuple)) and any(isinstance(part, Mapping) for part in item):
            result |= flatten({str(i): part for i, part in enumerate(item)}, f"{prefix}{name}.")
        elif item is not None:
            text = ", ".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item)
            result[f"{prefix}{name}"] = text
    return result


def loss_by_epoch(
    branches: list[list[Row]], num_tokens: list[int], steps_per_epoch: int = 100
) -> list[tuple[int, float]]:
    """Token-weighted mean of the branches' training losses at equal progress,

        loss_by_epoch(p) = sum_k N_k loss_k(p) / sum_k N_k

    N_k = tokens of branch k, loss_k linear between its logged steps: models with different numbers
    of branches can be compared. From the first grid point at which every branch has logged to the
    last epoch of the longest one; beyond its last record a branch keeps its last loss. Empty where
    a branch has no record. Returns (percent of an epoch, loss).
    """
    if not branches or not all(branches):
        return []
    epochs = [[float(row["epoch"]) for row in rows] for rows in branches]
    first = math.ceil(round(max(e[0] for e in epochs) * steps_per_epoch, 6))
    last = math.ceil(round(max(e[-1] for e in epochs) * steps_per_epoch, 6))
    grid = np.arange(first, last + 1)
    losses = [
        np.interp(grid / steps_per_epoch, e, [row["loss"] for row in rows])
        for e, rows in zip(epochs, branches, strict=True)
    ]
    mean = np.average(losses, axis=0, weights=num_tokens)
    return [(int(step), float(value)) for step, value in zip(grid, mean, strict=True)]


def _step_points(rows: Sequence[Row], written: Path) -> list[Point]:
    """The step metrics of records; rows of a phase of the base are named after the phase.

    Their times count back from when the file `written` was. (A file restored from a cache carries
    the time of its restoring; durations stay right.)
    """
    lasted = int(1000 * rows[-1].get("seconds", 0)) if rows else 0
    start = max(0, _modified(written) - lasted)
    return [
        Point(f"{row['phase']}/{key}" if "phase" in row else key, row[key], row["step"], time)
        for row in rows
        for time in [start + int(1000 * row.get("seconds", 0))]
        for key in STEP_METRICS
        if row.get(key) is not None
    ]


def _checkpoint(folder: Path, record: Mapping[str, Any]) -> str:
    """Where the run's weights lie; "" where it has none, as what diverged."""
    if "checkpoint_hash" not in record:
        return ""
    single = folder / "model.safetensors"
    return (single if single.is_file() else folder).as_posix()  # shards, an adapter


def _modified(path: Path) -> int:
    """In milliseconds; 0 before 1970, where a clock without a battery begins: MLflow's first."""
    return max(0, int(1000 * path.stat().st_mtime)) if path.is_file() else 0


def _rows(path: Path) -> list[Row]:
    return read_jsonl(path) if path.is_file() else []


def _optional(path: Path) -> Row:
    return dict(read_json(path)) if path.is_file() else {}
