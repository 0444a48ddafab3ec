"""Tasks of a mixture: their files, and which of them are taken."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from merit.config.data import TaskRule
from merit.config.settings import nearest
from merit.errors import MeritError


def task_file(folder: Path, task: str) -> Path:
    """The file of a task's examples: `a/b c` is `a%2Fb%20c.jsonl`."""
    return folder / f"{file_stem(task)}.jsonl"


def file_stem(task: str) -> str:
    """The task's name as a file's, percent-encoded except for letters, digits and `_.-~+`.

    Raises MeritError for a name that no file can have.
    """
    name = quote(task, safe="+")
    name = f"%2E{name[1:]}" if name.startswith(".") else name  # a hidden file is overlooked
    if not task or len(name) > 240:
        raise MeritError(f"task {task!r}: a task's name has 1 to 240 bytes, as a file's")
    return name


def choose(
    counts: Mapping[str, int], wanted: Sequence[str] | TaskRule, seed: int, key: str
) -> list[str]:
    """The tasks that are taken, sorted: those listed, or by rule from `counts` of examples.

    `draw` tasks are `random.Random(seed).sample` of the sorted names. Raises MeritError that names
    `key` if a listed task does not exist or too few are left to draw from.
    """
    if not isinstance(wanted, TaskRule):
        check_known(wanted, counts, key)
        return sorted(set(wanted))
    check_known(wanted.exclude, counts, key)
    candidates = counts.keys() - set(wanted.exclude)
    names = sorted(task for task in candidates if counts[task] >= wanted.minimum)
    if wanted.draw is not None and wanted.draw > len(names):
        raise MeritError(
            f"key `{key}`: `draw`: found {wanted.draw}, but {len(names)} of "
            f"{len(candidates)} tasks have {wanted.minimum} examples or more"
        )
    if not names:
        raise MeritError(f"key `{key}`: no task has {wanted.minimum} examples or more")
    return names if wanted.draw is None else sorted(random.Random(seed).sample(names, wanted.draw))


def check_known(wanted: Sequence[str], known: Mapping[str, int], key: str) -> None:
    """Raises MeritError if a wanted task is not among the known ones, with the nearest name."""
    for task in wanted:
        if task not in known:
            raise MeritError(
                f"key `{key}`: no task is called {task!r}.{nearest(task, sorted(known))}"
            )
