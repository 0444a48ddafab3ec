"""prompts: the questions as every model is asked them, built once by VLMEvalKit.

lm-eval builds its own while it asks, from task files: of these the stage keeps what decides them.
"""

from __future__ import annotations

from eval.answering.answers import question_files
from eval.answering.lm_engine import task_file
from eval.benchmarks import engine_of
from eval.engine import ScoringEngine
from merit.config import load_experiment
from merit.io.artifacts import Artifacts, atomic_folder, file_hash, write_json


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/evaluation/questions: what `evaluate` depends on."""
    settings, paths = load_experiment(name).evaluation, Artifacts(name)
    files = question_files(paths, settings)
    asked: dict[str, object] = {"files": {b: file_hash(path) for b, path in files.items()}}
    if engine_of(settings.benchmarks) == "vlmeval":
        with ScoringEngine() as engine:
            asked["prompts"] = engine.prompts(files)
    else:
        asked["prompts"] = {}
        asked["tasks"] = {b: task_file(b).read_text(encoding="utf-8") for b in files}
    with atomic_folder(paths.questions) as folder:
        write_json(
            folder / "questions.json", asked | {"settings": settings.model_dump(mode="json")}
        )
