"""generate: one model's answers to all benchmarks; called by evaluate, several side by side."""

from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

from PIL import Image

from eval.generate import Prompt, generate
from merit.config import Experiment, load_experiment
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, file_hash, read_json, value_hash, write_json

csv.field_size_limit(1 << 30)  # a cell holds an image


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
    from merit.models import load_model, load_processor, use_one_thread

    use_one_thread()
    settings = experiment.evaluation
    prompts: list[Prompt] = []
    where: list[tuple[str, str]] = []
    texts = read_json(target.parent / "prompts.json")
    for benchmark in settings.benchmarks:
        path = benchmarks / f"{benchmark}.tsv"
        for index, image in images_of(path).items():
            prompts.append(Prompt(texts[benchmark][index], image))
            where.append((benchmark, index))
    answers = generate(
        load_model(model),
        load_processor(model),
        prompts,
        settings.batch_size,
        settings.max_new_tokens,
    )
    table: dict[str, dict[str, str]] = {benchmark: {} for benchmark in settings.benchmarks}
    for (benchmark, index), text in zip(where, answers, strict=True):
        table[benchmark][index] = text
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
    """Hash of all that decides a model's answers: weights, prompts, images, generation settings."""
    benchmarks = experiment.evaluation.benchmarks
    return value_hash(
        [
            read_json(paths.model(model) / "merge.json")["checkpoint_hash"],
            file_hash(paths.evaluation / "answers" / "prompts.json"),
            [file_hash(paths.data / "benchmarks" / f"{b}.tsv") for b in benchmarks],
            experiment.evaluation.model_dump(mode="json"),
        ]
    )


def answered(paths: Artifacts, model: str, key: str) -> bool:
    path = answers_file(paths, model)
    return path.is_file() and read_json(path)["key"] == key
