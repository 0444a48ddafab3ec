"""cost: wall-clock time of the method's steps beside joint training's (table 15).

The numbers are the seconds that the stages took when they last ran here (artifacts' `timings/`, and
every branch in it): they differ from run to run and from machine to machine. A stage
that DVC restored from its cache took no time here and has no file; its row says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from merit.config import Experiment
from merit.config.branches import Model, plan
from merit.errors import MeritError
from merit.eval.measuring.means import mean_interval
from merit.eval.measuring.scores import Row
from merit.eval.studies.cost.settings import Cost
from merit.eval.verdict import Link, Verdict
from merit.io.artifacts import Artifacts, read_json, read_jsonl

TABLE = "table15_wall_clock"
RESTORED = "restored from the cache: no time taken here"
LOOPS = "only training loops: some stages were restored from the cache"
MAX_OVERHEAD = 0.25  # of joint training, what the claim calls small: table 15 has 24 % at 3B
Run = tuple[Sequence[float | None], float | None]  # seconds of every branch, of the merge


def measure(experiment: Experiment, paths: Artifacts, settings: Cost) -> dict[str, Any]:
    """Table 15: means over a method's seeds.

    `seconds` is total compute (a method's branches added up, and its merge), `wall_seconds` the
    longest branch and the merge: the time on as many machines as there are branches.
    `overhead_percent` is 100 (method / joint - 1) of both sides' compute, the mean over common
    seeds, without gradients and partition, which are paid once per mixture;
    `first_overhead_percent` compares the means and counts them, too.
    Raises MeritError where the experiment has no such method.
    """
    models: dict[str, list[Model]] = {}
    for model in plan(experiment).models.values():
        if model.branches:
            models.setdefault(model.method, []).append(model)
    for method in (settings.joint, *settings.methods):
        if method not in models:
            raise MeritError(
                f"studies.cost: {method!r} is no method that trains branches; "
                f"there are {', '.join(models)}"
            )
    steps = [
        stage_row(step, _stage_seconds(paths, stage))
        for step, stage in (
            ("basin preparation", "base"),
            ("gradient extraction", "gradients"),
            ("cosine similarity matrix, pca, split", "partition"),
        )
    ]
    chosen = {method: models[method] for method in (settings.joint, *settings.methods)}
    # one basis for every method, so that loops are never compared with whole stages
    whole = all(
        _stage_seconds(paths, f"train-{branch}") is not None
        for those in chosen.values()
        for model in those
        for branch in model.branches
    )
    runs = {
        method: {model.seed: _training(paths, model, whole) for model in those}
        for method, those in chosen.items()
    }
    rows = {
        method: method_row(method, list(those.values()), whole) for method, those in runs.items()
    }
    joint = rows[settings.joint]
    once = [row["seconds"] for row in steps[1:]]
    shares = {m: overheads(runs[m], runs[settings.joint]) for m in settings.methods}
    for method in settings.methods:
        add_overhead(rows[method], joint, once, shares[method])
    last = rows[settings.methods[-1]]
    summary = {
        "method": settings.methods[-1],
        "joint": settings.joint,
        "whole_stages": whole,
        "joint_seconds": joint["seconds"],
        "gradient_seconds": once[0],
        "partition_seconds": once[1],
        **{key: last[key] for key in ("seconds", "wall_seconds", "first_overhead_percent")},
        "overhead_percent": {m: rows[m]["overhead_percent"] for m in settings.methods},
        **overhead_interval(shares[settings.methods[-1]]),
        "max_overhead": MAX_OVERHEAD,
    }
    summary["overhead_verdict"] = overhead_verdict(summary)
    return {"tables": {TABLE: steps + list(rows.values())}, "summary": summary}


def _stage_seconds(paths: Artifacts, name: str) -> float | None:
    """What the stage took when it last ran here; None where it did not."""
    path = paths.folder / "timings" / f"{name}.json"
    return float(read_json(path)["seconds"]) if path.is_file() else None


def _loop_seconds(paths: Artifacts, branch: str) -> float | None:
    """Only the branch's training loop; None where it did not run here."""
    path = paths.timing(branch)
    records = read_jsonl(path) if path.is_file() else []
    return float(records[-1]["seconds"]) if records else None


def _training(paths: Artifacts, model: Model, whole: bool) -> Run:
    """(seconds of every branch, of the merge) of one model."""
    seconds = [
        _stage_seconds(paths, f"train-{branch}") if whole else _loop_seconds(paths, branch)
        for branch in model.branches
    ]
    return seconds, _stage_seconds(paths, f"merge-{model.id}")


def stage_row(step: str, seconds: float | None) -> Row:
    """A step that runs once."""
    return {
        "stage": step,
        "seconds": seconds,
        "std": None,
        "wall_seconds": seconds,
        "branches": None,
        "runs": 0 if seconds is None else 1,
        "overhead_percent": None,
        "first_overhead_percent": None,
        "note": RESTORED if seconds is None else "",
    }


def method_row(method: str, runs: Sequence[Run], whole: bool) -> Row:
    """Branches + merge of one method, from (seconds of the branches, of the merge) per seed.

    A seed with a branch of unknown time does not count. A merge of unknown time counts nothing: it
    takes a fraction of a second.
    """
    row = stage_row(f"{method}: branches + merge", None) | {"branches": len(runs[0][0])}
    known = [run for run in runs if compute(run) is not None]
    if not known:
        return row
    totals = [compute(run) or 0.0 for run in known]
    notes = [] if whole else [LOOPS]
    if any(merge is None for _, merge in runs):
        notes.append("merges restored from the cache count nothing")
    return row | {
        "seconds": statistics.fmean(totals),
        "std": statistics.stdev(totals) if len(totals) > 1 else None,
        "wall_seconds": statistics.fmean(max(b or 0.0 for b in bs) + (m or 0.0) for bs, m in known),
        "runs": len(known),
        "note": "; ".join(notes),
    }


def compute(run: Run) -> float | None:
    """Branches and merge added up; None where a branch's time is unknown."""
    branches, merge = run
    known = [seconds for seconds in branches if seconds is not None]
    return sum(known) + (merge or 0.0) if len(known) == len(branches) else None


def overheads(ours: Mapping[int | None, Run], joint: Mapping[int | None, Run]) -> list[float]:
    """method / joint - 1 of every common seed whose times are known on both sides."""
    pairs = [(compute(run), compute(joint[seed])) for seed, run in ours.items() if seed in joint]
    return [a / b - 1 for a, b in pairs if a is not None and b]


def overhead_interval(shares: Sequence[float]) -> Row:
    """The mean over seeds with its t interval; no interval for one seed."""
    found = mean_interval(shares) if shares else (None, None, None)
    names = ("overhead_share", "overhead_share_low", "overhead_share_high")
    return dict(zip(names, found, strict=True)) | {"num_seeds": len(shares)}


def add_overhead(
    row: Row, joint: Row, once: Sequence[float | None], shares: Sequence[float]
) -> None:
    """100 (method / joint - 1), without and with the steps that are paid once per mixture."""
    if not shares:
        return
    row["overhead_percent"] = 100 * statistics.fmean(shares)
    paid = [seconds for seconds in once if seconds is not None]
    if len(paid) == len(once):
        total = row["seconds"] + sum(paid)
        row["first_overhead_percent"] = 100 * (total / joint["seconds"] - 1)


def overhead_verdict(found: Row) -> Verdict | None:
    """Whether the overhead is small; None without an interval: one seed's time says little."""
    low, high = found["overhead_share_low"], found["overhead_share_high"]
    if low is None:
        return None
    share, n = found["overhead_share"], found["num_seeds"]
    return Link("", share, n, low, high, bound=MAX_OVERHEAD, side="below").verdict
