"""The tables of the study `control`, and its summary.

A point is theta0 + c (theta - theta0) for a model's theta; scores are kept under its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merit.config.branches import Model
from merit.eval.measuring.scores import (
    Interval,
    Row,
    Scores,
    average,
    columns,
    difference,
    interval,
    mean,
    only,
    verdict,
)
from merit.eval.studies.control import Control

Models = dict[str, list[Model]]  # method -> its models, seed by seed
Point = tuple[str, float]  # a model's id and its c
Pool = Mapping[str, Scores]  # scores by the name of a point

WHOLE = 1.0  # the c of the method as it is


def point_name(model: str, c: float) -> str:
    return f"{model}-c{c}"  # every digit: a matched c may lie close to another


def scores_at(pool: Pool, models: Sequence[Model], c: float) -> list[Scores]:
    return [pool[point_name(model.id, c)] for model in models]


@dataclass(frozen=True)
class Measured:
    """What was measured, of which the tables are made.

    `distances` and `matched` (the c at the method's distance) by model; `best` c by method; `norm`
    is ||theta0||; `kinds` the benchmarks that are "closed" and "open"-ended,
    which may be none.
    """

    models: Models
    distances: Mapping[str, float]
    matched: Mapping[str, float]
    losses: Mapping[Point, float]
    best: Mapping[str, float]
    validation: Pool
    test: Pool
    kinds: Mapping[str, Sequence[str]]
    norm: float

    def distance(self, name: str) -> float:
        return _mean(self.distances[model.id] for model in self.models[name])

    def by_kind(self, scores: Sequence[Scores], ending: str = "") -> Row:
        """The mean on either kind of benchmarks."""
        return {
            f"{kind}{ending}": mean(only(scores, part)) if part else None
            for kind, part in self.kinds.items()
        }

    def best_row(self, name: str) -> Row:
        """One row of `control_best`; distances are means over seeds."""
        models, best, distance = self.models[name], self.best[name], self.distance(name)
        scaled = scores_at(self.test, models, best)
        return {
            "method": f"{name}-scaled",
            "best_c": best,
            "distance": distance,
            "distance_best": best * distance,
            "relative_displacement": best * distance / self.norm,
            "validation": mean(scores_at(self.validation, models, WHOLE)),
            "validation_best": mean(scores_at(self.validation, models, best)),
            **columns("avg", average(scores_at(self.test, models, WHOLE))),
            **columns("avg_best", average(scaled)),
            **self.by_kind(scaled, "_best"),
        }

    def difference_row(self, claim: str, ours: str, theirs: str) -> Row:
        """One row of `control_differences`: both at their own best distance, and both at c = 1."""
        at, models = scores_at, self.models
        scaled, whole = (
            difference(at(self.test, models[ours], a), at(self.test, models[theirs], b))
            for a, b in ((self.best[ours], self.best[theirs]), (WHOLE, WHOLE))
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

    def equal_rows(self, settings: Control) -> list[Row]:
        """`control_equal_distance`: joint, random and the method at its distance, and the base.

        Numbers are means over seeds; `minus_method` is the row minus the method.
        """
        parts: dict[str, list[Scores]] = {}
        measured: dict[str, Row] = {}
        for name in (settings.joint, settings.random, settings.method):
            points = [(model.id, self.matched[model.id]) for model in self.models[name]]
            parts[name] = [self.test[point_name(*point)] for point in points]
            measured[name] = {
                "distance": _mean(c * self.distances[model] for model, c in points),
                "c": _mean(c for _, c in points),
                "loss": _mean(self.losses[point] for point in points),
            }
        parts["base"] = [self.test["base"]]
        measured["base"] = {"distance": 0.0, "c": 0.0, "loss": self.losses["base", 0.0]}
        rows = []
        for name, scores in parts.items():
            row = {"model": name, **measured[name], **columns("avg", average(scores))}
            for kind, part in self.kinds.items():
                row |= columns(kind, average(only(scores, part)) if part else None)
            itself = name == settings.method
            gap = None if itself else difference(scores, parts[settings.method])
            rows.append(row | columns("minus_method", gap))
        return rows

    def path_rows(self, name: str, scales: Sequence[float]) -> list[Row]:
        """`control_path`: one method from the base (c = 0) on; scores and distance are seeds'
        means.

        The loss is that of the first seed's model, which lies at `loss_distance`; None for methods
        whose losses are not measured.
        """
        models, pool, rows = self.models[name], self.validation, []
        first = models[0].id
        for c in (0.0, *scales):
            scores = scores_at(pool, models, c) if c else [pool["base"]]
            rows.append(
                {
                    "method": name,
                    "c": c,
                    "distance": c * self.distance(name),
                    "loss": self.losses.get((first, c) if c else ("base", 0.0)),
                    "loss_distance": c * self.distances[first],
                    "validation": mean(scores),
                    **self.by_kind(scores),
                }
            )
        return rows


def summary(
    rows: Sequence[Row], gaps: Sequence[Row], equal: Sequence[Row], best: Mapping[str, float]
) -> dict[str, Any]:
    """What the report reads: best c, averages, C1 to C4, and all at one distance.

    `highest_average` is of all benchmarks, and of closed and open-ended ones where there are both.
    """
    named = dict(zip(best, rows, strict=True))
    trained = [row for row in equal if row["model"] != "base"]
    kinds = ("avg",) if trained[0]["open"] is None else ("closed", "open", "avg")
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
        "equal_distance_verdicts": {
            row["model"]: verdict(gap) for row in trained if (gap := _read(row, "minus_method"))
        },
        "lowest_loss": min(trained, key=lambda row: row["loss"])["model"],
        "highest_average": {
            kind: max(trained, key=lambda row: row[kind])["model"]
            for kind in kinds
            if trained[0][kind] is not None
        },
    }


def _read(row: Row, key: str) -> Interval | None:
    return None if row[key] is None else interval(row, key)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
