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
from typing import TYPE_CHECKING, Any, get_args

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate, moved, score_candidates
from merit.eval.measuring.scores import (
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
from merit.eval.verdict import Direction
from merit.io.artifacts import Artifacts, read_json
from merit.method.mergers import by_publication

if TYPE_CHECKING:
    import torch

TABLE = "table12_posthoc_merging_7b"
MERGERS = ("token-weighted", "uniform", *by_publication())
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

    TIES trims over the whole model, as its official code does: one threshold per branch.
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
    scales, seeds = sorted({*settings.scales, DEFAULT_SCALE}), settings.seeds

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
            for seed in seeds
        ]
        models.append(Candidate("base", model="base"))
        return score_candidates(experiment, paths, split, models, f"mergers, {split}")

    validation = score("validation", dict.fromkeys(MERGERS, scales))
    curves = {
        merger: [average(_at(validation, merger, scale, seeds)) for scale in scales]
        for merger in MERGERS
    }
    best = {merger: best_scale(scales, [v for v, _, _ in curves[merger]]) for merger in MERGERS}
    test = score("test", {merger: sorted({DEFAULT_SCALE, best[merger]}) for merger in MERGERS})
    rows = [
        table_row(m, tuning, chosen, test, curves[m][scales.index(chosen[m])][0], seeds)
        for tuning, chosen in (("default", dict.fromkeys(MERGERS, DEFAULT_SCALE)), ("best", best))
        for m in MERGERS
    ]
    base = {"validation": average([validation["base"]]), "test": average([test["base"]])}
    by_scale = [
        {"merge": merger, "scale": scale, "validation": v, "low": low, "high": high}
        for merger, points in curves.items()
        for scale, (v, low, high) in zip(scales, points, strict=True)
    ]
    return {
        "tables": {TABLE: rows, "mergers_scales": by_scale},
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
    ours, theirs = (_at(test, m, chosen[m], seeds) for m in (merger, REFERENCE))
    return {
        "merge": merger,
        "tuning": tuning,
        "scale": chosen[merger],
        **{f"seed{s}": average([scores])[0] for s, scores in zip(seeds, ours, strict=True)},
        **dict(zip(("mean", "low", "high"), average(ours), strict=True)),
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
        # the claims read the defaults' differences (merit.eval.report.study_rules)
        tag = "" if row["tuning"] == "default" else "_best"
        if row["merge"] == REFERENCE:
            found[f"token_weighted{tag}"] = row["mean"]
            continue
        key = f"token_weighted_minus_{row['merge'].replace('-', '_')}{tag}"
        value, low, high = interval(row, "difference")
        found |= columns(key, (-value, -high, -low)) | {f"{key}_n": row["num_questions"]}
    found["at_edge"] = at_edge(rows, settings)
    for tuning in ("default", "best"):
        others = [r for r in rows if r["tuning"] == tuning and r["merge"] != REFERENCE]
        for word in get_args(Direction):  # of the merger
            found[f"{word}_{tuning}"] = [
                row["merge"] for row in others if verdict(interval(row, "difference")) == word
            ]
    return found


def at_edge(rows: Sequence[Row], settings: Mergers) -> list[str]:
    """Mergers whose chosen scale is the sweep's smallest or largest: a wider one may do better."""
    scales = {*settings.scales, DEFAULT_SCALE}
    ends = (min(scales), max(scales))
    return [row["merge"] for row in rows if row["tuning"] == "best" and row["scale"] in ends]


def _at(
    scores: Mapping[str, Scores], merger: str, scale: float, seeds: Sequence[int]
) -> list[Scores]:
    return [scores[_name(merger, scale, seed)] for seed in seeds]


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
