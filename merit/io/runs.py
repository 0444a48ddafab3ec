"""What MLflow is to show, read from the records alone: one `Run` per model and per branch.

Nothing here knows MLflow; `merit.io.tracking` carries these runs into it. Which runs exist follows
from `merit.methods.plan`, never from what lies in a folder; what has not been run yet is left out.

A model (method and seed) is a parent run. Each of its branches is a child run; a branch that
several models share is a child of each, under the same `merit.branch` tag.

So that curves of models with different numbers of branches can be compared, a parent carries
`loss_by_epoch`: the mean of its branches' training losses at equal progress,

    loss_by_epoch(p) = sum_k N_k loss_k(p) / sum_k N_k,    MLflow step = percent of an epoch p,

N_k = tokens of branch k, loss_k linear between its logged steps (METHOD.md section 1, notation).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merit.config import Experiment
from merit.io.artifacts import REPORTS_DIR, Artifacts, read_json, read_jsonl, value_hash
from merit.methods import Branch, Model, Plan, plan

STEP_METRICS = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "num_tokens",
    "num_loss_tokens",
    "tokens_per_second",
    "epoch",  # an x-axis on which branches of different lengths line up
)
PARENT_NOTE = (
    "Scores are percent on the test split. `loss_by_epoch` is the token-weighted mean of the "
    "branches' training loss at equal progress; its step is the percentage of an epoch."
)
Row = dict[str, Any]


class Point(NamedTuple):
    """One value of one metric; `time` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class Run:
    """One MLflow run as the records describe it.

    `files` maps a path inside the run's artifacts to text or to a file on disk of the same
    name. `points` is a function because reading the records is only worth it where `content_hash`
    has changed.
    """

    key: str
    name: str
    parent: str | None
    live: bool
    params: dict[str, str]
    tags: dict[str, str]
    files: dict[str, Path | str]
    content_hash: str
    points: Callable[[], list[Point]] = field(compare=False)


def runs(experiment: Experiment, artifacts: Artifacts, *, live: bool = False) -> list[Run]:
    """Every run that has something to show, each parent before its children.

    With `live`, a branch without outputs but with a growing branches/.live/<branch>.jsonl is a
    run in progress. Raises MeritError where a record is not readable.
    """
    todo = plan(experiment)
    scores = _optional(artifacts.evaluation / "scores.json").get("scores", {})
    result: list[Run] = []
    for model in todo.models.values():
        children = [
            child
            for branch in model.branches
            if (child := _child(experiment, artifacts, model, todo.branches[branch], live))
        ]
        if (
            children
            or model.id in scores
            or (artifacts.model(model.id) / "merge.json").is_file()
            or (model.rule == "base" and (artifacts.base / "records.jsonl").is_file())
        ):
            result += [
                _parent(experiment, artifacts, model, todo, scores.get(model.id, {})),
                *children,
            ]
    return result


def keys(experiment: Experiment) -> set[str]:
    """The keys of all runs that the experiment's methods may have, run or not."""
    models = plan(experiment).models.values()
    return {m.id for m in models} | {_child_key(m, branch) for m in models for branch in m.branches}


def live_file(artifacts: Artifacts, branch: str) -> Path:
    """Where a running branch appends its step records."""
    return artifacts.branch(".live") / f"{branch}.jsonl"


# --- one run ------------------------------------------------------------------------------------


def _child_key(model: Model, branch: str) -> str:
    return f"{model.id}/{branch}"


def _child(
    experiment: Experiment, artifacts: Artifacts, model: Model, branch: Branch, live: bool
) -> Run | None:
    folder = artifacts.branch(branch.id)
    finished = (folder / "summary.json").is_file()
    running = live_file(artifacts, branch.id)
    if not finished and not (live and running.is_file()):
        return None
    sources = (
        [folder / name for name in ("records.jsonl", "timing.jsonl")] if finished else [running]
    )
    summary = _optional(folder / "summary.json")
    manifest = _optional(artifacts.manifest(branch.id))
    tasks = manifest.pop("tasks", [])
    tags = _common_tags(experiment, model) | {
        "merit.branch": branch.id,
        "merit.tasks": ", ".join(tasks),  # MLflow cuts it at its limit; the manifest has them all
        "merit.partition_hash": str(manifest.pop("partition_hash", "")),
        **{f"merit.{key}": str(value) for key, value in summary.items() if key.endswith("_hash")},
    }
    if finished:
        tags["merit.checkpoint"] = (folder / "model.safetensors").as_posix()
    params = _settings(experiment, model) | flatten({"manifest": manifest})

    def points() -> list[Point]:
        if finished:
            timing = {row["step"]: row for row in _rows(sources[1])}
            rows = [timing.get(row["step"], {}) | row for row in _rows(sources[0])]
        else:
            rows = _rows(running, growing=True)
        result = _step_points(rows, _start(sources[-1], rows))
        if "displacement" in summary:
            end = result[-1].time if result else 0
            result.append(Point("displacement", summary["displacement"], summary["num_steps"], end))
        return _finite(result)

    return Run(
        key=_child_key(model, branch.id),
        name=branch.id,
        parent=model.id,
        live=not finished,
        params=params,
        tags=tags,
        files={"manifest.json": artifacts.manifest(branch.id).read_text(encoding="utf-8")}
        if manifest
        else {},
        content_hash=_content_hash([params, tags, summary, not finished], sources),
        points=points,
    )


def _parent(
    experiment: Experiment,
    artifacts: Artifacts,
    model: Model,
    todo: Plan,
    scores: Mapping[str, float],
) -> Run:
    folder = artifacts.model(model.id)
    merge = _optional(folder / "merge.json")
    manifests = [_optional(artifacts.manifest(branch)) for branch in model.branches]
    done = all((artifacts.branch(b) / "summary.json").is_file() for b in model.branches)
    curves = [artifacts.branch(b) / "records.jsonl" for b in model.branches] if done else []
    base_records = artifacts.base / "records.jsonl"
    base_file = _optional(artifacts.base / "base.json").get("base_hash")
    tags = _common_tags(experiment, model) | {"mlflow.note.content": PARENT_NOTE}
    tags |= {"merit.branches": ", ".join(model.branches)} if model.branches else {}
    tags |= {"merit.base_hash": str(base_file)} if base_file else {}
    if hashes := sorted({str(m["partition_hash"]) for m in manifests if "partition_hash" in m}):
        tags["merit.partition_hash"] = ", ".join(hashes)
    if "checkpoint_hash" in merge:
        tags["merit.checkpoint_hash"] = merge["checkpoint_hash"]
        tags["merit.checkpoint"] = (folder / "model.safetensors").as_posix()
    params = _settings(experiment, model) | flatten(
        {
            "rule": model.rule,
            "num_branches": len(model.branches),
            **{
                key: merge[key]
                for key in ("num_tokens", "num_loss_tokens", "weighted_by", "alpha")
                if key in merge
            },
        }
    )
    files: dict[str, Path | str] = {
        f"figures/{path.name}": path
        for path in sorted((artifacts.report / "figures").glob("*.png"))
    }
    if any(manifests):
        files["partition.csv"] = _partition_table(manifests)
    values = {f"score/{benchmark}": value for benchmark, value in scores.items()}
    if scores:
        values["score/avg"] = sum(scores.values()) / len(scores)
    if "displacement" in merge:
        values["displacement"] = merge["displacement"]

    def points() -> list[Point]:
        result = [Point(key, value, 0, 0) for key, value in values.items()]
        if model.rule == "base" and base_records.is_file():
            rows = _rows(base_records)
            result += _step_points(rows, _start(base_records, rows))
        if curves:
            tokens = [m.get("num_tokens", 1) for m in manifests]
            curve = loss_by_epoch([_rows(path) for path in curves], tokens)
            start, end = _span([path.with_name("timing.jsonl") for path in curves])
            seconds = (end - start) / max((step for step, _ in curve), default=1)
            result += [
                Point("loss_by_epoch", value, step, int(1000 * (start + step * seconds)))
                for step, value in curve
            ]
        return _finite(result)

    sources = [*curves, *(path for path in files.values() if isinstance(path, Path))]
    if model.rule == "base":
        sources.append(base_records)
    return Run(
        key=model.id,
        name=model.id,
        parent=None,
        live=False,
        params=params,
        tags=tags,
        files=files,
        content_hash=_content_hash([params, tags, values, files.get("partition.csv")], sources),
        points=points,
    )


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
    """Token-weighted mean of the branches' losses on a common grid of epochs.

    From the first grid point at which every branch has logged to the last epoch of the longest
    branch; beyond its last record a branch keeps its last loss. Empty where a branch has no record.
    Returns (percent of an epoch, loss).
    """
    if not branches or not all(branches):
        return []
    epochs = [np.array([row["epoch"] for row in rows], dtype=float) for rows in branches]
    losses = [np.array([row["loss"] for row in rows], dtype=float) for rows in branches]
    first = math.ceil(round(max(e[0] for e in epochs) * steps_per_epoch, 6))
    last = math.ceil(round(max(e[-1] for e in epochs) * steps_per_epoch, 6))
    grid = np.arange(first, last + 1)
    curves = [np.interp(grid / steps_per_epoch, e, y) for e, y in zip(epochs, losses, strict=True)]
    mean = np.average(np.stack(curves), axis=0, weights=num_tokens)
    return [(int(step), float(value)) for step, value in zip(grid, mean, strict=True)]


def _settings(experiment: Experiment, model: Model) -> dict[str, str]:
    """All settings that the run depends on, flattened: other methods' blocks and the report's
    are not among them, so that adding a method leaves the runs that exist as they are."""
    values = experiment.model_dump(mode="json", exclude={"methods", "report"})
    own = experiment.methods[model.method].model_dump(mode="json", exclude={"seeds"})
    return flatten({**values, "method": {"name": model.method, **own}, "seed": model.seed})


def _readiness(experiment: str) -> dict[str, str]:
    """The verdict of the readiness study, where it has been run."""
    found = _optional(REPORTS_DIR / "studies" / experiment / "readiness" / "result.json")
    summary = found.get("summary", {})
    if "merge_ready" not in summary:
        return {}
    return {
        "merit.merge_ready": str(summary["merge_ready"]).lower(),
        "merit.readiness": str(summary["verdict"]),
    }


def _common_tags(experiment: Experiment, model: Model) -> dict[str, str]:
    settings = _settings(experiment, model)
    return _readiness(experiment.name) | {
        "merit.experiment": experiment.name,
        "merit.method": model.method,
        "merit.model": model.id,
        "merit.seed": "" if model.seed is None else str(model.seed),
        "merit.params_hash": value_hash(settings),
    }


def _partition_table(manifests: Iterable[Row]) -> str:
    """CSV: branch, group, task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["branch", "group", "task"])
    for manifest in manifests:
        for task in manifest.get("tasks", []):
            writer.writerow([manifest["branch"], manifest["group"], task])
    return text.getvalue()


def _step_points(rows: list[Row], start: float) -> list[Point]:
    """The step metrics of records; rows of a phase of the base are named after the phase."""
    return [
        Point(
            f"{row['phase']}/{key}" if "phase" in row else key,
            float(row[key]),
            int(row["step"]),
            int(1000 * (start + row.get("seconds", 0))),
        )
        for row in rows
        for key in STEP_METRICS
        if row.get(key) is not None
    ]


def _finite(points: list[Point]) -> list[Point]:
    """MLflow's stores do not give NaN and infinity back as they were; such values stay records."""
    return [point for point in points if math.isfinite(point.value)]


def _start(path: Path, rows: list[Row]) -> float:
    """When a run began: its last write less its duration. (A file restored from a cache carries
    the time of its restoring; durations stay right.)"""
    return path.stat().st_mtime - (rows[-1].get("seconds", 0) if rows else 0)


def _span(timings: list[Path]) -> tuple[float, float]:
    """From the first branch's start to the last branch's end, which a parent covers."""
    paths = [path for path in timings if path.is_file()]
    starts = [_start(path, _rows(path)) for path in paths]
    return min(starts, default=0), max((path.stat().st_mtime for path in paths), default=0)


def _rows(path: Path, growing: bool = False) -> list[Row]:
    """Records, [] without a file; of a file that is still being written, the complete lines."""
    if not path.is_file():
        return []
    if not growing:
        return read_jsonl(path)
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def _optional(path: Path) -> Row:
    value: Row = read_json(path) if path.is_file() else {}
    return value


def _content_hash(values: Any, sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(value_hash(values).encode())
    for path in sources:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def git_commit() -> str | None:
    """The commit that is checked out; None outside of a git repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
