"""mergers: post-hoc mergers on one method's branches, at default and at swept scale (table 12).

The paper runs every merger once, at its repository's defaults. A merger that sums displacements
where averaging averages them is then judged by its step length too, so here every merger, plain
averaging included, also gets the scale that suits it best: theta0 + scale (merged - theta0), the
scale chosen on the validation questions and judged on the test questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate, moved, score_candidates
from merit.eval.measuring.scores import (
    DIRECTIONS,
    Interval,
    Row,
    Scores,
    average,
    columns,
    difference,
    interval,
    num_questions,
    verdict,
)
from merit.eval.studies.mergers.settings import Mergers
from merit.io.artifacts import Artifacts, read_json

if TYPE_CHECKING:
    import torch

MERGERS = ("token-weighted", "uniform", "ties", "star", "tsv", "iso-c", "iso-cts")
REFERENCE = "token-weighted"
DEFAULT_SCALE = 1.0
NOTE = (
    "Defaults: TIES density 0.2 and scale 1 (trimmed over the whole model), STAR eta 0.4, TSV-M "
    "scale 1, Iso-C and Iso-CTS scale 1 (common share 0.8). Every matrix is merged by the rule, "
    "the token embedding included, as in the official code of TSV-M and Iso; vectors are averaged."
)


def merged_tensors(
    merger: str, base: Path, branches: Sequence[Path], merge_weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """The trained tensors after merging checkpoint files at the merger's default scale.

    TIES trims over the whole model, as its official code does: one threshold a branch.
    """
    from merit.io.checkpoints import Checkpoint, check_same_tensors
    from merit.merge import rules

    start = Checkpoint(base)
    parts = [Checkpoint(path) for path in branches]
    names = parts[0].names
    for part in parts:
        check_same_tensors(part, start, set(names))
    if merger == "token-weighted":
        rule = rules.average(names, parts, merge_weights)
    elif merger == "uniform":
        rule = rules.average(names, parts, [1 / len(parts)] * len(parts))
    else:
        rule = rules.post_hoc(merger, start, names, parts)
    return {name: rules.merged_tensor(start, rule, name) for name in names}


def measure(experiment: Experiment, paths: Artifacts, settings: Mergers) -> dict[str, Any]:
    """Validation scores over the scales; test scores at the default and at the chosen scale."""
    scales = sorted({*settings.scales, DEFAULT_SCALE})

    def candidate(merger: str, scale: float, seed: int) -> Candidate:
        record = _merge_record(paths, settings.method, seed)
        files = [paths.branch(branch) for branch in record["branches"]]

        def tensors() -> dict[str, torch.Tensor]:
            merged = merged_tensors(merger, paths.base, files, record["merge_weights"])
            # every merger is theta0 + scale * delta, so its other scales lie on the same line
            return moved(paths.base, merged, scale)

        return Candidate(_name(merger, scale, seed), tensors)

    def score(split: str, wanted: dict[str, list[float]]) -> dict[str, Scores]:
        models = [
            candidate(merger, scale, seed)
            for merger, chosen in wanted.items()
            for scale in chosen
            for seed in settings.seeds
        ]
        models.append(Candidate("base"))
        return score_candidates(experiment, paths, split, models, f"mergers, {split}")

    validation = score("validation", {merger: scales for merger in MERGERS})
    curves = {
        merger: [_average(validation, merger, scale, settings.seeds) for scale in scales]
        for merger in MERGERS
    }
    best = {merger: best_scale(scales, [v for v, _, _ in curves[merger]]) for merger in MERGERS}
    test = score("test", {merger: sorted({DEFAULT_SCALE, best[merger]}) for merger in MERGERS})
    rows = [
        table_row(merger, tuning, chosen, test, curves[merger][scales.index(chosen[merger])][0],
                  settings.seeds)
        for tuning, chosen in (("default", dict.fromkeys(MERGERS, DEFAULT_SCALE)), ("best", best))
        for merger in MERGERS
    ]  # fmt: skip
    base = {split: average([scores["base"]]) for split, scores in
            (("validation", validation), ("test", test))}  # fmt: skip
    return {
        "tables": {
            "table12_posthoc_merging_7b": rows,
            "mergers_scales": [
                {"merge": merger, "scale": scale, "validation": v, "low": low, "high": high}
                for merger, points in curves.items()
                for scale, (v, low, high) in zip(scales, points, strict=True)
            ],
        },
        "summary": summary(rows, base["test"], settings),
        "note": NOTE,
        "scales": scales,
        "curves": curves,
        "best": best,
        "base": base,
    }


def best_scale(scales: Sequence[float], averages: Sequence[float]) -> float:
    """The scale of the highest average; of equal ones the nearest to 1, then the smaller."""
    ranked = zip(averages, scales, strict=True)
    return min(ranked, key=lambda pair: (-pair[0], abs(math.log(pair[1])), pair[1]))[1]


def table_row(
    merger: str,
    tuning: str,
    chosen: dict[str, float],
    test: Mapping[str, Scores],
    validation: float,
    seeds: Sequence[int],
) -> Row:
    """One row of table 12, its difference to token-weighted averaging under the same tuning."""
    ours = [test[_name(merger, chosen[merger], seed)] for seed in seeds]
    theirs = [test[_name(REFERENCE, chosen[REFERENCE], seed)] for seed in seeds]
    mean, low, high = average(ours)
    return {
        "merge": merger,
        "tuning": tuning,
        "scale": chosen[merger],
        **{f"seed{s}": average([scores])[0] for s, scores in zip(seeds, ours, strict=True)},
        "mean": mean,
        "low": low,
        "high": high,
        **columns("difference", difference(ours, theirs)),
        "validation": validation,
        "num_questions": num_questions(ours[0]),
    }


def summary(rows: Sequence[Row], base: Interval, settings: Mergers) -> dict[str, Any]:
    """Which mergers token-weighted averaging beats, by tuning; the numbers behind the claim."""
    found: dict[str, Any] = {
        "method": settings.method,
        "seeds": settings.seeds,
        "num_questions": rows[0]["num_questions"],
        "base": base[0],
    }
    for row in rows:
        # the ledger reads the defaults' differences (merit.eval.report.claims_studies)
        tag = "" if row["tuning"] == "default" else "_best"
        if row["merge"] == REFERENCE:
            found[f"token_weighted{tag}"] = row["mean"]
            continue
        key = f"token_weighted_minus_{row['merge'].replace('-', '_')}{tag}"
        found |= {
            key: -row["difference"],
            f"{key}_low": -row["difference_high"],
            f"{key}_high": -row["difference_low"],
            f"{key}_n": row["num_questions"],
        }
    found["at_edge"] = at_edge(rows, settings)
    for tuning in ("default", "best"):
        for word, name in DIRECTIONS.items():  # of the merger
            found[f"{name}_{tuning}"] = [row["merge"] for row in _others(rows, tuning, word)]
    return found


def at_edge(rows: Sequence[Row], settings: Mergers) -> list[str]:
    """Mergers whose chosen scale is the sweep's smallest or largest: a wider one may do better."""
    scales = {*settings.scales, DEFAULT_SCALE}
    ends = (min(scales), max(scales))
    return [row["merge"] for row in rows if row["tuning"] == "best" and row["scale"] in ends]


def _others(rows: Sequence[Row], tuning: str, word: str) -> list[Row]:
    return [
        row
        for row in rows
        if row["tuning"] == tuning
        and row["merge"] != REFERENCE
        and verdict(interval(row, "difference")) == word
    ]


def _average(
    scores: Mapping[str, Scores], merger: str, scale: float, seeds: Sequence[int]
) -> Interval:
    return average([scores[_name(merger, scale, seed)] for seed in seeds])


def _name(merger: str, scale: float, seed: int) -> str:
    return f"{merger}-x{scale:g}-s{seed}"


def _merge_record(paths: Artifacts, method: str, seed: int) -> dict[str, Any]:
    """merge.json of the method's merged model: its branches and their merge weights."""
    record = read_json(paths.model(f"{method}-s{seed}") / "merge.json")
    if record["rule"] != "merge" or len(record["branches"]) < 2:
        raise MeritError(
            f"studies.mergers: {method}-s{seed} is not merged from branches; name such a method"
        )
    return record
