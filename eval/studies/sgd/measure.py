"""sgd: joint training and MERIT under SGD without momentum over learning rates (table 18)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from merit.config import Experiment, Sweep, combinations, suffix
from merit.errors import MeritError
from merit.eval.answering.answers import stored_questions
from merit.eval.measuring.models import merge_record
from merit.eval.measuring.scores import (
    Row,
    Scores,
    average,
    columns,
    difference,
    interval,
    num_questions,
    only,
    rate_label,
    verdict,
)
from merit.eval.studies.sgd import Sgd
from merit.io.artifacts import Artifacts

Point = tuple[str, float]  # method, learning rate


def measure(experiment: Experiment, paths: Artifacts, settings: Sgd) -> dict[str, Any]:
    """The sweep's models, as the pipeline trained, merged and scored them."""
    sweep, reference = check_sweep(experiment, settings)
    own, seed = experiment.training.optimizer, sweep.seeds[0]
    # what the sweep's methods are called at each rate: only what differs is a part of the name
    tags = {
        point.get("learning_rate", own.learning_rate): suffix(point)
        for point in combinations(sweep, own)
    }
    rates = sorted(tags)

    def read(model: str) -> Scores:
        return only([stored_questions(paths, model)], experiment.table_benchmarks)[0]

    base = read("base")
    names = {(m, rate): f"{m}{tags[rate]}-s{seed}" for m, rate in product(sweep.methods, rates)}
    records = {point: merge_record(paths, model) for point, model in names.items()}
    # without those that did not stay finite
    scores = {p: read(model) for p, model in names.items() if records[p]["failure"] is None}
    rows: list[Row] = []
    for (method, rate), record in records.items():
        ours, theirs = scores.get((method, rate)), scores.get((reference, rate))
        rows.append(
            {
                "method": method,
                "learning_rate": rate,
                **columns("avg", average([ours]) if ours else None),
                **columns("minus_joint", difference([ours], [theirs]) if ours and theirs else None),
                **columns("minus_base", difference([ours], [base]) if ours else None),
                "displacement": record["displacement"] if ours else None,
                "num_questions": num_questions(base),
            }
        )
    at_base = average([base])
    return {
        "tables": {"table18_sgd_lr_sweep": paper_table(rows, at_base[0], rates), "sgd_sweep": rows},
        "summary": summary(experiment, rows, scores, sweep, reference, at_base[0]),
        "methods": sweep.methods,
        "learning_rates": rates,
        "base": at_base,
    }


def check_sweep(experiment: Experiment, settings: Sgd) -> tuple[Sweep, str]:
    """The sweep, and the joint method that the others are held against.

    Raises MeritError where it is no SGD sweep of trained methods with joint training among them.
    """
    where = f"experiments/{experiment.name}.yaml: key `studies.sgd.sweep`: {settings.sweep!r}"
    sweep = experiment.sweeps.get(settings.sweep)
    if sweep is None or sweep.algorithm != "sgd" or not sweep.learning_rate:
        raise MeritError(f"{where} is no sweep of `algorithm: sgd` over learning rates; name one")
    for name in sweep.methods:
        if not experiment.methods[name].trained:
            raise MeritError(f"{where}: {name!r} trains nothing; leave it out of the sweep")
    joint = [m for m in sweep.methods if experiment.methods[m].partition == "joint"]
    if not joint:
        raise MeritError(f"{where} has no joint method to compare with; add one")
    return sweep, "joint-1ep" if "joint-1ep" in joint else joint[0]


def paper_table(rows: Sequence[Row], base: float, rates: Sequence[float]) -> list[Row]:
    """Table 18: a row per method, a column per learning rate; the base in every column."""
    table: dict[str, Row] = {
        "base": {"method": "base", **{rate_label(rate): base for rate in rates}}
    }
    for row in rows:
        line = table.setdefault(row["method"], {"method": row["method"]})
        line[rate_label(row["learning_rate"])] = row["avg"]
    return list(table.values())


def summary(
    experiment: Experiment,
    rows: Sequence[Row],
    scores: Mapping[Point, Scores],
    sweep: Sweep,
    reference: str,
    base: float,
) -> Row:
    """C16: does merging help at the largest rate, and does the deepest split fall at the smallest?

    "Best" at the largest rate is the best by these very questions, so its interval flatters it.
    """
    known = {name: experiment.methods[name] for name in sweep.methods}
    merit = {n: m.axes for n, m in known.items() if m.partition == "merit" and m.axes}
    rates = sorted({row["learning_rate"] for row in rows})
    found: Row = {
        "reference": reference,
        "seed": sweep.seeds[0],
        "smallest_rate": rates[0],
        "largest_rate": rates[-1],
        "num_questions": rows[0]["num_questions"],
        "base": base,
    }

    def compare(key: str, rate: float, ours: str, theirs: str) -> None:
        a, b = scores.get((ours, rate)), scores.get((theirs, rate))
        if a and b:
            found.update(columns(key, difference([a], [b])))
            found[f"{key}_n"] = rows[0]["num_questions"]

    averages = {row["method"]: row["avg"] for row in rows if row["learning_rate"] == rates[-1]}
    finite = {name: averages[name] for name in merit if averages[name] is not None}
    if finite:
        best = max(finite, key=lambda name: finite[name])
        found["best_at_largest_rate"] = best
        compare("gain_at_largest_rate", rates[-1], best, reference)
    if len(merit) > 1:
        most, fewest = max(merit, key=lambda m: merit[m]), min(merit, key=lambda m: merit[m])
        compare("collapse_at_smallest_rate", rates[0], most, fewest)
    for method in merit:
        mine = [row for row in rows if row["method"] == method and row["minus_joint"] is not None]
        for word in ("ahead", "behind"):
            found[f"{word}_{method}"] = [
                row["learning_rate"]
                for row in mine
                if verdict(interval(row, "minus_joint")) == word
            ]
    return found
