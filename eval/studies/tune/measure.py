"""tune: learning rate and batch size by the rule of docs/regime.md.

Of the settings at which the base is merge-ready (the four conditions of the study `readiness`), the
one with joint training's best validation average. Joint training and random splits decide; no MERIT
model is looked at, and neither is the test split. The choice is two lines in the YAML.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Experiment, combinations, suffix
from merit.config.branches import plan
from merit.config.measurements import Readiness, Tune
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate, score_candidates
from merit.eval.measuring.geometry import Split, conditions, geometry, of_kind
from merit.eval.measuring.loss_meter import (
    Meter,
    base_vector,
    branch_vectors,
    model_vector,
    open_meter,
)
from merit.eval.measuring.scores import Row, Scores, difference, mean
from merit.io.artifacts import Artifacts, read_json

Point = dict[str, Any]  # the optimiser's keys in which a point differs from the experiment's own


def measure(experiment: Experiment, paths: Artifacts, settings: Tune) -> dict[str, Any]:
    """The grid: what decides merge-readiness at every point, joint training's scores, a choice."""
    readiness = experiment.studies.readiness
    sweep = experiment.sweeps.get(settings.sweep)
    for key, value in ((f"sweeps.{settings.sweep}", sweep), ("studies.readiness", readiness)):
        if value is None:
            raise MeritError(
                f"experiments/{experiment.name}.yaml: key `{key}` is missing: nothing to search"
            )
    assert sweep is not None
    assert readiness is not None
    grid = {
        name: models
        for point in combinations(sweep, experiment.training.optimizer)
        if (models := models_at(experiment, paths, readiness, sweep.seeds, point)) is not None
        for name in [label(experiment, point)]
    }
    if not grid:
        raise MeritError(
            f"experiments/{experiment.name}.yaml: key `sweeps.{settings.sweep}.learning_rate`: at "
            "no point of the grid did every training stay finite; give smaller rates"
        )
    asked = dict.fromkeys(m for found in grid.values() for some in found.values() for m in some)
    candidates = [Candidate(model, functools.partial(_tensors, paths, model)) for model in asked]
    scores = score_candidates(experiment, paths, "validation", candidates, "tune")
    meter = open_meter(experiment, paths, readiness.num_examples)
    rows = [
        grid_row(experiment, paths, meter, readiness, name, found, scores)
        for name, found in grid.items()
    ]
    best = choose(rows)
    chosen = "none is merge-ready" if best is None else best["setting"]
    return {
        "tables": {"tune": rows},
        "summary": {
            "chosen": chosen,
            "num_points": len(rows),
            "seeds": sweep.seeds,
            **readiness.model_dump(include={"joint", "random", "num_examples"}),
        },
    }


def models_at(
    experiment: Experiment,
    paths: Artifacts,
    readiness: Readiness,
    seeds: Sequence[int],
    point: Point,
) -> dict[str, list[str]] | None:
    """{"joint" and "random": model ids} at a point of the grid; None where one diverged."""
    models = {
        key: [f"{getattr(readiness, key)}{suffix(point)}-s{seed}" for seed in seeds]
        for key in ("joint", "random")
    }
    records = [read_json(paths.model(m) / "merge.json") for some in models.values() for m in some]
    return None if any(record["failure"] for record in records) else models


def label(experiment: Experiment, point: Point) -> str:
    optimizer = experiment.training.optimizer.model_copy(update=point)
    return f"lr {optimizer.learning_rate:g}, batch {optimizer.batch_size}"


def grid_row(
    experiment: Experiment,
    paths: Artifacts,
    meter: Meter,
    readiness: Readiness,
    name: str,
    models: Mapping[str, Sequence[str]],
    scores: Mapping[str, Scores],
) -> Row:
    """One point of the grid: what the four conditions say, and joint training's average."""
    planned = plan(experiment).models
    splits = [
        Split(m, branch_vectors(meter, paths, planned[m]), model_vector(meter, paths, m))
        for m in models["random"]
    ]
    joints = {m: model_vector(meter, paths, m) for m in models["joint"]}
    base = base_vector(meter, paths)
    found = geometry(meter, base, joints, splits, readiness.num_points)
    ours, theirs = ([scores[m] for m in models[key]] for key in ("random", "joint"))
    a, b, c, d = conditions(found, difference(ours, theirs), readiness.thresholds)
    branches = of_kind(found, "branch", "loss")
    return {
        "setting": name,
        "joint_displacement": c["value"],
        "loss_base": of_kind(found, "base", "loss")[0],
        "loss_joint": float(np.mean(of_kind(found, "joint", "loss"))),
        "loss_branches_min": min(branches),
        "loss_branches_max": max(branches),
        "loss_merged": float(np.mean(of_kind(found, "merged", "loss"))),
        "barrier_share": a["value"],
        "worst_branch_over_base": b["value"],
        "random_minus_joint": d["value"],
        "random_minus_joint_low": d["low"],
        "random_minus_joint_high": d["high"],
        "merge_ready": all(condition["holds"] for condition in (a, b, c, d)),
        "joint_avg": mean(theirs),
        **{
            f"joint_{b}": mean([{b: s[b]} for s in theirs])
            for b in experiment.evaluation.benchmarks
        },
    }


def choose(rows: Sequence[Row]) -> Row | None:
    """The rule: of the merge-ready points, joint training's best average. None where none is."""
    ready = [row for row in rows if row["merge_ready"]]
    return max(ready, key=lambda row: row["joint_avg"], default=None)


def _tensors(paths: Artifacts, model: str) -> Mapping[str, Any]:
    from merit.io.checkpoints import Checkpoint

    path: Path = paths.model(model)
    return dict(Checkpoint(path).items())
