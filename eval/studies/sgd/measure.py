"""sgd: joint training and MERIT under SGD without momentum over learning rates (table 18)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from merit.config import Experiment, Sweep, combinations, suffix
from merit.errors import MeritError
from merit.eval.answering.answers import stored_questions
from merit.eval.measuring.scores import (
    Interval,
    Row,
    Scores,
    average,
    difference,
    num_questions,
    only,
    rate_label,
    verdict,
)
from merit.eval.studies.sgd.settings import Sgd
from merit.io.artifacts import Artifacts, read_json


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
    base_scores = only([stored_questions(paths, "base")], experiment.table_benchmarks)
    scores: dict[str, Scores] = {"base": base_scores[0]}
    displacements: dict[str, float] = {}
    for method, rate in itertools.product(sweep.methods, rates):
        model = f"{method}{tags[rate]}-s{seed}"
        record = read_json(paths.model(model) / "merge.json")
        if record["failure"] is None:
            found = only([stored_questions(paths, model)], experiment.table_benchmarks)
            scores[_name(method, rate)] = found[0]
            displacements[_name(method, rate)] = record["displacement"]
    rows = [
        sweep_row(method, rate, scores, displacements, reference)
        for method, rate in itertools.product(sweep.methods, rates)
    ]
    base = average([scores["base"]])
    return {
        "tables": {"table18_sgd_lr_sweep": paper_table(rows, base[0], rates), "sgd_sweep": rows},
        "summary": summary(experiment, rows, scores, sweep, reference),
        "methods": sweep.methods,
        "learning_rates": rates,
        "base": base,
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


def sweep_row(
    method: str,
    rate: float,
    scores: Mapping[str, Scores],
    displacements: dict[str, float],
    reference: str,
) -> Row:
    """One method at one rate; None wherever a training did not stay finite."""
    name, other = _name(method, rate), _name(reference, rate)

    def cells(prefix: str, found: Interval | None) -> Row:
        value, low, high = found or (None, None, None)
        return {prefix: value, f"{prefix}_low": low, f"{prefix}_high": high}

    ours = [scores[name]] if name in scores else None
    theirs = [scores[other]] if other in scores else None
    return {
        "method": method,
        "learning_rate": rate,
        **cells("avg", average(ours) if ours else None),
        **cells("minus_joint", difference(ours, theirs) if ours and theirs else None),
        **cells("minus_base", difference(ours, [scores["base"]]) if ours else None),
        "displacement": displacements.get(name),
        "num_questions": num_questions(scores["base"]),
    }


def paper_table(rows: Sequence[Row], base: float, rates: Sequence[float]) -> list[Row]:
    """Table 18: a row a method, a column a learning rate; the base in every column."""
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
    scores: Mapping[str, Scores],
    sweep: Sweep,
    reference: str,
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
        "base": average([scores["base"]])[0],
    }

    def compare(key: str, ours: str, theirs: str) -> None:
        if ours in scores and theirs in scores:
            value, low, high = difference([scores[ours]], [scores[theirs]])
            found.update({key: value, f"{key}_low": low, f"{key}_high": high})
            found[f"{key}_n"] = rows[0]["num_questions"]

    last = [row for row in rows if row["learning_rate"] == rates[-1] and row["method"] in merit]
    if any(row["avg"] is not None for row in last):
        best = max(last, key=lambda row: row["avg"] if row["avg"] is not None else -1.0)
        found["best_at_largest_rate"] = best["method"]
        compare(
            "gain_at_largest_rate", _name(best["method"], rates[-1]), _name(reference, rates[-1])
        )
    if len(merit) > 1:
        most, fewest = max(merit, key=lambda m: merit[m]), min(merit, key=lambda m: merit[m])
        compare("collapse_at_smallest_rate", _name(most, rates[0]), _name(fewest, rates[0]))
    for method in merit:
        for word, name in (("positive", "ahead"), ("negative", "behind")):
            found[f"{name}_{method}"] = [
                row["learning_rate"]
                for row in rows
                if row["method"] == method and _verdict(row, "minus_joint") == word
            ]
    return found


def _verdict(row: Row, prefix: str) -> str:
    if row[prefix] is None:
        return "none"
    return verdict((row[prefix], row[f"{prefix}_low"], row[f"{prefix}_high"]))


def _name(run: str, rate: float) -> str:
    return f"{run}-lr{rate:g}"
