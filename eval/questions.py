"""The table of every question's score: what intervals are made of, readable without the artifacts.

`questions.csv` has a row per model and benchmark: method, seed (empty for the base), benchmark, and
the scores of all questions in the benchmark's order. Scores that are all 0 or 1 are digits
("0110"); others stand with blanks between them, as fractions if one is the very score ("1/3 1 0").
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.errors import MeritError
from merit.eval.results import Results, open_ended
from merit.io.artifacts import atomic_write
from merit.io.texts import read_text

QUESTIONS = "questions.csv"  # of a report, and of the study `control`
HEADER = ("method", "seed", "benchmark", "scores")
# method, seed, scores by benchmark
Model = tuple[str, int | None, Mapping[str, Any]]


def write_questions(path: Path, models: Iterable[Model]) -> None:
    """Write the table of these models, in their order."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADER)
    for method, seed, scores in models:
        for name, values in scores.items():
            rows.writerow([method, "" if seed is None else seed, name, packed(values)])
    atomic_write(path, text.getvalue())


def models_of(results: Results) -> list[Model]:
    """Every model of the results, seed by seed."""
    return [
        (method, seed, {name: values[s] for name, values in answers.items()})
        for method in results.methods
        for answers in [results.by_name(method, results.benchmarks)]
        for s, seed in enumerate(results.seeds[method] or [None])
    ]


def read_questions(path: Path) -> Results:
    """The scores of a table, as they were written. Raises MeritError that names file and line."""
    if not path.is_file():
        raise MeritError(f"{path}: file not found; the report of its experiment writes it")
    models: list[Model] = []
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        if tuple(next(rows, [])) != HEADER:
            raise MeritError(f"{path}, line 1: expected the columns {', '.join(HEADER)}")
        for method, seed, name, scores in rows:
            models.append((method, int(seed) if seed else None, {name: unpacked(scores)}))
    except (ValueError, ArithmeticError, csv.Error):
        raise MeritError(
            f"{path}, line {rows.line_num}: not a method, seed, benchmark and scores"
        ) from None
    try:
        return from_models(models)
    except ValueError:
        raise MeritError(
            f"{path}: the models answered different questions; write it again"
        ) from None


def from_models(models: Iterable[Model]) -> Results:
    """The results of models, which may come in parts. Raises ValueError where questions differ."""
    found: dict[str, dict[int | None, dict[str, Any]]] = {}
    for method, seed, scores in models:
        found.setdefault(method, {}).setdefault(seed, {}).update(scores)
    every = [scores for by_seed in found.values() for scores in by_seed.values()]
    shapes = {name: len(values) for name, values in every[0].items()} if every else {}
    if any({name: len(values) for name, values in scores.items()} != shapes for scores in every):
        raise ValueError("the models answered different questions")
    answers = {
        method: [np.array([scores[name] for scores in by_seed.values()]) for name in shapes]
        for method, by_seed in found.items()
    }
    scores = {
        method: 100 * np.stack([values.mean(axis=1) for values in by_benchmark], axis=1)
        for method, by_benchmark in answers.items()
    }
    seeds = {m: tuple(s for s in by_seed if s is not None) for m, by_seed in found.items()}
    return Results(tuple(shapes), open_ended(shapes), shapes, seeds, scores, answers)


def packed(values: Sequence[float]) -> str:
    """Scores as text that `unpacked` reads to the last bit."""
    plain = [_short(float(value)) for value in values]
    return ("" if set(plain) <= {"0", "1"} else " ").join(plain)


def unpacked(text: str) -> NDArray[np.float64]:
    """(num_questions,) scores. Raises ValueError where the text holds no numbers."""
    parts: Sequence[str] = text if set(text) <= {"0", "1"} else text.split()
    values = [float(Fraction(part) if "/" in part else part) for part in parts]
    if not np.isfinite(values).all():
        raise ValueError(f"not a score: {text:.80}")
    return np.array(values)


def _short(value: float) -> str:
    near = Fraction(value).limit_denominator(100)
    exact = float(near) == value and (near.denominator > 1 or near <= 1)
    return str(near) if exact else repr(value)
