"""The table of benchmarks, eval/benchmarks.yaml: what each measures, how it is asked and scored.

A benchmark is a record, not a class; two engines ask and score the minis and the public ones. The
minis' questions are `data/benchmarks/<name>.tsv`, for text `<name>.jsonl` (docs/formats.md); those
of VLMEvalKit's datasets are `$LMUData/<dataset>.tsv`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter

from merit.config.settings import PositiveInt, Settings
from merit.errors import MeritError

FILE = Path(__file__).with_suffix(".yaml")
Category = Literal[
    "General MCQA",
    "User preference & fluency",
    "Text-rich VQA",
    "Image reasoning",
    "Knowledge QA",
    "Commonsense",
    "Text inference",
    "Problem solving",
]  # in the order of the paper's tables 2 and 4
Kind = Literal["choice", "exact", "open", "likelihood", "generation", "vlmeval", "lm_eval"]
Engine = Literal["vlmeval", "lm_eval"]


@dataclass(frozen=True)
class BenchmarkScore:
    """One model on one benchmark: `score` in percent, and {index: its part of the score}.

    100 times the mean of the parts is the score (merit.eval.public_datasets.score_public).
    """

    score: float
    questions: dict[str, float]
    also: dict[str, float] = field(default_factory=dict)  # what is reported beside the score


class Cell(Settings):
    """A number in the table that a VLMEvalKit scorer returns, and its scale.

    The sum over `columns` of the row whose cells are `row`, times `times`. Without `row` the table
    has one row.
    """

    row: dict[str, str] = Field(default_factory=dict)
    columns: Annotated[list[str], Field(min_length=1)]
    times: float = 1.0


class Benchmark(Settings):
    """One benchmark.

    `kind`: through VLMEvalKit "choice" (a letter), "exact" (a short answer, all or nothing) and
    "open" (free text, merit.eval.rubric); through lm-eval "likelihood" (the likeliest option) and
    "generation" (a written answer, all or nothing). "vlmeval" and "lm_eval" are the engines' own
    `dataset` or task, prompts and scorer.

    "likelihood" and "generation" are asked as eval/tasks/mini_text/<name>.yaml says, or a shared
    file `task`.

    `score` is VLMEvalKit's number, `also` what is reported beside it, `key` lm-eval's metric, all
    in 0..100; `direction` says whether more is better. With `split`, only its questions count.
    `judge`: asked if matching finds no answer ("optional") or for everything ("required").
    `shots`, `min_pixels`, `max_pixels` and `max_new_tokens` override the experiment's `evaluation`.
    `paper_column` is the column of the paper's table that it is or stands for, or "".
    """

    name: str
    kind: Kind
    category: Category
    paper_column: str = ""
    metric: Literal["accuracy", "rubric"] = "accuracy"
    direction: Literal["higher", "lower"] = "higher"
    version: int = 1
    dataset: str = ""
    task: str = ""
    split: str | None = None
    key: str = "acc"
    score: Cell | None = None
    also: dict[str, Cell] = Field(default_factory=dict)
    judge: Literal["none", "optional", "required"] = "none"
    shots: Annotated[int, Field(ge=0)] | None = None
    runs_code: bool = False
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None

    @property
    def engine(self) -> Engine:
        """What asks the questions and scores the answers."""
        return "lm_eval" if self.kind in ("likelihood", "generation", "lm_eval") else "vlmeval"

    @property
    def open_ended(self) -> bool:
        """Whether answers are free text, scored by a judge or a rubric."""
        return self.metric == "rubric"

    @property
    def file(self) -> str | None:
        """The name of its file of questions; None for lm-eval's own tasks, which load theirs."""
        if self.kind == "lm_eval":
            return None
        if self.kind == "vlmeval":
            return f"{self.dataset}.tsv"
        return f"{self.name}.{'jsonl' if self.engine == 'lm_eval' else 'tsv'}"

    @property
    def public(self) -> bool:
        """Whether the questions are the engine's own, not the `data` stage's."""
        return self.kind in ("vlmeval", "lm_eval")


def read_records(path: Path) -> dict[str, Benchmark]:
    """{name: record}. Raises pydantic's ValidationError if one is malformed."""
    records: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    named = {name: {"name": name, **record} for name, record in records.items()}
    return TypeAdapter(dict[str, Benchmark]).validate_python(named)


BENCHMARKS: dict[str, Benchmark] = read_records(FILE)


def benchmark(name: str) -> Benchmark:
    """The record of one benchmark. Raises MeritError with the nearest name if there is none."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    close = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(BENCHMARKS)}"
    raise MeritError(f"no benchmark is called {name!r}; {hint}")


def engine_of(names: Sequence[str]) -> Engine:
    """The one engine of these benchmarks. Raises MeritError if they need both."""
    engines = {benchmark(name).engine: name for name in names}
    if len(engines) > 1:
        raise MeritError(
            f"key `evaluation.benchmarks`: {' and '.join(engines.values())} are scored by "
            f"{' and '.join(engines)}; an experiment's benchmarks must share one engine"
        )
    return next(iter(engines))
