"""evaluate: one model's answers to the test questions of all benchmarks."""

from __future__ import annotations

from typing import Any

from merit.config import Evaluation, Runtime
from merit.errors import MeritError
from merit.eval.answering.answers import CACHE, Respondent, question_files
from merit.io.artifacts import Artifacts, file_hash, read_json, value_hash, write_json


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/evaluation/answers/<item>.json; with the scores of text benchmarks."""
    from merit.eval.answering.generate import Partial
    from merit.train.model import load_processor, use_one_thread

    assert item is not None
    paths = Artifacts(name)
    asked = read_json(paths.questions / "questions.json")
    settings = Evaluation.model_validate(asked["evaluation"])  # without a judge
    files = question_files(paths, settings)
    for benchmark, path in files.items():
        if not path.is_file() or file_hash(path) != asked["files"][benchmark]:
            raise MeritError(
                f"{path}: missing, or not what the prompts were made of; run `dvc repro`"
            )
    found: dict[str, Any] = {"answers": None, "scores": None}
    found["failure"] = read_json(paths.model(item) / "merge.json")["failure"]
    if found["failure"] is None:
        use_one_thread()
        respondent = Respondent(settings, files, asked["prompts"])
        processor = load_processor(paths.model(item))
        model = respondent.load(paths.model(item), Runtime.model_validate(asked["model"]))
        identity = value_hash([asked, read_json(paths.model(item) / "merge.json")])
        partial = Partial(paths.evaluation / "partial" / f"{item}.jsonl", identity)
        cache = paths.questions / CACHE if settings.cache_images else None
        answers, scores = respondent.answer(model, processor, f"{name}, {item}", cache, partial)
        found["answers"] = answers
        if scores is not None:
            found["scores"] = {
                b: {"score": result.score, "questions": result.questions}
                for b, result in scores.items()
            }
    write_json(paths.answers(item), found)
    if found["failure"] is None:
        partial.drop()
