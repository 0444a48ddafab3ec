"""From questions to answers: one model's answers to one split of the benchmarks.

VLMEvalKit builds the prompts of image benchmarks and scores the answers; we generate them in
batches. lm-eval does all of it for text benchmarks, so their scores come with their answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.config import Evaluation, Runtime
from merit.eval.benchmarks import BenchmarkScore, benchmark, engine_of
from merit.io.artifacts import Artifacts, read_jsonl
from merit.io.progress import Progress

if TYPE_CHECKING:
    from merit.eval.answering.batches import Batch, Prompt
    from merit.eval.answering.generate import Partial

Parts = list[dict[str, Any]]  # {"text": ...} and {"image": [index, position] or a path}, in turn
Prompts = Mapping[str, Mapping[str, Parts]]  # benchmark -> index -> what is shown
Answers = dict[str, dict[str, str]]  # benchmark -> index -> text
Scores = dict[str, BenchmarkScore]  # benchmark -> its score and those of its questions
CACHE = "batches.safetensors"  # beside questions.json, with `cache_images`


@dataclass(frozen=True)
class Questions:
    """One split's questions: how they are asked, their files, and (not for lm-eval) prompts."""

    settings: Evaluation
    files: Mapping[str, Path]
    prompts: Prompts


def question_files(paths: Artifacts, settings: Evaluation, split: str = "test") -> dict[str, Path]:
    """{benchmark: its file of questions}; `split`, of the minis', is "test" or "validation".

    VLMEvalKit's datasets are in `$LMUData`, else ~/LMUData; lm-eval's own tasks have no file.
    """
    generated = paths.data / "benchmarks" / ("" if split == "test" else split)
    public = Path(os.environ.get("LMUData", "~/LMUData")).expanduser()  # noqa: SIM112 - the kit's
    records = [benchmark(name) for name in settings.benchmarks]
    return {r.name: (public if r.public else generated) / r.file for r in records if r.file}


def generate_answers(
    model: Any,
    processor: Any,
    questions: Questions,
    label: str = "answers",
    encoded: Sequence[Batch] | None = None,
    partial: Partial | None = None,
) -> tuple[Answers, Scores | None]:
    """The model's answers, and their scores if the engine is lm-eval.

    Args: encoded: all questions as batches (`encode_questions`); otherwise images are encoded while
    answering, so that only a few batches are in memory. partial: keeps finished batches, so that an
    interrupted run resumes.
    """
    if engine_of(questions.settings.benchmarks) == "lm_eval":
        return _answer_by_lm_eval(model, processor, questions)
    texts = dict(partial.done) if partial else {}
    order = _order(questions)
    with Progress(label, len(order)) as progress:
        progress.advance(len(texts))
        for found in _answer(model, processor, questions, encoded, set(texts)):
            if partial:
                partial.add(found)
            texts |= found
            progress.advance(len(found))
    answers: Answers = {name: {} for name in questions.settings.benchmarks}
    for position, (name, index) in enumerate(order):
        answers[name][index] = texts[position]
    return answers, None


def _answer(
    model: Any,
    processor: Any,
    questions: Questions,
    encoded: Sequence[Batch] | None,
    done: set[int],
) -> Iterator[dict[int, str]]:
    """{position of a question: answer}, batch by batch, without those that are `done`."""
    prompts, size = build_prompts(questions), questions.settings.batch_size
    if questions.settings.generator == "vllm":
        left = [i for i in range(len(prompts)) if i not in done]
        for place, text in model.answers(processor, [prompts[i] for i in left]):
            yield {left[place]: text}
        return
    from merit.eval.answering.batches import prepared, split
    from merit.eval.answering.generate import generate

    batches: Iterable[Batch]
    if encoded is not None:
        batches = [batch for batch in encoded if not done & set(batch.questions)]
    else:
        planned = split(processor, prompts, size)
        batches = prepared(processor, prompts, [b for b in planned if not done & set(b)])
    for batch in batches:
        yield dict(zip(batch.questions, generate(model, processor, batch), strict=True))


def encode_questions(model: Any, processor: Any, questions: Questions) -> list[Batch]:
    """All questions as batches with their images encoded, for models that share a vision part."""
    from merit.eval.answering.batches import encode, prepared, split

    prompts = build_prompts(questions)
    planned = split(processor, prompts, questions.settings.batch_size)
    return [encode(model, batch) for batch in prepared(processor, prompts, planned)]


def load_for_answers(folder: Path, runtime: Runtime, questions: Questions) -> Any:
    """The model of a folder as `generate_answers` takes it, held and run as `runtime` says.

    With `generator: vllm` it is loaded by vLLM, which chooses GPU and attention itself.
    """
    settings = questions.settings
    if settings.generator == "vllm" and engine_of(settings.benchmarks) == "vlmeval":
        from merit.eval.answering.vllm_engine import Vllm

        return Vllm(folder, build_prompts(questions), runtime.dtype, settings.vllm_python)
    from merit.train.model import load_model

    return load_model(folder, runtime, generates=True)


def build_prompts(questions: Questions) -> list[Prompt]:
    """All questions in file order, benchmark by benchmark; a record's limits come first."""
    from merit.eval.answering.batches import Prompt
    from merit.eval.answering.question_images import Picture

    settings, files = questions.settings, questions.files

    def part(name: str, value: Mapping[str, Any]) -> str | Picture:
        if "text" in value:
            return str(value["text"])
        if isinstance(value["image"], str):
            return Picture(Path(value["image"]))
        return Picture(files[name], *value["image"])

    def build(name: str, parts: Parts) -> Prompt:
        record = benchmark(name)
        low = record.min_pixels or settings.min_pixels
        high = record.max_pixels or settings.max_pixels
        length = record.max_new_tokens or settings.max_new_tokens
        pixels = (low, high) if low and high else None
        return Prompt(tuple(part(name, value) for value in parts), length, pixels, name)

    return [build(name, questions.prompts[name][index]) for name, index in _order(questions)]


def _order(questions: Questions) -> list[tuple[str, str]]:
    return [(n, index) for n in questions.settings.benchmarks for index in questions.prompts[n]]


def _answer_by_lm_eval(model: Any, tokenizer: Any, questions: Questions) -> tuple[Answers, Scores]:
    from merit.eval.answering.lm_engine import answer_all

    settings, files = questions.settings, questions.files
    public = [name for name in settings.benchmarks if benchmark(name).public]
    size, length = settings.batch_size, settings.max_new_tokens
    found = answer_all(model, tokenizer, files, size, length) if files else {}
    if public:
        from merit.eval.answering.lm_public import answer_public

        found |= answer_public(model, tokenizer, public, settings)
    answers = {name: result.predictions for name, result in found.items()}
    return answers, {n: BenchmarkScore(r.score, r.questions) for n, r in found.items()}


def stored_questions(paths: Artifacts, model: str) -> dict[str, list[float]]:
    """{benchmark: every question's score in 0..1, in file order} of a model of the pipeline."""
    found: dict[str, list[float]] = {}
    for row in read_jsonl(paths.predictions(model)):
        found.setdefault(row["benchmark"], []).append(float(row["score"]))
    return found
