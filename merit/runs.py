"""What MLflow is to show, read from the records alone: a `Run` for every model and every branch.

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
from merit.io.artifacts import REPORTS_DIR, Artifacts, read_json, read_jsonl, value_hash

STEP_METRICS = (
    *("loss", "learning_rate", "gradient_norm", "num_tokens", "num_loss_tokens"),
    "tokens_per_second",
    "epoch",  # an x-axis on which branches of different lengths line up
)
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
    """One MLflow run: a model, with those of its `branches` that have been trained, or a branch.

    `key`, `parent` and `branches` are keys: a model's id, or branch/<id>, since a branch may bear a
    model's name. `files` maps a path inside the run's artifacts to a file of the same name.
    """

    key: str
    name: str
    parent: str | None
    branches: tuple[str, ...]
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
    return {*todo.models, *(f"branch/{branch}" for branch in todo.branches)}


def runs(experiment: Experiment, artifacts: Artifacts) -> list[Run]:
    """Every run that has something to show; a branch that several models share is one run.

    Raises MeritError where a record is not readable.
    """
    todo = plan(experiment)
    scores = _optional(artifacts.evaluation / "scores.json").get("scores", {})
    branches = {}
    for branch in todo.branches.values():
        if (artifacts.branch(branch.id) / "summary.json").is_file():
            models = [model for model in todo.models.values() if branch.id in model.branches]
            branches[branch.id] = _branch(experiment, artifacts, branch, models)
    result = []
    for model in todo.models.values():
        trained = [branches[branch] for branch in model.branches if branch in branches]
        merged = (artifacts.model(model.id) / "merge.json").is_file()
        built = model.rule == "base" and (artifacts.base / "records.jsonl").is_file()
        if trained or merged or built or model.id in scores:
            result.append(_model(experiment, artifacts, model, trained, scores.get(model.id, {})))
    return [*result, *branches.values()]


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
        points.append(Point("displacement", summary["displacement"], summary["num_steps"], time))
    params |= flatten({"manifest": manifest})
    files = {f"manifests/{branch.id}/manifest.json": manifest_file}
    return Run(f"branch/{branch.id}", branch.id, models[0].id, (), params, tags, points, files)


def _model(
    experiment: Experiment,
    artifacts: Artifacts,
    model: Model,
    trained: Sequence[Run],
    scores: Mapping[str, float],
) -> Run:
    merged, records = artifacts.model(model.id), artifacts.base / "records.jsonl"
    merge = _optional(merged / "merge.json")
    params, tags = _settings_and_tags(experiment, model, model.seed)
    counts = ("num_tokens", "num_loss_tokens", "weighted_by", "alpha")
    params |= flatten({"rule": model.rule, "num_branches": len(model.branches)})
    params |= flatten({key: merge[key] for key in counts if key in merge})
    hashes = {run.tags.get("merit.partition_hash", "") for run in trained} - {""}
    lineage = {
        "base_hash": _optional(artifacts.base / "base.json").get("base_hash"),
        "partition_hash": ", ".join(sorted(hashes)),
        "source": model.source,
        "match": model.match,
        "checkpoint_hash": merge.get("checkpoint_hash"),
        "checkpoint": _checkpoint(merged, merge),
        "failure": merge.get("failure"),
    }
    tags |= {f"merit.{key}": str(value) for key, value in lineage.items() if value}
    points = _step_points(_rows(records), records) if model.rule == "base" else []
    times = [point.time for run in trained for point in run.points]
    written = max(map(_modified, (merged / "merge.json", artifacts.evaluation / "scores.json")))
    first, last = min(times, default=0), max(times, default=written)
    if len(trained) == len(model.branches) and not merge.get("failure"):  # half a curve is none
        folders = [artifacts.branch(branch) for branch in model.branches]
        curve = loss_by_epoch(
            [_rows(folder / "records.jsonl") for folder in folders],
            [read_json(folder / "manifest.json")["num_tokens"] for folder in folders],
        )
        for (step, loss), time in zip(curve, np.linspace(first, last, len(curve)), strict=True):
            points.append(Point("loss_by_epoch", loss, step, int(time)))
    values = {f"score/{benchmark}": score for benchmark, score in scores.items()}
    values |= {"score/avg": sum(scores.values()) / len(scores)} if scores else {}
    values |= {"displacement": merge["displacement"]} if "displacement" in merge else {}
    points += [Point(key, value, 0, last) for key, value in values.items()]
    files = {f"figures/{p.name}": p for p in (artifacts.report / "figures").glob("*.png")}
    files |= {name: path for run in trained for name, path in run.files.items()}
    branches = tuple(run.key for run in trained)
    return Run(model.id, model.id, None, branches, params, tags, points, files)


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
    readiness = REPORTS_DIR / "studies" / experiment.name / "readiness" / "result.json"
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
