"""prompts: the questions as every model is asked them, built once by VLMEvalKit.

With `evaluation.cache_images` the base's vision part, which fine-tuning does not change, encodes
the images once for all models; otherwise each model does while it answers.

lm-eval builds its prompts while it asks; the stage keeps the task files that decide them.
"""

from __future__ import annotations

from typing import Any

from merit.config import Experiment, load_experiment
from merit.eval.answering.answers import CACHE, Questions, encode_questions, question_files
from merit.eval.answering.lm_engine import task_file
from merit.eval.answering.lm_public import OWN_TASKS, check_code
from merit.eval.benchmarks import benchmark, engine_of
from merit.eval.engine import ScoringEngine, check_judged
from merit.eval.judge import check_key
from merit.io.artifacts import Artifacts, atomic_folder, file_hash, read_json, write_json

SCORING = ("judge", "check_files")  # keys of `evaluation` that decide no question and no answer


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/evaluation/questions: what `evaluate` depends on.

    Raises MeritError, before days of training, if a benchmark's file, judge, key or sandbox is
    missing.
    """
    from merit.eval.answering.batches import save_batches, vision_hash
    from merit.train.model import load_model, load_processor, use_one_thread

    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.evaluation
    check_code([benchmark(b) for b in settings.benchmarks], settings)
    if settings.judge is None:
        check_judged(settings.benchmarks)
    else:
        check_key(settings.judge)
    files = question_files(paths, settings)
    asked: dict[str, Any] = {
        "files": {b: file_hash(path) for b, path in files.items()},
        "records": {b: benchmark(b).model_dump(mode="json") for b in settings.benchmarks},
        "prompts": {},
    }
    if engine_of(settings.benchmarks) == "vlmeval":
        with ScoringEngine.of(settings, paths) as engine:
            asked["prompts"] = engine.prompts(files)
    else:
        asked["tasks"] = task_texts(settings.benchmarks)
    with atomic_folder(paths.questions) as folder:
        stored = folder / "questions.json"
        write_json(stored, asked | asking(experiment))
        if asked["prompts"] and settings.cache_images:
            use_one_thread()
            model = load_model(paths.base, experiment.model, generates=True)
            processor = load_processor(paths.base)
            prompts = read_json(stored)["prompts"]  # in the order in which `evaluate` finds them
            batches = encode_questions(model, processor, Questions(settings, files, prompts))
            save_batches(folder / CACHE, batches, vision_hash(model))


def asking(experiment: Experiment) -> dict[str, Any]:
    """What decides questions and answers: `evaluation` without its judge, and how models run.

    So a new judge scores the answers that exist.
    """
    asked = experiment.evaluation.model_dump(mode="json", exclude=set(SCORING))
    return {"evaluation": asked, "model": experiment.model.model_dump(mode="json")}


def task_texts(benchmarks: list[str]) -> dict[str, str]:
    """Our task files for lm-eval: those of the minis, and of benchmarks that run code."""
    files = {}
    for record in map(benchmark, benchmarks):
        if not record.public:
            files[record.name] = task_file(record.name)
        elif record.runs_code:
            files[record.name] = OWN_TASKS / f"{record.dataset}.yaml"
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
