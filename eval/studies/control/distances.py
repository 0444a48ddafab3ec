"""The tables of the study `control`, and what they say in words.

A point is theta0 + c (theta - theta0) for a model's theta; scores are kept under its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.measuring.scores import (
    DIRECTIONS,
    Interval,
    Row,
    Scores,
    average,
    columns,
    difference,
    interval,
    mean,
    only,
    points,
    verdict,
)
from merit.config.measurements import Control
from merit.methods import Model

Models = dict[str, list[Model]]  # method -> its models, seed by seed
Point = tuple[str, float]  # a model's id and its c
Pool = Mapping[str, Scores]  # scores by the name of a point

WHOLE = 1.0  # the c of the method as it is
KINDS = {"closed": "closed", "open": "open-ended", "avg": "all"}  # benchmarks, in words


def point_name(model: str, c: float) -> str:
    return f"{model}-c{c}"  # every digit: a matched c may lie close to another


def scores_at(pool: Pool, models: Sequence[Model], c: float) -> list[Scores]:
    return [pool[point_name(model.id, c)] for model in models]


def best_row(
    name: str,
    models: Sequence[Model],
    best: float,
    distances: Mapping[str, float],
    norm: float,
    validation: Pool,
    test: Pool,
    kinds: Mapping[str, Sequence[str]],
) -> Row:
    """One row of `control_best`; distances are means over seeds, `norm` is ||theta0||."""
    distance = _mean_distance(models, distances)
    scaled = scores_at(test, models, best)
    return {
        "method": f"{name}-scaled",
        "best_c": best,
        "distance": distance,
        "distance_best": best * distance,
        "relative_displacement": best * distance / norm,
        "validation": mean(scores_at(validation, models, WHOLE)),
        "validation_best": mean(scores_at(validation, models, best)),
        **columns("avg", average(scores_at(test, models, WHOLE))),
        **columns("avg_best", average(scaled)),
        **{f"{kind}_best": _mean_of(scaled, kinds.get(kind)) for kind in ("closed", "open")},
    }


def difference_row(
    claim: str, ours: str, theirs: str, models: Models, best: Mapping[str, float], test: Pool
) -> Row:
    """One row of `control_differences`: both at their own best distance, and both at c = 1."""
    scaled, whole = (
        difference(
            scores_at(test, models[ours], a),
            scores_at(test, models[theirs], b),
        )
        for a, b in ((best[ours], best[theirs]), (WHOLE, WHOLE))
    )
    return {
        "label": f"{claim} {ours} minus {theirs}",
        "claim": claim,
        "ours": f"{ours}-scaled",
        "theirs": f"{theirs}-scaled",
        **columns("difference", scaled),
        "verdict": verdict(scaled),
        **columns("unscaled", whole),
        "unscaled_verdict": verdict(whole),
    }


def equal_rows(
    settings: Control,
    models: Models,
    matched: Mapping[str, float],
    distances: Mapping[str, float],
    losses: Mapping[Point, float],
    test: Pool,
    kinds: Mapping[str, Sequence[str]],
) -> list[Row]:
    """`control_equal_distance`: joint, random and the method at its distance, and the base.

    Numbers are means over seeds; `minus_method` is the row minus the method.
    """
    parts: dict[str, list[Scores]] = {}
    measured: dict[str, Row] = {}
    for name in (settings.joint, settings.random, settings.method):
        points = [(model.id, matched[model.id]) for model in models[name]]
        parts[name] = [test[point_name(*point)] for point in points]
        measured[name] = {
            "distance": _mean([c * distances[model] for model, c in points]),
            "c": _mean([c for _, c in points]),
            "loss": _mean([losses[point] for point in points]),
        }
    parts["base"] = [test["base"]]
    measured["base"] = {"distance": 0.0, "c": 0.0, "loss": losses["base", 0.0]}
    rows = []
    for name, scores in parts.items():
        row = {"model": name, **measured[name], **columns("avg", average(scores))}
        for kind in ("closed", "open"):
            part = kinds.get(kind)
            row |= columns(kind, average(only(scores, part)) if part else None)
        itself = name == settings.method
        gap = None if itself else difference(scores, parts[settings.method])
        rows.append(row | columns("minus_method", gap))
    return rows


def path_rows(
    name: str,
    models: Sequence[Model],
    scales: Sequence[float],
    distances: Mapping[str, float],
    losses: Mapping[Point, float],
    validation: Pool,
    kinds: Mapping[str, Sequence[str]],
) -> list[Row]:
    """`control_path`: one method from the base (c = 0) on; scores and distance are seeds' means.

    The loss is that of the first seed's model, which lies at `loss_distance`; None for methods
    whose losses are not measured.
    """
    first = models[0].id
    rows = []
    for c in (0.0, *scales):
        scores = scores_at(validation, models, c) if c else [validation["base"]]
        rows.append(
            {
                "method": name,
                "c": c,
                "distance": c * _mean_distance(models, distances),
                "loss": losses.get((first, c) if c else ("base", 0.0)),
                "loss_distance": c * distances[first],
                "validation": mean(scores),
                **{kind: _mean_of(scores, kinds.get(kind)) for kind in ("closed", "open")},
            }
        )
    return rows


def summary(
    rows: Sequence[Row], gaps: Sequence[Row], equal: Sequence[Row], best: Mapping[str, float]
) -> dict[str, Any]:
    """What the README reads: best c, averages, C1 to C4, and all at one distance."""
    named = dict(zip(best, rows, strict=True))
    return {
        "best": dict(best),
        "averages": {name: _read(row, "avg_best") for name, row in named.items()},
        "averages_unscaled": {name: _read(row, "avg") for name, row in named.items()},
        "differences": {row["label"]: _read(row, "difference") for row in gaps},
        "differences_unscaled": {row["label"]: _read(row, "unscaled") for row in gaps},
        "verdicts": {row["label"]: row["verdict"] for row in gaps},
        "verdicts_unscaled": {row["label"]: row["unscaled_verdict"] for row in gaps},
        "equal_distance": {
            row["model"]: {key: row[key] for key in ("distance", "c", "loss")}
            | {key: _read(row, key) for key in ("avg", "closed", "open", "minus_method")}
            for row in equal
        },
    }


def _read(row: Row, key: str) -> Interval | None:
    return None if row[key] is None else interval(row, key)


def _mean_of(scores: Sequence[Scores], benchmarks: Sequence[str] | None) -> float | None:
    return mean(only(scores, benchmarks)) if benchmarks else None


def _mean_distance(models: Sequence[Model], distances: Mapping[str, float]) -> float:
    return _mean([distances[model.id] for model in models])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --- in words -----------------------------------------------------------------------------------


def text(gaps: Sequence[Row], equal: Sequence[Row], found: Mapping[str, Any]) -> str:
    """Who has what at one distance; what is left of C1 to C4 at every method's own distance."""
    return " ".join(
        [*_at_one_distance(equal, found), *_at_own_distance(gaps, found), _basis(found)]
    )


def fate(before: str, after: str) -> str:
    """A verdict at c = 1 beside the one at the best distances."""
    return f"stays {after}" if before == after else f"turns from {before} to {after}"


def _at_one_distance(equal: Sequence[Row], found: Mapping[str, Any]) -> list[str]:
    method = next(row for row in equal if row["model"] == found["method"])
    kinds = [kind for kind in KINDS if method[kind] is not None]
    if "open" not in kinds:
        kinds = ["avg"]  # closed benchmarks are all
    parts = []
    for row in equal:
        scores = ", ".join(f"{row[kind]:.1f} on {KINDS[kind]}" for kind in kinds)
        name = "the base" if row["model"] == "base" else f"{row['model']} (c = {row['c']:.2f})"
        parts.append(f"{name} has loss {row['loss']:.3f} and scores {scores}")
    trained = [row for row in equal if row["model"] != "base"]
    lowest = min(trained, key=lambda row: row["loss"])["model"]
    highest = ", ".join(
        f"{max(trained, key=lambda row: row[kind])['model']} on {KINDS[kind]}" for kind in kinds
    )
    gaps = " and ".join(
        f"{row['model']} is {points(gap)} from it ({DIRECTIONS[verdict(gap)]})"
        for row in trained
        if (gap := _read(row, "minus_method"))
    )
    return [
        f"At {found['method']}'s distance from the base ({method['distance']:.3g}, "
        f"{method['distance'] / found['norm_base']:.1%} of its norm), {'; '.join(parts)} "
        "benchmarks.",
        f"At this one distance {lowest} has the lowest loss; the highest average has {highest} "
        f"benchmarks. Against {found['method']} on all of them, {gaps}.",
    ]


def _at_own_distance(gaps: Sequence[Row], found: Mapping[str, Any]) -> list[str]:
    chosen = ", ".join(
        f"{name} {c:g} ({found['averages_unscaled'][name][0]:.1f} to "
        f"{found['averages'][name][0]:.1f})"
        for name, c in found["best"].items()
    )
    parts = [
        f"{row['label']} {fate(row['unscaled_verdict'], row['verdict'])} "
        f"({points(interval(row, 'unscaled'))} at c = 1, "
        f"{points(interval(row, 'difference'))} at the best c)"
        for row in gaps
    ]
    sentences = [
        f"The best c on the validation questions, with the test average from c = 1 to there: "
        f"{chosen}.",
        f"With every method at its own best distance, {'; '.join(parts)}.",
    ]
    if found["at_edge"]:
        sentences.append(
            f"The best c is an end of the grid for {', '.join(found['at_edge'])}: a wider grid may "
            "hold a better one."
        )
    return sentences


def _basis(found: Mapping[str, Any]) -> str:
    return (
        f"Differences in points with 95 % intervals, on {found['num_questions']} test questions, "
        f"{len(found['seeds'])} seed(s); losses on {found['num_examples']} examples of the mixture."
    )
