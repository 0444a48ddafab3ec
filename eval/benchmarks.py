"""The table of benchmarks: what each one measures, how it is scored, what it stands for.

A benchmark is a record, not a class. Its questions are `data/benchmarks/<name>.tsv`, for text
`<name>.jsonl` (docs/formats.md); which engine scores its answers, and how, follows from its kind
(eval.datasets for VLMEvalKit, eval.answering.lm_engine for lm-eval).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from merit.errors import MeritError

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
Kind = Literal["choice", "exact", "open", "likelihood", "generation"]
Engine = Literal["vlmeval", "lm_eval"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    `kind` is "choice" (a letter, matched by VLMEvalKit), "exact" (a short answer, all or nothing)
    or "open" (free text, eval.rubric), all three scored by VLMEvalKit; or, scored by lm-eval,
    "likelihood" (the likeliest option) or "generation" (a written answer, all or nothing).
    `metric` is reported in 0..100; `direction` says whether more is better. Raise `version`
    whenever prompt or scoring changes: numbers of two versions are not comparable. `paper_column`
    is the column of the paper's table that it stands for.
    """

    name: str
    category: Category
    kind: Kind
    metric: Literal["accuracy", "rubric"]
    direction: Literal["higher", "lower"]
    version: int
    paper_column: str

    @property
    def engine(self) -> Engine:
        """What puts the questions to a model and scores the answers."""
        return "lm_eval" if self.kind in ("likelihood", "generation") else "vlmeval"

    @property
    def file(self) -> str:
        """The name of its file of questions."""
        return f"{self.name}.{'jsonl' if self.engine == 'lm_eval' else 'tsv'}"


def _text(name: str, category: Category, kind: Kind, paper_column: str) -> Benchmark:
    return Benchmark(name, category, kind, "accuracy", "higher", 1, paper_column)


_FLUENCY: Category = "User preference & fluency"

_TABLE = (
    Benchmark("mini_scene", "General MCQA", "choice", "accuracy", "higher", 1, "seedbench"),
    Benchmark("mini_mcq", "General MCQA", "choice", "accuracy", "higher", 1, "mmbench"),
    Benchmark("mini_describe", _FLUENCY, "open", "rubric", "higher", 1, "llava_wild"),
    Benchmark("mini_explain", _FLUENCY, "open", "rubric", "higher", 1, "mmvet"),
    Benchmark("mini_signs", "Text-rich VQA", "exact", "accuracy", "higher", 1, "textvqa"),
    Benchmark("mini_charts", "Text-rich VQA", "exact", "accuracy", "higher", 1, "ai2d"),
    Benchmark("mini_digits", "Image reasoning", "exact", "accuracy", "higher", 1, "mathvista"),
    Benchmark("mini_multihop", "Image reasoning", "exact", "accuracy", "higher", 1, "mmmu"),
    _text("mini_facts", "Knowledge QA", "likelihood", "mmlu"),
    _text("mini_twofold", "Knowledge QA", "likelihood", "gpqa"),
    _text("mini_endings", "Commonsense", "likelihood", "hellaswag"),
    _text("mini_whois", "Commonsense", "likelihood", "winogrande"),
    _text("mini_passages", "Text inference", "likelihood", "boolq"),
    _text("mini_crosslingual", "Text inference", "likelihood", "xnli"),
    _text("mini_science", "Problem solving", "generation", "arc_challenge"),
    _text("mini_programs", "Problem solving", "generation", "humaneval"),
)

BENCHMARKS: dict[str, Benchmark] = {record.name: record for record in _TABLE}


def benchmark(name: str) -> Benchmark:
    """The record of one benchmark.

    Raises MeritError with the nearest known name where there is none.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    close = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(BENCHMARKS)}"
    raise MeritError(f"no benchmark is called {name!r}; {hint}")


def engine_of(names: Sequence[str]) -> Engine:
    """The one engine of these benchmarks. Raises MeritError where they need both."""
    engines = {benchmark(name).engine: name for name in names}
    if len(engines) > 1:
        raise MeritError(
            f"key `evaluation.benchmarks`: {' and '.join(engines.values())} are scored by "
            f"{' and '.join(engines)}; an experiment's benchmarks must share one engine"
        )
    return next(iter(engines))
