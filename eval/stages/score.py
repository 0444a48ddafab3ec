"""score: every answer of every model, judged by VLMEvalKit (or, with the answers, by lm-eval)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merit.config import load_experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.answering.answers import Scores, question_files
from merit.eval.engine import BenchmarkScore, ScoringEngine
from merit.io.artifacts import Artifacts, atomic_folder, read_json, write_json, write_jsonl


def run(name: str, item: str | None = None) -> None:
    """Write predictions/ and scores.json of artifacts/<name>/evaluation, by the plan's models.

    A model that diverged has no score; `failures` says why. Raises MeritError where all have.
    """
    experiment, paths = load_experiment(name), Artifacts(name)
    found = {model: read_json(paths.answers(model)) for model in plan(experiment).models}
    failures = {model: entry["failure"] for model, entry in found.items() if entry["failure"]}
    given = {model: entry for model, entry in found.items() if model not in failures}
    if not given:
        raise MeritError(
            f"{name}: every model diverged, so there is nothing to score; the first: "
            f"{next(iter(failures.values()))}. Lower `training.optimizer.learning_rate`"
        )
    files = question_files(paths, experiment.evaluation)
    scored = {m: _stored(entry["scores"]) for m, entry in given.items() if entry["scores"]}
    if len(scored) < len(given):
        with ScoringEngine.of(experiment.evaluation, paths) as engine:
            scored |= engine.score(files, {m: entry["answers"] for m, entry in given.items()})
    with atomic_folder(paths.evaluation / "predictions") as folder:
        for model, results in scored.items():
            rows = _rows(given[model]["answers"], results)
            write_jsonl(folder / f"{model}.jsonl", rows)
    first = next(iter(scored.values()))
    also = {m: {b: r.also for b, r in results.items() if r.also} for m, results in scored.items()}
    write_json(
        paths.evaluation / "scores.json",
        {
            "benchmarks": experiment.evaluation.benchmarks,
            "num_questions": {b: len(r.questions) for b, r in first.items()},
            "scores": {
                m: {b: r.score for b, r in results.items()} for m, results in scored.items()
            },
            "failures": failures,
        }
        | ({"also": also} if any(also.values()) else {}),
    )


def _stored(scores: Mapping[str, Any]) -> Scores:
    return {benchmark: BenchmarkScore(**entry) for benchmark, entry in scores.items()}


def _rows(answers: Mapping[str, Mapping[str, str]], results: Scores) -> list[dict[str, Any]]:
    return [
        {"benchmark": b, "index": i, "prediction": answers[b][i], "score": score}
        for b, result in results.items()
        for i, score in result.questions.items()
    ]
