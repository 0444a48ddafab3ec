"""Scores of an experiment as arrays: by method, seed, benchmark and question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.config import Experiment
from merit.config.branches import Model
from merit.errors import MeritError
from merit.eval.benchmarks import BENCHMARKS
from merit.eval.measuring.models import models_of
from merit.io.artifacts import Artifacts, read_json, read_jsonl

# points by which a stored score may differ from the mean of its questions: VLMEvalKit rounds
# LLaVA-Bench's to a tenth
TOLERANCE = 0.05 + 1e-9


@dataclass(frozen=True)
class Results:
    """Everything a table needs; methods and benchmarks in the order of the experiment's YAML.

    `scores[method]` is float64 (num_seeds, num_benchmarks) in 0..100. `answers[method][b]` is
    float64 (num_seeds, num_questions of benchmark b): what every question adds to the score, whose
    mean over the questions is a hundredth of it (0..1, but for MME and LLaVA-Bench); questions in
    one order for all methods, so that differences are paired. The base has no seed and one row.
    `also[method]` has what the engine reports beside its scores, {name: (num_seeds,)}: "mme_raw"
    is MME's raw sum.
    """

    benchmarks: tuple[str, ...]
    open_ended: tuple[str, ...]
    num_questions: dict[str, int]
    seeds: dict[str, tuple[int, ...]]
    scores: dict[str, NDArray[np.float64]]
    answers: dict[str, list[NDArray[np.float64]]]
    also: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    def by_name(
        self, method: str, benchmarks: Iterable[str], seeds: Iterable[int] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """The answers to these benchmarks, as merit.eval.statistics takes them; all by default."""
        rows = [self.seeds[method].index(seed) for seed in seeds or ()] or slice(None)
        return {
            name: self.answers[method][self.benchmarks.index(name)][rows] for name in benchmarks
        }

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.scores)

    @property
    def closed(self) -> list[int]:
        """Positions of the benchmarks that are not open-ended."""
        return [i for i, name in enumerate(self.benchmarks) if name not in self.open_ended]

    def averages(self, method: str, benchmarks: Sequence[int] | None = None) -> NDArray[np.float64]:
        """(num_seeds,): plain mean over the benchmarks at these positions (docs/method.md 15)."""
        scores = self.scores[method]
        return (scores if benchmarks is None else scores[:, list(benchmarks)]).mean(axis=1)


def open_ended(benchmarks: Iterable[str]) -> tuple[str, ...]:
    """Those of the benchmarks whose answers are free text."""
    return tuple(name for name in benchmarks if name in BENCHMARKS and BENCHMARKS[name].open_ended)


def load_results(
    experiment: Experiment, artifacts: Artifacts, benchmarks: Sequence[str] | None = None
) -> Results:
    """Read evaluation/scores.json and the predictions of every model of the plan.

    Args: benchmarks: which ones; by default those of the report's own table.

    Models of sweeps are scored, but are no rows of tables. Raises MeritError where a model or
    benchmark has no score (or the model diverged), where a model answered other questions than the
    first one, or where stored scores are not the mean of the answers.
    """
    path = artifacts.evaluation / "scores.json"
    stored = read_json(path)
    benchmarks = tuple(experiment.table_benchmarks if benchmarks is None else benchmarks)
    models = models_of(experiment)
    questions: dict[str, list[Any]] = {}
    scores: dict[str, NDArray[np.float64]] = {}
    answers: dict[str, list[NDArray[np.float64]]] = {}
    for method in experiment.methods:
        rows = [_stored_scores(path, stored, model.id, benchmarks) for model in models[method]]
        by_model = [
            _answers(artifacts.predictions(model.id), benchmarks, questions, row)
            for model, row in zip(models[method], rows, strict=True)
        ]
        scores[method] = np.array(rows)
        answers[method] = [np.stack(arrays) for arrays in zip(*by_model, strict=True)]
    return Results(
        benchmarks=benchmarks,
        open_ended=open_ended(benchmarks),
        num_questions={name: len(questions[name]) for name in benchmarks},
        seeds={m: tuple(x.seed for x in models[m] if x.seed is not None) for m in scores},
        scores=scores,
        answers=answers,
        also={m: _beside(stored.get("also", {}), models[m], benchmarks) for m in scores},
    )


def _beside(
    stored: Any, models: Sequence[Model], benchmarks: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """{"<benchmark>_<what>": (num_seeds,)}: what every model of a method has."""
    found = [
        {f"{b}_{key}": x for b in benchmarks for key, x in stored.get(m.id, {}).get(b, {}).items()}
        for m in models
    ]
    names = [name for name in found[0] if all(name in values for values in found)]
    return {name: np.array([values[name] for values in found]) for name in names}


def _stored_scores(path: Path, stored: Any, model: str, benchmarks: Sequence[str]) -> list[float]:
    known = stored if isinstance(stored, dict) else {}
    table, failures = (known.get(key, {}) for key in ("scores", "failures"))
    if model in failures:
        raise MeritError(
            f"{path}: key `failures`: {failures[model]}; so {model!r} is no row of a table: lower "
            "its learning rate, or let a sweep run it"
        )
    if model not in table:
        raise MeritError(
            f"{path}: key `scores`: no model {model!r}; `dvc repro` evaluates what is missing"
        )
    missing = [name for name in benchmarks if name not in table[model]]
    if missing:
        raise MeritError(
            f"{path}: key `scores.{model}`: no score for {', '.join(missing)}; "
            "`dvc repro` evaluates what is missing"
        )
    return [float(table[model][name]) for name in benchmarks]


def _answers(
    path: Path, benchmarks: Sequence[str], questions: dict[str, list[Any]], stored: list[float]
) -> list[NDArray[np.float64]]:
    """Question scores of one model by benchmark; `questions` keeps the first model's order."""
    by_benchmark: dict[str, dict[Any, float]] = defaultdict(dict)
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            by_benchmark[row["benchmark"]][row["index"]] = float(row["score"])
        except (KeyError, TypeError, ValueError):
            raise MeritError(
                f"{path}, line {number}: expected the keys benchmark, index and score (a number)"
            ) from None
    result = []
    for name, score in zip(benchmarks, stored, strict=True):
        found = by_benchmark[name]
        order = questions.setdefault(name, list(found))
        if not found or set(found) != set(order):
            raise MeritError(
                f"{path}: benchmark {name!r}: {len(found)} questions, not the {len(order)} that "
                "the other models answered; run the evaluation of this model again"
            )
        values = np.array([found[index] for index in order])
        if abs(100 * values.mean() - score) > TOLERANCE:
            raise MeritError(
                f"{path}: benchmark {name!r}: the answers average {100 * values.mean():.2f}, "
                f"scores.json says {score:.2f}; run the evaluation of this model again"
            )
        result.append(values)
    return result
