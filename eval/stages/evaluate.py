"""evaluate: every model answers every benchmark; VLMEvalKit or lm-eval asks and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.benchmarks import benchmark, engine_of
from eval.engine import BenchmarkScore, Predictions, ScoringEngine
from eval.stages.generate import answers_file, stored_scores
from merit.config import load_experiment, load_params
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    read_json,
    write_json,
    write_jsonl,
)
from merit.launch import Job, run_jobs
from merit.methods import plan

Scored = Mapping[str, Mapping[str, BenchmarkScore]]  # model -> benchmark


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/evaluation. Answers that are still valid are kept, not made again."""
    experiment, paths = load_experiment(name), Artifacts(name)
    models = list(plan(experiment).models)
    names = experiment.evaluation.benchmarks
    tables = {b: paths.data / "benchmarks" / benchmark(b).file for b in names}
    answers = paths.evaluation / "answers"
    judge = _by_lm_eval if engine_of(names) == "lm_eval" else _by_vlmeval
    predictions, scored = judge(name, paths, models, tables)
    for stale in set(answers.iterdir()) - {answers / f"{n}.json" for n in [*models, "prompts"]}:
        stale.unlink()  # answers of a model that the experiment no longer has
    with atomic_folder(paths.evaluation / "predictions") as folder:
        for model in models:
            write_jsonl(
                folder / f"{model}.jsonl",
                [
                    {
                        "benchmark": dataset,
                        "index": index,
                        "prediction": predictions[model][dataset][index],
                        "score": score,
                    }
                    for dataset, result in scored[model].items()
                    for index, score in result.questions.items()
                ],
            )
    write_json(
        paths.evaluation / "scores.json",
        {
            "benchmarks": list(tables),
            "num_questions": {b: len(scored[models[0]][b].questions) for b in tables},
            "scores": {m: {b: r.score for b, r in scored[m].items()} for m in models},
        },
    )


def _by_vlmeval(
    name: str, paths: Artifacts, models: Sequence[str], tables: Mapping[str, Path]
) -> tuple[Predictions, Scored]:
    """VLMEvalKit builds the prompts and scores, in a process of its own; we generate."""
    with ScoringEngine() as engine:
        write_json(paths.evaluation / "answers" / "prompts.json", engine.prompts(tables))
        _generate(name, models)
        predictions = {m: read_json(answers_file(paths, m))["answers"] for m in models}
        return predictions, engine.score(tables, predictions)


def _by_lm_eval(
    name: str, paths: Artifacts, models: Sequence[str], tables: Mapping[str, Path]
) -> tuple[Predictions, Scored]:
    """lm-eval does everything, model by model, in the workers that hold it."""
    _generate(name, models)
    predictions = {m: read_json(answers_file(paths, m))["answers"] for m in models}
    return predictions, {m: stored_scores(answers_file(paths, m)) for m in models}


def _generate(name: str, models: Sequence[str]) -> None:
    jobs = [Job("generate", name, model, 1.0) for model in models]
    run_jobs(jobs, min(load_params().workers, len(jobs)), on_done=lambda job: None)
