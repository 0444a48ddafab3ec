"""The table of benchmarks: what each one measures, how it is scored, what it stands for.

A benchmark is a record, not a class. Its questions are `data/benchmarks/<name>.tsv`
(docs/formats.md); how its answers are scored follows from its kind (eval.datasets).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from merit.errors import MeritError

Category = Literal[
    "General MCQA", "User preference & fluency", "Text-rich VQA", "Image reasoning"
]  # METHOD 5, in the order of the paper's table 2
Kind = Literal["choice", "exact", "open"]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    `kind` is "choice" (a letter, matched by VLMEvalKit), "exact" (a short answer, all or nothing)
    or "open" (free text, eval.rubric). `metric` is reported in 0..100; `direction` says whether
    more is better. Raise `version` whenever prompt or scoring changes: numbers of two versions are
    not comparable. `paper_column` is the column of the paper's table that it stands for.
    """

    name: str
    category: Category
    kind: Kind
    metric: Literal["accuracy", "rubric"]
    direction: Literal["higher", "lower"]
    version: int
    paper_column: str


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
