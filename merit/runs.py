"""What MLflow is to show, read only from the records: runs of methods, models and branches.

Nothing here knows MLflow; `merit.track` carries these runs into it. Which runs exist follows from
`merit.config.branches.plan`, never from what lies in a folder; what has not been run yet is left
out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
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


def keys(experiment: Experiment) -> set[str]:
    """The keys of all runs that the experiment's methods may have, run or not."""
    todo = plan(experiment)
    methods = {key for model in todo.models.values() if (key := _method_key(model))}
    return {*methods, *todo.models, *(f"branch/{branch}" for branch in todo.branches)}


def _method_key(model: Model) -> str | None:
    return None if model.rule == "base" else f"method/{model.method}"


def runs(experiment: Experiment, artifacts: Artifacts) -> list[Run]:
    """Every run that has something to show, parents before children.

    A branch that several models share is one run, below the first of them. Raises MeritError if a
    record is unreadable.
    """
    todo = plan(experiment)
    trained = {
        branch.id: _branch(experiment, artifacts, branch, users)
        for branch in todo.branches.values()
        if (artifacts.branch(branch.id) / "summary.json").is_file()
        for users in [[model for model in todo.models.values() if branch.id in model.branches]]
    }
    scores = _optional(artifacts.evaluation / "scores.json").get("scores", {})
    held_out = study_folder(experiment.name, "held_out") / "result.json"
    told = _optional(held_out).get("summary", {})
    models: dict[Model, Run] = {}
    for model in todo.models.values():
        values = dict(scores.get(model.id, {}))
        values |= {"average": sum(values.values()) / len(values)} if values else {}
        for key in ("loss", "accuracy"):
            values |= {f"held_out_{key}": x for m, x in told.get(key, {}).items() if m == model.id}
        own = [trained[branch] for branch in model.branches if branch in trained]
        if run := _model(experiment, artifacts, model, own, values):
            models[model] = run
    times = (point.time for run in (*models.values(), *trained.values()) for point in run.points)
    # MLflow's tables begin with the newest runs: the methods, in the order of the report
    newest = max(times, default=0)
    methods = [
        _method(experiment, artifacts, key, models, newest - i)
        for i, key in enumerate(dict.fromkeys(map(_method_key, models)))
        if key
    ]
    return [*methods, *models.values(), *trained.values()]


def mixture(experiment: Experiment, artifacts: Artifacts) -> dict[str, str] | None:
    """What the branches train on, by MLflow's names for a dataset; None before it is written.

    The digest is that of the data's settings and of every task's name and number of examples.
    """
    if not (path := artifacts.mixture / "tasks.json").is_file():
        return None
    tasks = read_json(path)
    counts = {"num_tasks": len(tasks), "num_examples": sum(task["num_examples"] for task in tasks)}
    return {
        "name": f"{experiment.name}-mixture",
        "digest": value_hash([experiment.data.model_dump(mode="json"), tasks])[:16],
        "source_type": "local",
        "source": json.dumps({"uri": artifacts.data.as_posix()}),
        "profile": json.dumps(counts),
    }


def _branch(
    experiment: Experiment, artifacts: Artifacts, branch: Branch, models: Sequence[Model]
) -> Run:
    """A branch's run, below the first of the `models` that have it."""
    folder = artifacts.branch(branch.id)
    manifest_file = folder / "manifest.json"  # what it was trained by, not what is planned by now
    summary, manifest = read_json(folder / "summary.json"), read_json(manifest_file)
    params, tags = _settings_and_tags(experiment, models[0], branch.seed)
    hashes = {key: str(v) for key, v in (manifest | summary).items() if key.endswith("_hash")}
    tags |= {f"merit.{key}": value for key, value in hashes.items()} | {
        "merit.branch": branch.id,
        "merit.models": ", ".join(model.id for model in models),
        "merit.tasks": ", ".join(manifest.pop("tasks", [])),  # where too long, MLflow cuts it
        "merit.checkpoint": _checkpoint(folder, summary),
        "merit.failure": summary["failure"] or "",
    }
    timing = {row["step"]: row for row in _rows(artifacts.timing(branch.id))}
    rows = [timing.get(row["step"], {}) | row for row in _rows(folder / "records.jsonl")]
    points = _step_points(rows, artifacts.timing(branch.id))
    if "displacement" in summary:
        time = points[-1].time if points else 0
        points.append(Point("displacement", summary["displacement"], 0, time))
    params |= flatten({"manifest": manifest})
    files = {f"manifests/{branch.id}/manifest.json": manifest_file}
    # the id of a method's only branch reads like a model's
    name = branch.id if branch.num_groups > 1 else f"branch {branch.id}"
    return Run(f"branch/{branch.id}", name, models[0].id, params, tags, points, files)


def _model(
    experiment: Experiment,
    artifacts: Artifacts,
    model: Model,
    trained: Sequence[Run],
    values: Mapping[str, float],
) -> Run | None:
    """A model's run; None if there is nothing of it yet."""
    merged, records = artifacts.model(model.id), artifacts.base / "records.jsonl"
    merge = _optional(merged / "merge.json")
    steps = _step_points(_rows(records), records) if model.rule == "base" else []
    if not (trained or merge or steps or values):
        return None
    params, tags = _settings_and_tags(experiment, model, model.seed)
    counts = ("num_tokens", "num_loss_tokens", "weighted_by", "alpha")
    params |= flatten({"rule": model.rule, "num_branches": len(model.branches)})
    params |= flatten({key: merge[key] for key in counts if key in merge})
    hashes = {run.tags.get("merit.partition_hash", "") for run in trained} - {""}
    lineage = {
        "base_hash": _optional(artifacts.base / "base.json").get("base_hash"),
        "partition_hash": ", ".join(sorted(hashes)),
        "branches": ", ".join(run.tags["merit.branch"] for run in trained),
        "source": model.source,
        "match": model.match,
        "checkpoint_hash": merge.get("checkpoint_hash"),
        "checkpoint": _checkpoint(merged, merge),
        "failure": merge.get("failure"),
    }
    tags |= {f"merit.{key}": str(value) for key, value in lineage.items() if value}
    if "displacement" in merge:
        values = {**values, "displacement": merge["displacement"]}
    written = max(map(_modified, (merged / "merge.json", artifacts.evaluation / "scores.json")))
    last = max((point.time for run in trained for point in run.points), default=written)
    points = [*steps, *(Point(key, value, 0, last) for key, value in values.items())]
    parent = _method_key(model)
    name = model.id if parent is None else f"{model.method}, seed {model.seed}"
    files = {} if parent else _figures(artifacts)
    return Run(model.id, name, parent, params, tags, points, files)


def _method(
    experiment: Experiment, artifacts: Artifacts, key: str, models: Mapping[Model, Run], time: int
) -> Run:
    """A method's run: the mean of every metric over its models, and the loss of their branches."""
    mine = [model for model in models if _method_key(model) == key]
    params, tags = _settings_and_tags(experiment, mine[0], None)
    branches = dict.fromkeys(branch for model in mine for branch in model.branches)
    params |= flatten({"num_models": len(mine), "num_branches": len(mine[0].branches)})
    points = [point for model in mine for point in models[model].points]
    means = {
        name: float(np.mean([point.value for point in points if point.key == name]))
        for name in dict.fromkeys(point.key for point in points)
    }
    shown = [Point(name, value, 0, time) for name, value in means.items()]
    folders = [artifacts.branch(branch) for branch in branches]
    done = [_optional(folder / "summary.json") for folder in folders]
    if all(summary and not summary["failure"] for summary in done):  # half a curve is none
        curve = loss_by_epoch(
            [_rows(folder / "records.jsonl") for folder in folders],
            [read_json(folder / "manifest.json")["num_tokens"] for folder in folders],
        )
        shown += [Point("training_loss", loss, step, time) for step, loss in curve]
    name = mine[0].method
    return Run(key, name, None, params, tags, shown, _figures(artifacts))


def _figures(artifacts: Artifacts) -> dict[str, Path]:
    """The partition's and the scores' figures, as the report drew them."""
    found = (artifacts.report / "figures" / f"{name}.png" for name in FIGURES)
    return {f"figures/{path.name}": path for path in found if path.is_file()}


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
    epochs = [np.array([row["epoch"] for row in rows], dtype=float) for rows in branches]
    losses = [np.array([row["loss"] for row in rows], dtype=float) for rows in branches]
    first = math.ceil(round(max(e[0] for e in epochs) * steps_per_epoch, 6))
    last = math.ceil(round(max(e[-1] for e in epochs) * steps_per_epoch, 6))
    grid = np.arange(first, last + 1)
    mean = mean_loss(grid / steps_per_epoch, zip(epochs, losses, strict=True), num_tokens)
    return [(int(step), float(value)) for step, value in zip(grid, mean, strict=True)]


def mean_loss(
    epochs: np.ndarray,
    curves: Iterable[tuple[np.ndarray, np.ndarray]],
    num_tokens: Sequence[float],
) -> np.ndarray:
    """sum_k N_k loss_k(p) / sum_k N_k at every p of `epochs`; a curve is (epochs, losses)."""
    losses = np.stack([np.interp(epochs, *curve) for curve in curves])
    return np.asarray(np.average(losses, axis=0, weights=num_tokens))


def _settings_and_tags(
    experiment: Experiment, model: Model, seed: int | None
) -> tuple[dict[str, str], dict[str, str]]:
    """All settings that the run depends on, flattened, and the tags that every run has.

    `training.optimizer` is the run's own: the experiment's with what the method changes in it.
    Other methods' blocks and the report's are not among the settings, so that adding a method
    leaves the runs that exist as they are.
    """
    values = experiment.model_dump(mode="json", exclude=NOT_A_RUNS)
    own = every_method(experiment)[model.method].model_dump(
        mode="json", exclude={"seeds"}, exclude_defaults=True
    )
    values["training"]["optimizer"] |= own.get("optimizer", {})
    settings = flatten({**values, "method": {"name": model.method, **own}, "seed": seed})
    tags = {
        "merit.experiment": experiment.name,
        "merit.method": model.method,
        "merit.model": model.id,
        "merit.seed": "" if seed is None else str(seed),
        "merit.params_hash": value_hash(settings),
    }
    readiness = study_folder(experiment.name, "readiness") / "result.json"
    if "merge_ready" in (summary := _optional(readiness).get("summary", {})):
        tags["merit.merge_ready"] = str(summary["merge_ready"]).lower()
        tags["merit.readiness"] = str(summary["verdict"])
    return settings, tags


def _step_points(rows: Sequence[Row], written: Path) -> list[Point]:
    """The step metrics of records; rows of a phase of the base are named after the phase.

    Their times count back from when the file `written` was. (A file restored from a cache carries
    the time of its restoring; durations stay right.)
    """
    start = _modified(written) - int(1000 * rows[-1].get("seconds", 0)) if rows else 0
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
    return int(1000 * path.stat().st_mtime) if path.is_file() else 0


def _rows(path: Path) -> list[Row]:
    return read_jsonl(path) if path.is_file() else []


def _optional(path: Path) -> Row:
    return dict(read_json(path)) if path.is_file() else {}
