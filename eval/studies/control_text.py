"""What the study `control` says in words, generated from its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

WORDS = {"positive": "ahead", "negative": "behind", "undecided": "undecided"}
KINDS = {"closed": "closed", "open": "open-ended", "avg": "all"}  # benchmarks


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
        f"{row['model']} is {_points(row, 'minus_method')} from it ({_direction(row)})"
        for row in trained
        if row["model"] != found["method"]
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
        f"({_points(row, 'unscaled')} at c = 1, {_points(row, 'difference')} at the best c)"
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


def _points(row: Row, key: str) -> str:
    return f"{row[key]:+.1f} [{row[f'{key}_low']:+.1f}, {row[f'{key}_high']:+.1f}]"


def _direction(row: Row) -> str:
    if row["minus_method_low"] > 0:
        return WORDS["positive"]
    return WORDS["negative" if row["minus_method_high"] < 0 else "undecided"]
