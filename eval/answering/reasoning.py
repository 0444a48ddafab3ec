"""reasoning-gym's own scorer, for the questions of merit.data.sources.reasoning."""

from __future__ import annotations

import functools
from typing import Any

from merit.data.sources.reasoning import open_task, reasoning_gym
from merit.errors import MeritError


@functools.lru_cache(maxsize=256)
def _task(task: str, seed: int) -> Any:
    return open_task(reasoning_gym(), task, seed)


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """{"score": the task's `score_answer` of the answer, in 0..1}, as lm-eval takes it.

    The instance is generated again from its task, seed and item. If the scorer fails on the answer
    (a number expected), the score is 0. Raises MeritError if the package's question has changed.
    """
    dataset = _task(doc["task"], doc["seed"])
    entry = dataset[doc["item"]]
    if entry["question"] != doc["question"]:
        raise MeritError(
            f"question {doc['index']!r} is not what reasoning-gym generates; run the data stage "
            "again"
        )
    try:
        return {"score": float(dataset.score_answer(results[0].strip(), entry))}
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError):
        return {"score": 0.0}
