"""score: the scores of all answers, by VLMEvalKit (lm-eval's come with the answers)."""

from __future__ import annotations

from typing import Any

from merit.config import load_experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.answering.answers import Scores, question_files
from merit.eval.benchmarks import BenchmarkScore
from merit.eval.engine import ScoringEngine
from merit.io.artifacts import Artifacts, atomic_folder, read_json, write_json, write_jsonl


def run(name: str, item: str | None = None) -> None:
    """Write predictions/ and scores.json of artifacts/<name>/evaluation, for all planned models.

    A model that diverged has no score; `failures` says why. Raises MeritError if all diverged.
    """
    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.evaluation
    found = {model: read_json(paths.answers(model)) for model in plan(experiment).models}
    failures = {model: entry["failure"] for model, entry in found.items() if entry["failure"]}
    answers = {m: entry["answers"] for m, entry in found.items() if m not in failures}
    if not answers:
        raise MeritError(
            f"{name}: every model diverged, so there is nothing to score; the first: "
            f"{next(iter(failures.values()))}. Lower `training.optimizer.learning_rate`"
        )
    scored: dict[str, Scores] = {
        model: {b: BenchmarkScore(**score) for b, score in found[model]["scores"].items()}
        for model in answers
        if found[model]["scores"]
    }
    if len(scored) < len(answers):
        with ScoringEngine.of(settings, paths) as engine:
            scored |= engine.score(question_files(paths, settings), answers)
    with atomic_folder(paths.evaluation / "predictions") as folder:
        for model, results in scored.items():
            rows = [
                {"benchmark": b, "index": i, "prediction": answers[model][b][i], "score": score}
                for b, result in results.items()
                for i, score in result.questions.items()
            ]
            write_jsonl(folder / f"{model}.jsonl", rows)
    also = {m: {b: r.also for b, r in results.items() if r.also} for m, results in scored.items()}
    table: dict[str, Any] = {
        "benchmarks": settings.benchmarks,
        "num_questions": {b: len(r.questions) for b, r in next(iter(scored.values())).items()},
        "scores": {m: {b: r.score for b, r in results.items()} for m, results in scored.items()},
        "failures": failures,
    }
    if any(also.values()):
        table["also"] = also
    write_json(paths.evaluation / "scores.json", table)
