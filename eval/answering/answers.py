"""A model's answers to one split of the benchmarks' questions, and their scores.

VLMEvalKit builds the prompts of image benchmarks and scores the answers, we generate them in
batches; of text benchmarks lm-eval does all of it in one go.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from eval.benchmarks import benchmark, engine_of
from eval.engine import BenchmarkScore, ScoringEngine
from merit.config import Evaluation
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_jsonl

csv.field_size_limit(1 << 30)  # a cell holds an image
Prompts = Mapping[str, Mapping[str, str]]  # benchmark -> index -> text
Answers = dict[str, dict[str, str]]  # benchmark -> index -> text
Scores = dict[str, BenchmarkScore]  # benchmark -> its score and those of its questions


def question_files(paths: Artifacts, settings: Evaluation, split: str = "test") -> dict[str, Path]:
    """{benchmark: its file of questions}; `split` is "test" or "validation"."""
    folder = paths.data / "benchmarks" / ("" if split == "test" else split)
    return {name: folder / benchmark(name).file for name in settings.benchmarks}


class Respondent:
    """Puts one split's questions to models that share a vision part, which sees the images once.

    Args: prompts: VLMEvalKit's, by benchmark and index; of text benchmarks none.
    """

    def __init__(self, settings: Evaluation, files: Mapping[str, Path], prompts: Prompts) -> None:
        self.settings, self.files, self.prompts = settings, files, prompts
        self.by_lm_eval = engine_of(settings.benchmarks) == "lm_eval"
        self._batches: list[Any] | None = None

    def answer(self, model: Any, processor: Any) -> tuple[Answers, Scores | None]:
        """The model's answers; with their scores where the engine does not part the two."""
        if self.by_lm_eval:
            return self._by_lm_eval(model, processor)
        from eval.answering.generate import Prompt, generate, prepare

        where = [(name, i) for name in self.settings.benchmarks for i in self.prompts[name]]
        if self._batches is None:
            images = {name: images_of(path) for name, path in self.files.items()}
            asked = [Prompt(self.prompts[name][i], images[name][i]) for name, i in where]
            self._batches = prepare(model, processor, asked, self.settings.batch_size)
        texts = generate(model, processor, self._batches, self.settings.max_new_tokens)
        answers: Answers = {name: {} for name in self.settings.benchmarks}
        for (name, index), text in zip(where, texts, strict=True):
            answers[name][index] = text
        return answers, None

    def _by_lm_eval(self, model: Any, tokenizer: Any) -> tuple[Answers, Scores]:
        from eval.answering.lm_engine import answer_all

        size, length = self.settings.batch_size, self.settings.max_new_tokens
        found = answer_all(model, tokenizer, self.files, size, length)
        answers = {name: result.predictions for name, result in found.items()}
        return answers, {n: BenchmarkScore(r.score, r.questions) for n, r in found.items()}


def prompts_of(engine: ScoringEngine | None, files: Mapping[str, Path]) -> Prompts:
    """VLMEvalKit's prompts; of text benchmarks (no engine) none."""
    return {} if engine is None else engine.prompts(files)


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


def stored_questions(paths: Artifacts, model: str) -> dict[str, list[float]]:
    """{benchmark: every question's score in 0..1, in file order} of a model of the pipeline."""
    found: dict[str, list[float]] = {}
    for row in read_jsonl(paths.predictions(model)):
        found.setdefault(row["benchmark"], []).append(float(row["score"]))
    return found
