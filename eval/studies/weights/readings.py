"""The tables of the study `weights`, and its summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from merit.eval.measuring.scores import (
    Interval,
    Row,
    Scores,
    average,
    columns,
    difference,
    interval,
)
from merit.method.average import BUDGETS

READINGS = (*BUDGETS, "uniform")


def effective_branches(weights: Sequence[float]) -> float:
    """1 / sum_k w_k^2: K for uniform merge weights, 1 where one branch has all."""
    return 1 / sum(weight**2 for weight in weights)


def score_row(
    method: str,
    reading: str,
    own: str,
    scores: Mapping[str, Mapping[str, Sequence[Scores]]],
    joint: Sequence[Scores],
    random: str,
    weights: Sequence[Sequence[float]],
) -> Row:
    """One row of `merge_weights_scores`; `weights` are this reading's, seed by seed (S, K).

    `own` is the experiment's reading, `random` the method to compare with at equal K or "".
    """
    ours = scores[method][reading]
    flat = [weight for parts in weights for weight in parts]
    return {
        "method": method,
        "reading": reading,
        **dict(zip(("avg", "low", "high"), average(ours), strict=True)),
        **columns("minus_own", None if reading == own else difference(ours, scores[method][own])),
        **columns("minus_joint", difference(ours, joint)),
        "random": random or None,
        **columns("minus_random", difference(ours, scores[random][reading]) if random else None),
        "smallest_weight": min(flat),
        "largest_weight": max(flat),
        "effective_branches": sum(map(effective_branches, weights)) / len(weights),
        "num_branches": len(weights[0]),
    }


def summary(rows: Sequence[Row], own: str, joint: Interval, joint_name: str) -> dict[str, Any]:
    """Averages by method and reading, and by how much another reading than `own` changes them."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    by_name = {(row["method"], row["reading"]): row for row in rows}

    def by_reading(read: Callable[[Row], Any]) -> dict[str, dict[str, Any]]:
        return {
            method: {reading: read(by_name[method, reading]) for reading in READINGS}
            for method in methods
        }

    changes = {
        method: _change(
            max(
                (by_name[method, reading] for reading in READINGS if reading != own),
                key=lambda row: abs(row["minus_own"]),
            )
        )
        for method in methods
    }
    return {
        "own_reading": own,
        "joint": joint_name,
        "joint_average": joint,
        "averages": by_reading(lambda row: row["avg"]),
        "minus_joint": by_reading(lambda row: interval(row, "minus_joint")),
        "minus_random": by_reading(lambda row: interval(row, "minus_random")),
        "weight_range": by_reading(lambda row: (row["smallest_weight"], row["largest_weight"])),
        "changes": changes,
        "largest_change": max(changes.values(), key=lambda change: abs(change["difference"])),
    }


def _change(row: Row) -> dict[str, Any]:
    found = dict(zip(("difference", "low", "high"), interval(row, "minus_own"), strict=True))
    return {"method": row["method"], "reading": row["reading"], **found}
