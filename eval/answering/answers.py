"""A model's answers to one split of the benchmarks' questions, and their scores.

VLMEvalKit builds the prompts of image benchmarks and scores the answers, we generate them in
batches; of text benchmarks lm-eval does all of it in one go.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.config import Evaluation, Runtime
from merit.errors import MeritError
from merit.eval.benchmarks import benchmark, engine_of
from merit.eval.engine import BenchmarkScore, ScoringEngine
from merit.io.artifacts import Artifacts, read_jsonl
from merit.io.progress import Progress

if TYPE_CHECKING:
    from merit.eval.answering.batches import Batch, Prompt
    from merit.eval.answering.generate import Partial

Parts = list[dict[str, Any]]  # {"text": ...} and {"image": [index, position] or a path}, in turn
Prompts = Mapping[str, Mapping[str, Parts]]  # benchmark -> index -> what is shown
Answers = dict[str, dict[str, str]]  # benchmark -> index -> text
Scores = dict[str, BenchmarkScore]  # benchmark -> its score and those of its questions
CACHE = "batches.safetensors"  # beside questions.json, where `cache_images` is set


def question_files(paths: Artifacts, settings: Evaluation, split: str = "test") -> dict[str, Path]:
    """{benchmark: its file of questions}; `split`, of the minis', is "test" or "validation".

    VLMEvalKit's own lie in `$LMUData`, else ~/LMUData; lm-eval's own tasks have none.
    """
    own = paths.data / "benchmarks" / ("" if split == "test" else split)
    public = Path(os.environ.get("LMUData", "~/LMUData")).expanduser()  # noqa: SIM112 - the kit's
    records = [benchmark(name) for name in settings.benchmarks]
    return {r.name: (public if r.public else own) / r.file for r in records if r.file}


class Respondent:
    """Puts one split's questions to models.

    Args: prompts: VLMEvalKit's, by benchmark and index; of text benchmarks none.
    With `settings.cache_images` the images are encoded once for all models, which must share their
    vision part; otherwise while answering, so that no more than a few batches are in memory.
    """

    def __init__(self, settings: Evaluation, files: Mapping[str, Path], prompts: Prompts) -> None:
        self.settings, self.files, self.prompts = settings, files, prompts
        self.by_lm_eval = engine_of(settings.benchmarks) == "lm_eval"
        self._kept: list[Batch] | None = None

    def answer(
        self,
        model: Any,
        processor: Any,
        label: str = "answers",
        cache: Path | None = None,
        partial: Partial | None = None,
    ) -> tuple[Answers, Scores | None]:
        """The model's answers; with their scores where the engine does not part the two.

        Args: cache: where `encode` has stored the questions. partial: keeps finished batches, so
        that a killed run goes on from there.
        """
        if self.by_lm_eval:
            return self._by_lm_eval(model, processor)
        texts = dict(partial.done) if partial else {}
        with Progress(label, len(self._where)) as progress:
            progress.advance(len(texts))
            for found in self._texts(model, processor, cache, set(texts)):
                if partial:
                    partial.add(found)
                texts |= found
                progress.advance(len(found))
        answers: Answers = {name: {} for name in self.settings.benchmarks}
        for position, (name, index) in enumerate(self._where):
            answers[name][index] = texts[position]
        return answers, None

    def encode(self, model: Any, processor: Any, cache: Path) -> None:
        """Store the questions as batches with their images encoded, for `answer`."""
        from merit.eval.answering.batches import save_batches, vision_hash

        batches = list(self._batches(model, processor, None, set()))
        save_batches(cache, batches, vision_hash(model))

    def load(self, folder: Path, runtime: Runtime) -> Any:
        """The model of a folder as `answer` takes it, held and run as `runtime` says.

        With `generator: vllm`, loaded by vLLM, which chooses GPU and attention by itself.
        """
        if self.settings.generator == "vllm" and not self.by_lm_eval:
            from merit.eval.answering.vllm_engine import VllmModel

            prompts = self._prompts()
            if len({prompt.pixels for prompt in prompts}) > 1:
                raise MeritError(
                    "key `evaluation.generator`: vllm takes one range of pixels for a model, and "
                    "the benchmarks have several; set `generator: transformers`"
                )
            most_images = max(len(p.images) for p in prompts)
            return VllmModel(folder, most_images, prompts[0].pixels, runtime.dtype)
        from merit.train.model import for_generation, load_model

        return load_model(folder, for_generation(runtime))

    @property
    def _where(self) -> list[tuple[str, str]]:
        return [(name, i) for name in self.settings.benchmarks for i in self.prompts[name]]

    def _texts(
        self, model: Any, processor: Any, cache: Path | None, done: set[int]
    ) -> Iterator[dict[int, str]]:
        """{position of a question: answer}, batch by batch, of those that are not `done`."""
        if self.settings.generator == "vllm":
            prompts, size = self._prompts(), self.settings.batch_size
            left = [i for i in range(len(prompts)) if i not in done]
            for chunk in (left[i : i + size] for i in range(0, len(left), size)):
                found = model.generate(processor, [prompts[i] for i in chunk])
                yield dict(zip(chunk, found, strict=True))
            return
        from merit.eval.answering.generate import generate

        for batch in self._batches(model, processor, cache, done):
            yield dict(zip(batch.questions, generate(model, processor, batch), strict=True))

    def _batches(
        self, model: Any, processor: Any, cache: Path | None, done: set[int]
    ) -> Iterable[Batch]:
        """The batches that are not yet answered, with their images encoded where they are kept."""
        from merit.eval.answering.batches import encode, load_batches, prepared, split

        if self._kept is None and cache is not None:
            self._kept = load_batches(cache, model)
        if self._kept is None:
            prompts = self._prompts()
            planned = split(processor, prompts, self.settings.batch_size)
            if not self.settings.cache_images:
                return prepared(processor, prompts, [b for b in planned if not done & set(b)])
            self._kept = [encode(model, b) for b in prepared(processor, prompts, planned)]
        return [batch for batch in self._kept if not done & set(batch.questions)]

    def _prompts(self) -> list[Prompt]:
        from merit.eval.answering.batches import Prompt
        from merit.eval.answering.question_images import Picture

        def limits(name: str) -> tuple[int, tuple[int, int] | None]:
            own, given = benchmark(name), self.settings
            low, high = own.min_pixels or given.min_pixels, own.max_pixels or given.max_pixels
            pixels = (low, high) if low and high else None
            return own.max_new_tokens or given.max_new_tokens, pixels

        def part(name: str, value: Mapping[str, Any]) -> str | Picture:
            if "text" in value:
                return str(value["text"])
            if isinstance(value["image"], str):
                return Picture(Path(value["image"]))
            return Picture(self.files[name], *value["image"])

        return [
            Prompt(tuple(part(name, value) for value in self.prompts[name][index]), *limits(name))
            for name, index in self._where
        ]

    def _by_lm_eval(self, model: Any, tokenizer: Any) -> tuple[Answers, Scores]:
        from merit.eval.answering.lm_engine import answer_all

        size, length = self.settings.batch_size, self.settings.max_new_tokens
        public = [name for name in self.settings.benchmarks if benchmark(name).public]
        found = answer_all(model, tokenizer, self.files, size, length) if self.files else {}
        if public:
            from merit.eval.answering.lm_public import answer_public

            found |= answer_public(model, tokenizer, public, self.settings)
        answers = {name: result.predictions for name, result in found.items()}
        return answers, {n: BenchmarkScore(r.score, r.questions) for n, r in found.items()}


def prompts_of(engine: ScoringEngine | None, files: Mapping[str, Path]) -> Prompts:
    """VLMEvalKit's prompts; of text benchmarks (no engine) none."""
    return {} if engine is None else engine.prompts(files)


def stored_questions(paths: Artifacts, model: str) -> dict[str, list[float]]:
    """{benchmark: every question's score in 0..1, in file order} of a model of the pipeline."""
    found: dict[str, list[float]] = {}
    for row in read_jsonl(paths.predictions(model)):
        found.setdefault(row["benchmark"], []).append(float(row["score"]))
    return found
