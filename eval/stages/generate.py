"""generate: one model's answers to all benchmarks; called by evaluate, several side by side."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from eval.benchmarks import benchmark, engine_of
from eval.engine import BenchmarkScore
from eval.generate import Batch, Prompt, generate, prepare
from merit.config import Evaluation, Experiment, load_experiment
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, file_hash, read_json, value_hash, write_json

csv.field_size_limit(1 << 30)  # a cell holds an image
# All models of an experiment share questions and vision part: a process prepares them once.
_PREPARED: dict[str, tuple[Any, list[Batch]]] = {}  # (processor, batches)


def run(name: str, item: str | None = None) -> None:
    """Write evaluation/answers/<item>.json, unless it was made from the same model and prompts."""
    assert item is not None
    experiment, paths = load_experiment(name), Artifacts(name)
    key = answers_key(experiment, paths, item)
    if answered(paths, item, key):
        return
    answer(experiment, paths.data / "benchmarks", paths.model(item), answers_file(paths, item), key)


def answer(experiment: Experiment, benchmarks: Path, model: Path, target: Path, key: str) -> None:
    """Answer every benchmark in `benchmarks` with the model folder `model`; write `target`."""
    settings = experiment.evaluation
    if engine_of(settings.benchmarks) == "lm_eval":
        _answer_by_lm_eval(settings, benchmarks, model, target, key)
    else:
        _answer_images(settings, benchmarks, model, target, key)


def _answer_by_lm_eval(
    settings: Evaluation, benchmarks: Path, model: Path, target: Path, key: str
) -> None:
    """Answers and, since lm-eval does not part the two, scores."""
    from eval.lm_engine import answer_all
    from merit.models import load_model, load_processor, use_one_thread

    use_one_thread()
    results = answer_all(
        load_model(model),
        load_processor(model),
        {name: benchmarks / benchmark(name).file for name in settings.benchmarks},
        settings.batch_size,
        settings.max_new_tokens,
    )
    scores = {b: {"score": r.score, "questions": r.questions} for b, r in results.items()}
    answers = {name: result.predictions for name, result in results.items()}
    write_json(target, {"key": key, "answers": answers, "scores": scores})


def _answer_images(
    settings: Evaluation, benchmarks: Path, model: Path, target: Path, key: str
) -> None:
    from merit.models import load_model, load_processor, use_one_thread

    use_one_thread()
    loaded = load_model(model)
    texts = read_json(target.parent / "prompts.json")
    files = {name: benchmarks / benchmark(name).file for name in settings.benchmarks}
    where = [(name, index) for name in settings.benchmarks for index in texts[name]]
    parts = {n: t.numpy().tobytes() for n, t in loaded.model.visual.state_dict().items()}
    shared = value_hash(
        [
            [hashlib.sha256(part).hexdigest() for part in parts.values()],
            *map(file_hash, [*files.values(), model / "tokenizer.json"]),
            texts,
            settings.batch_size,
        ]
    )
    if shared not in _PREPARED:
        images = {name: images_of(path) for name, path in files.items()}
        prompts = [Prompt(texts[name][index], images[name][index]) for name, index in where]
        while len(_PREPARED) > 1:  # the test and the validation split
            del _PREPARED[next(iter(_PREPARED))]
        processor = load_processor(model)
        batches = prepare(loaded, processor, prompts, settings.batch_size)
        _PREPARED[shared] = processor, batches
    answers = generate(loaded, *_PREPARED[shared], settings.max_new_tokens)
    table: dict[str, dict[str, str]] = {name: {} for name in settings.benchmarks}
    for (name, index), text in zip(where, answers, strict=True):
        table[name][index] = text
    write_json(target, {"key": key, "answers": table})


def images_of(path: Path) -> dict[str, Image.Image]:
    """The image of every index of a TSV. Raises MeritError where one cannot be read."""
    images = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            try:
                data = base64.b64decode(row["image"], validate=True)
                images[row["index"]] = Image.open(io.BytesIO(data)).convert("RGB")
            except (KeyError, ValueError, OSError) as error:
                raise MeritError(
                    f"{path}: index {row.get('index')}: no readable image ({error})"
                ) from None
    return images


def answers_file(paths: Artifacts, model: str) -> Path:
    return paths.evaluation / "answers" / f"{model}.json"


def answers_key(experiment: Experiment, paths: Artifacts, model: str) -> str:
    """Hash of all that decides a model's answers: weights, prompts, questions, settings."""
    benchmarks = experiment.evaluation.benchmarks
    if engine_of(benchmarks) == "lm_eval":
        from eval.lm_engine import task_file

        asked = [file_hash(task_file(b)) for b in benchmarks]
    else:
        asked = [file_hash(paths.evaluation / "answers" / "prompts.json")]
    return value_hash(
        [
            read_json(paths.model(model) / "merge.json")["checkpoint_hash"],
            *asked,
            [file_hash(paths.data / "benchmarks" / benchmark(b).file) for b in benchmarks],
            experiment.evaluation.model_dump(mode="json"),
        ]
    )


def stored_scores(path: Path) -> dict[str, BenchmarkScore]:
    """The scores that stand beside lm-eval's answers."""
    return {name: BenchmarkScore(**entry) for name, entry in read_json(path)["scores"].items()}


def answered(paths: Artifacts, model: str, key: str) -> bool:
    path = answers_file(paths, model)
    return path.is_file() and read_json(path)["key"] == key
