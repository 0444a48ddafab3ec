"""evaluate: one model's answers to the test questions of all benchmarks."""

from __future__ import annotations

from typing import Any

from merit.config import Evaluation, Runtime
from merit.errors import MeritError
from merit.eval.answering.answers import (
    CACHE,
    Questions,
    generate_answers,
    load_for_answers,
    question_files,
)
from merit.io.artifacts import Artifacts, file_hash, read_json, value_hash, write_json


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/evaluation/answers/<item>.json: answers, scores of text benchmarks.

    A model that diverged has neither, and a `failure`.
    """
    from merit.eval.answering.batches import load_batches
    from merit.eval.answering.generate import Partial
    from merit.train.model import load_processor, use_one_thread

    assert item is not None
    paths = Artifacts(name)
    folder, merged = paths.model(item), read_json(paths.model(item) / "merge.json")
    asked = read_json(paths.questions / "questions.json")
    settings = Evaluation.model_validate(asked["evaluation"])  # without a judge
    files = question_files(paths, settings)
    for benchmark, path in files.items():
        if not path.is_file() or file_hash(path) != asked["files"][benchmark]:
            raise MeritError(f"{path}: missing, or changed since `prompts` ran; run `dvc repro`")
    if merged["failure"] is not None:
        found = {"answers": None, "scores": None, "failure": merged["failure"]}
        write_json(paths.answers(item), found)
        return
    use_one_thread()
    questions = Questions(settings, files, asked["prompts"])
    processor = load_processor(folder)
    model = load_for_answers(folder, Runtime.model_validate(asked["model"]), questions)
    encoded = None
    if asked["prompts"] and settings.cache_images:
        encoded = load_batches(paths.questions / CACHE, model)
    identity = value_hash([asked, merged])
    partial = Partial(paths.evaluation / "partial" / f"{item}.jsonl", identity)
    label = f"{name}, {item}"
    answers, scores = generate_answers(model, processor, questions, label, encoded, partial)
    stored: dict[str, Any] | None = scores and {
        b: {"score": result.score, "questions": result.questions} for b, result in scores.items()
    }
    write_json(paths.answers(item), {"answers": answers, "scores": stored, "failure": None})
    partial.drop()
