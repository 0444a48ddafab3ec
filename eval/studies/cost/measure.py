"""cost: wall-clock time of the method's steps beside joint training's (table 15).

The numbers are the seconds that the stages took when they last ran here (artifacts' `timings/`, and
every branch in it): they differ from run to run and from machine to machine. A stage
that DVC restored from its cache took no time here and has no file; its row says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merit.config import Experiment
from merit.config.branches import Model
from merit.errors import MeritError
from merit.eval.measuring.models import models_of
from merit.eval.measuring.scores import Row, columns, mean_interval, sample_std
from merit.eval.studies.cost import Cost
from merit.eval.verdict import Link, Verdict
from merit.io.artifacts import Artifacts, read_json, read_jsonl

TABLE = "table15_wall_clock"
RESTORED = "restored from the cache: no time taken here"
LOOPS = "only training loops: some stages were restored from the cache"
MERGES = "merges restored from the cache count nothing"
MAX_OVERHEAD = 0.25  # of joint training, what the claim calls small: table 15 has 24 % at 3B
STEPS = {
    "basin preparation": "base",
    "gradient extraction": "gradients",
    "cosine similarity matrix, pca, split": "partition",
}


@dataclass(frozen=True)
class Run:
    """Seconds of one model: of every branch, and of the merge, which takes a fraction of one.

    None where a time is unknown.
    """

    branches: list[float | None]
    merge: float | None

    @property
    def known(self) -> list[float]:
        """The branches' seconds; [] if one of them is unknown."""
        known = [seconds for seconds in self.branches if seconds is not None]
        return known if len(known) == len(self.branches) else []

    @property
    def total(self) -> float:
        return sum(self.known) + (self.merge or 0.0)

    @property
    def wall(self) -> float:
        return max(self.known) + (self.merge or 0.0)


def measure(experiment: Experiment, paths: Artifacts, settings: Cost) -> dict[str, Any]:
    """Table 15: means over a method's seeds.

    `seconds` is total compute (a method's branches added up, and its merge), `wall_seconds` the
    longest branch and the merge: the time on as many machines as there are branches.
    `overhead_percent` is 100 (method / joint - 1) of both sides' compute, the mean over common
    seeds, without gradients and partition, which are paid once per mixture;
    `first_overhead_percent` compares the means and counts them, too.
    Raises MeritError where the experiment has no such method.
    """
    models = {name: found for name, found in models_of(experiment).items() if found[0].branches}
    chosen = dict.fromkeys((settings.joint, *settings.methods))
    for method in chosen:
        if method not in models:
            raise MeritError(
                f"studies.cost: {method!r} is no method that trains branches; "
                f"there are {', '.join(models)}"
            )
    steps = [row(step, _stage_seconds(paths, stage)) for step, stage in STEPS.items()]
    branches = [branch for method in chosen for m in models[method] for branch in m.branches]
    # one basis for every method, so that loops are never compared with whole stages
    whole = all(_stage_seconds(paths, f"train-{branch}") is not None for branch in branches)
    runs = {m: {model.seed: _run(paths, model, whole) for model in models[m]} for m in chosen}
    rows = {method: method_row(method, list(runs[method].values()), whole) for method in chosen}
    joint, once = rows[settings.joint], [step["seconds"] for step in steps[1:]]
    shares: list[float] = []
    for method in settings.methods:
        pairs = [
            (run, runs[settings.joint][seed])
            for seed, run in runs[method].items()
            if seed in runs[settings.joint]
        ]
        shares = [a.total / b.total - 1 for a, b in pairs if a.known and b.known and b.total]
        if shares:
            rows[method]["overhead_percent"] = 100 * statistics.fmean(shares)
            if None not in once:
                total = rows[method]["seconds"] + sum(once)
                rows[method]["first_overhead_percent"] = 100 * (total / joint["seconds"] - 1)
    last = rows[settings.methods[-1]]
    interval = overhead_interval(shares)
    summary = {
        "method": settings.methods[-1],
        "joint": settings.joint,
        "whole_stages": whole,
        "joint_seconds": joint["seconds"],
        "gradient_seconds": once[0],
        "partition_seconds": once[1],
        **{key: last[key] for key in ("seconds", "wall_seconds", "first_overhead_percent")},
        "overhead_percent": {m: rows[m]["overhead_percent"] for m in settings.methods},
        **interval,
        "max_overhead": MAX_OVERHEAD,
        "overhead_verdict": overhead_verdict(interval),
    }
    return {"tables": {TABLE: steps + list(rows.values())}, "summary": summary}


def _stage_seconds(paths: Artifacts, name: str) -> float | None:
    """What the stage took when it last ran here; None where it did not."""
    path = paths.folder / "timings" / f"{name}.json"
    return float(read_json(path)["seconds"]) if path.is_file() else None


def _run(paths: Artifacts, model: Model, whole: bool) -> Run:
    """The times of one model: of whole stages, or of only the training loops."""

    def seconds(branch: str) -> float | None:
        if whole:
            return _stage_seconds(paths, f"train-{branch}")
        path = paths.timing(branch)
        records = read_jsonl(path) if path.is_file() else []
        return float(records[-1]["seconds"]) if records else None

    merge = _stage_seconds(paths, f"merge-{model.id}")
    return Run([seconds(branch) for branch in model.branches], merge)


def row(stage: str, seconds: float | None, **more: Any) -> Row:
    """A step that runs once, but for what `more` says."""
    return {
        "stage": stage,
        "seconds": seconds,
        "std": None,
        "wall_seconds": seconds,
        "branches": None,
        "runs": 0 if seconds is None else 1,
        "overhead_percent": None,
        "first_overhead_percent": None,
        "note": RESTORED if seconds is None else "",
    } | more


def method_row(method: str, runs: Sequence[Run], whole: bool) -> Row:
    """Branches + merge of one method, the mean over seeds whose branches' times are known."""
    stage, branches = f"{method}: branches + merge", len(runs[0].branches)
    known = [run for run in runs if run.known]
    if not known:
        return row(stage, None, branches=branches)
    totals = [run.total for run in known]
    notes = [] if whole else [LOOPS]
    notes += [MERGES] if any(run.merge is None for run in runs) else []
    return row(
        stage,
        statistics.fmean(totals),
        std=sample_std(totals),
        wall_seconds=statistics.fmean(run.wall for run in known),
        branches=branches,
        runs=len(known),
        note="; ".join(notes),
    )


def overhead_interval(shares: Sequence[float]) -> Row:
    """The mean over seeds with its t interval; no interval for one seed."""
    found = mean_interval(shares) if shares else None
    return columns("overhead_share", found) | {"num_seeds": len(shares)}


def overhead_verdict(found: Row) -> Verdict | None:
    """Whether the overhead is small; None without an interval: one seed's time says little."""
    low, high = found["overhead_share_low"], found["overhead_share_high"]
    if low is None:
        return None
    share, n = found["overhead_share"], found["num_seeds"]
    return Link("", share, n, low, high, bound=MAX_OVERHEAD, side="below").verdict
