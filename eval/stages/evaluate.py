"""evaluate: every model answers every benchmark; VLMEvalKit builds the prompts and scores."""

from __future__ import annotations

from eval.engine import ScoringEngine
from eval.stages.generate import answers_file
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


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/evaluation. Answers that are still valid are kept, not made again."""
    experiment, paths = load_experiment(name), Artifacts(name)
    models = list(plan(experiment).models)
    tables = {b: paths.data / "benchmarks" / f"{b}.tsv" for b in experiment.evaluation.benchmarks}
    answers = paths.evaluation / "answers"
    with ScoringEngine() as engine:
        write_json(answers / "prompts.json", engine.prompts(tables))
        jobs = [Job("generate", name, model, 1.0) for model in models]
        run_jobs(jobs, min(load_params().workers, len(jobs)), on_done=lambda job: None)
        predictions = {m: read_json(answers_file(paths, m))["answers"] for m in models}
        scored = engine.score(tables, predictions)
    for stale in set(answers.iterdir()) - {answers / f"{n}.json" for n in [*models, "prompts"]}:
        stale.unlink()  # answers of a model that the experiment no longer has
    with atomic_folder(paths.evaluation / "predictions") as folder:
        for model in models:
            write_jsonl(
                folder / f"{model}.jsonl",
                [
                    {
                        "benchmark": benchmark,
                        "index": index,
                        "prediction": predictions[model][benchmark][index],
                        "score": score,
                    }
                    for benchmark, result in scored[model].items()
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
