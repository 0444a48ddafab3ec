"""mergers: post-hoc mergers on one method's branches, at default and at swept scale (table 12).

The paper runs every merger once, at its repository's defaults. A merger that sums displacements
where averaging averages them is then judged by its step length too, so here every merger, plain
averaging included, also gets the scale that suits it best: theta0 + scale (merged - theta0), the
scale chosen on the validation questions and judged on the test questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.config import Experiment
from merit.config.branches import Model
from merit.eval.measuring.candidates import Candidate, moved, score_candidates
from merit.eval.measuring.models import branch_folders, merge_record, planned_models
from merit.eval.measuring.scores import (
    Row,
    Scores,
    average,
    columns,
    difference,
    interval,
    num_questions,
    verdict,
)
from merit.eval.studies.mergers import Mergers
from merit.eval.verdict import DIRECTIONS
from merit.io.artifacts import Artifacts
from merit.method.mergers import by_publication

if TYPE_CHECKING:
    import torch

TABLE = "table12_posthoc_merging_7b"
MERGERS = ("token-weighted", "uniform", *by_publication())
REFERENCE = "token-weighted"
DEFAULT_SCALE = 1.0
Pool = dict[tuple[str, float], list[Scores]]  # (merger, scale) -> scores, seed by seed
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
    models = planned_models(experiment, "mergers.method", settings.method, seeds, 2)

    def candidate(merger: str, scale: float, model: Model) -> Candidate:
        def tensors() -> dict[str, torch.Tensor]:
            weights = merge_record(paths, model.id)["merge_weights"]
            merged = merged_tensors(merger, paths.base, branch_folders(paths, model), weights)
            # every merger is theta0 + scale * delta, so its other scales lie on the same line
            return moved(paths.base, merged, scale)

        return Candidate(_name(merger, scale, model.seed), tensors)

    def score(split: str, wanted: dict[str, list[float]]) -> Pool:
        points = [(merger, scale) for merger, chosen in wanted.items() for scale in chosen]
        every = [candidate(*point, model) for point in points for model in models]
        every.append(Candidate("base", model="base"))
        found = score_candidates(experiment, paths, split, every, f"mergers, {split}")
        pool = {point: [found[_name(*point, seed)] for seed in seeds] for point in points}
        return pool | {("base", 0.0): [found["base"]]}

    validation = score("validation", dict.fromkeys(MERGERS, scales))
    curves = {m: [average(validation[m, scale]) for scale in scales] for m in MERGERS}
    best = {merger: best_scale(scales, [v for v, _, _ in curves[merger]]) for merger in MERGERS}
    test = score("test", {merger: sorted({DEFAULT_SCALE, best[merger]}) for merger in MERGERS})
    rows: list[Row] = []
    for tuning, chosen in (("default", dict.fromkeys(MERGERS, DEFAULT_SCALE)), ("best", best)):
        for merger, scale in chosen.items():
            ours, theirs = test[merger, scale], test[REFERENCE, chosen[REFERENCE]]
            by_seed = zip(seeds, ours, strict=True)
            rows.append(
                {
                    "merge": merger,
                    "tuning": tuning,
                    "scale": scale,
                    **{f"seed{seed}": average([scores])[0] for seed, scores in by_seed},
                    **dict(zip(("mean", "low", "high"), average(ours), strict=True)),
                    **columns("difference", difference(ours, theirs)),
                    "validation": curves[merger][scales.index(scale)][0],
                    "num_questions": num_questions(ours[0]),
                }
            )
    base = {"validation": average(validation["base", 0.0]), "test": average(test["base", 0.0])}
    by_scale = [
        {"merge": merger, "scale": scale, "validation": v, "low": low, "high": high}
        for merger, points in curves.items()
        for scale, (v, low, high) in zip(scales, points, strict=True)
    ]
    return {
        "tables": {TABLE: rows, "mergers_scales": by_scale},
        "summary": summary(rows, base["test"][0], settings)
        | {"at_edge": [merger for merger, c in best.items() if c in (scales[0], scales[-1])]},
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


def summary(rows: Sequence[Row], base: float, settings: Mergers) -> dict[str, Any]:
    """Which mergers token-weighted averaging beats, by tuning; the numbers behind the claim."""
    found: dict[str, Any] = {
        "method": settings.method,
        "seeds": settings.seeds,
        "num_questions": rows[0]["num_questions"],
        "base": base,
    }
    found |= {f"{word}_{tuning}": [] for tuning in ("default", "best") for word in DIRECTIONS}
    for row in rows:
        # the claims read the defaults' differences (merit.eval.report.study_rules)
        tag = "" if row["tuning"] == "default" else "_best"
        if row["merge"] == REFERENCE:
            found[f"token_weighted{tag}"] = row["mean"]
            continue
        key = f"token_weighted_minus_{row['merge'].replace('-', '_')}{tag}"
        value, low, high = interval(row, "difference")
        found |= columns(key, (-value, -high, -low)) | {f"{key}_n": row["num_questions"]}
        found[f"{verdict((value, low, high))}_{row['tuning']}"].append(row["merge"])
    return found


def _name(merger: str, scale: float, seed: int | None) -> str:
    return f"{merger}-x{scale:g}-s{seed}"
