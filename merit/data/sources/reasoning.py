"""Tasks of the package reasoning-gym (0.1.25, Apache-2.0): generated questions with own scorers.

`<benchmark>.jsonl` holds the questions as lm-eval asks them. `task`, `seed` and `item` identify the
package's instance, whose own `score_answer` judges the answer. No question is among the examples of
its task, word for word. Refused are tasks without stored answers, tasks that draw from Python sets
and so differ per process, and tasks whose scorer evaluates what the model wrote as Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merit.config.data import ReasoningData
from merit.config.settings import nearest
from merit.data.examples import make_example
from merit.errors import MeritError
from merit.io.artifacts import write_json, write_jsonl
from merit.io.progress import Progress

VERSION = "0.1.25"
INSTALL = ".venv/bin/pip install --constraint constraints.txt '.[reasoning]'"
# the package's categories, in three benchmarks of about as many tasks each
BENCHMARKS = {
    **dict.fromkeys(("algebra", "arithmetic", "geometry", "probability"), "reasoning_mathematics"),
    **dict.fromkeys(("algorithmic", "code"), "reasoning_algorithms"),
    **dict.fromkeys(("cognition", "games", "graphs", "induction", "logic"), "reasoning_logic"),
}
# `score_answer` runs the answer: eval, exec, or sympy.parse_expr, which is eval
RUNS_ANSWERS = {
    *("binary_matrix", "codeio", "countdown", "intermediate_integration", "n_queens"),
    *("polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix"),
    "string_insertion",
}
# other questions or answers under another PYTHONHASHSEED
CHANGES = {
    *("intermediate_integration", "isomorphic_strings", "knight_swap", "list_functions"),
    *("polynomial_multiplication", "ransom_note", "word_ladder"),
}
SIZE = 10_000  # instances of a task: some make all of them at once, and a few make others then


def write_reasoning(settings: ReasoningData, folder: Path) -> None:
    """Write the mixture, a file per task, and the benchmarks' questions.

    Raises MeritError if the package is missing or of another version, or a task cannot be used.
    """
    package = reasoning_gym()
    entries: list[dict[str, Any]] = []
    questions: dict[str, list[dict[str, Any]]] = {name: [] for name in BENCHMARKS.values()}
    with Progress("data", len(settings.tasks)) as progress:
        for task in sorted(settings.tasks):
            dataset = open_task(package, task, settings.seed)
            found = list(instances(dataset, task, settings.num_examples + settings.num_questions))
            rows = [
                make_example(f"{task}-{item}", task, [(e["question"], e["answer"])], ()).to_json()
                for item, e in found[: settings.num_examples]
            ]
            write_jsonl(folder / "mixture" / f"{task}.jsonl", rows)
            for item, entry in found[settings.num_examples :]:
                stated = {key: entry[key] for key in ("question", "answer")}
                instance = {"task": task, "seed": settings.seed, "item": item}
                questions[BENCHMARKS[dataset.category]].append(
                    {"index": f"{task}/{item}", **stated, **instance}
                )
            named = {"task": task, "family": dataset.category, "style": ""}
            entries.append({**named, "num_examples": len(rows)})
            progress.advance()
    write_json(folder / "mixture" / "tasks.json", entries)
    for name, asked in questions.items():
        if asked:
            write_jsonl(folder / "benchmarks" / f"{name}.jsonl", asked)
    (folder / "pretraining").mkdir()


def reasoning_gym() -> Any:
    """The package. Raises MeritError if it is missing or of another version: it asks otherwise."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("reasoning-gym")
    except PackageNotFoundError:
        raise MeritError(
            f"`data.source: reasoning_gym` needs the package reasoning-gym; install it: {INSTALL}"
        ) from None
    if found != VERSION:
        raise MeritError(f"reasoning-gym {found} is installed, {VERSION} is needed: {INSTALL}")
    import reasoning_gym as package

    return package


def open_task(package: Any, task: str, seed: int) -> Any:
    """The task's instances at its default difficulty, as the package's `ProceduralDataset`.

    Raises MeritError for a task that does not exist or cannot be used (see above).
    """
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        raise MeritError(f"key `data.tasks`: no task {task!r}.{nearest(task, sorted(DATASETS))}")
    for tasks, problem in (
        (RUNS_ANSWERS, "its scorer runs what the model writes"),
        (CHANGES, "it is generated differently in every process"),
    ):
        if task in tasks:
            raise MeritError(f"key `data.tasks`: {task!r} cannot be used: {problem}; leave it out")
    dataset = package.create_dataset(task, seed=seed, size=SIZE)
    if dataset.category not in BENCHMARKS:
        raise MeritError(
            f"key `data.tasks`: {task!r} is of the category {dataset.category!r}, which belongs to "
            f"no benchmark; known: {', '.join(BENCHMARKS)}"
        )
    return dataset


def instances(dataset: Any, task: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(item, instance) of the first `count` instances whose questions all differ.

    Raises MeritError if the task repeats itself too soon, or has no stored answer.
    """
    seen: set[str] = set()
    for item in range(SIZE):
        entry = dataset[item]
        if not isinstance(entry["answer"], str) or not entry["answer"].strip():
            raise MeritError(f"key `data.tasks`: {task!r} has no stored answers; leave it out")
        if entry["question"] not in seen:
            seen.add(entry["question"])
            yield item, entry
        if len(seen) == count:
            return
    raise MeritError(
        f"key `data.tasks`: {task!r} has {len(seen)} different questions among its first "
        f"{SIZE}, not the {count} wanted; lower `num_examples`, or leave it out"
    )
