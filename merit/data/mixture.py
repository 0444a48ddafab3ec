"""A mixture from public sources or one's own files: read, chosen, drawn, checked, written.

Records are converted in one pass into a spool, a temporary file of which only the lines' places are
kept in memory; then tasks are chosen, and each task's examples drawn and their images checked.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from merit.config.data import OnBadRecord, TaskRule
from merit.data.examples import ESCAPED, BadRecord, Example, split_turns
from merit.data.images import ImageFinder, has_image, load_image
from merit.data.source import Source
from merit.data.tasks import check_known, choose, task_file
from merit.errors import MeritError
from merit.io.progress import Progress

WIDEST = 200  # the ratio of an image's sides above which Qwen2.5-VL's processor raises
AT_A_TIME = 4096  # examples in memory while their images are checked
SHOWN = 5  # bad records that an error lists; the manifest lists all


@dataclass
class Spool:
    """Converted examples on disk, and the records that were none, by task."""

    file: BinaryIO
    places: dict[str, array[int]] = field(default_factory=dict)  # task -> where its lines begin
    bad: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)  # tasks that were seen and are not wanted
    num_records: int = 0

    def add(self, example: Example, where: str) -> None:
        self.places.setdefault(example.task, array("q")).append(self.file.tell())
        self.file.write(json.dumps([where, example.to_json()]).encode() + b"\n")

    def refuse(self, task: str, where: str, reason: str) -> None:
        self.bad.setdefault(task, []).append({"where": where, "reason": reason})

    def read(self, task: str, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, example) of some of a task's examples."""
        for index in indices:
            self.file.seek(self.places[task][index])
            where, example = json.loads(self.file.readline())
            yield where, example

    @property
    def counts(self) -> dict[str, int]:
        return {task: len(places) for task, places in self.places.items()}


@dataclass(frozen=True)
class Part:
    """One source as it goes into a mixture; `key` is its place in the settings, for messages."""

    name: str
    source: Source
    folder: Path
    pictures: ImageFinder
    tasks: Sequence[str] | TaskRule
    key: str
    prefix: str = ""
    max_examples: int | None = None
    max_turns: int | None = None
    max_records: int | None = None  # the first so many are read, whatever their tasks
    download: bool = False


@dataclass(frozen=True)
class Rules:
    """What holds for all sources of a mixture."""

    seed: int
    held_out: float
    on_bad_record: OnBadRecord
    check_images: bool


def wanted_before_reading(part: Part, seed: int) -> list[str] | None:
    """The tasks to read, where that can be told without reading; None: all."""
    if not isinstance(part.tasks, TaskRule):
        if part.source.tasks:
            choose(dict.fromkeys(part.source.tasks, 1), part.tasks, seed, part.key)
        return list(part.tasks)
    if part.source.tasks and part.tasks.minimum == 1:
        return choose(dict.fromkeys(part.source.tasks, 1), part.tasks, seed, part.key)
    return None


def convert_all(part: Part, spool: Spool, wanted: Collection[str] | None) -> None:
    """Every record of the wanted tasks into the spool, or among its bad records; of the first
    `max_records` alone where that is set.
    """
    for record in islice(part.source.records(part.folder, wanted), part.max_records):
        spool.num_records += 1
        if record.task and wanted is not None and record.task not in wanted:
            spool.left_out.add(record.task)
            continue
        try:
            if not record.task:
                raise BadRecord("it does not say its task")
            example = part.source.convert(record, part.pictures)
            pieces = split_turns(example, part.max_turns) if part.max_turns else [example]
        except BadRecord as problem:
            spool.refuse(record.task, record.where, str(problem))
            continue
        for piece in pieces:
            spool.add(replace(piece, task=record.task), record.where)


def write_part(
    part: Part,
    rules: Rules,
    spool: Spool,
    wanted: Sequence[str] | None,
    write: Callable[[str, str, dict[str, Any]], None],
) -> dict[str, Any]:
    """Choose, draw and `write(task, split, example)`; what the manifest says of the source.

    `wanted` are the tasks, where they were chosen before reading.
    Raises MeritError for bad records of the chosen tasks (`on_bad_record: error`), a task without
    one good example, or a choice that cannot be met.
    """
    _stop_for_bad(part, rules, {"": spool.bad.get("", [])})
    candidates = dict.fromkeys(spool.left_out | (spool.bad.keys() - {""}), 0) | spool.counts
    every = isinstance(part.tasks, TaskRule) and part.tasks.draw is None
    if wanted is not None and not every:  # by a rule for all, a task without a record is no task
        check_known(wanted, sorted(candidates), part.key)
    if not spool.places:
        raise MeritError(_without_example(part, spool))
    choice = part.tasks if wanted is None else [task for task in wanted if task in candidates]
    chosen = choose(candidates, choice, rules.seed, part.key)
    tasks, bad = [], {"": spool.bad.get("", [])}
    with Progress(part.name, len(chosen)) as progress:
        for task in chosen:
            bad[task] = spool.bad.get(task, [])
            _stop_for_bad(part, rules, {task: bad[task]})
            tasks.append(_write_task(part, rules, spool, task, bad[task], write))
            progress.advance()
    selection: dict[str, Any] = {"seed": rules.seed, "num_tasks_found": len(candidates)}
    selection |= (
        part.tasks.model_dump() if isinstance(part.tasks, TaskRule) else {"listed": len(chosen)}
    )
    listed = [{"task": task, **entry} for task, entries in bad.items() for entry in entries]
    return {
        "num_records": spool.num_records,
        "num_records_stated": part.source.num_records,
        "selection": selection,
        "tasks": tasks,
        "bad_records": listed,
    }


def _write_task(
    part: Part,
    rules: Rules,
    spool: Spool,
    task: str,
    bad: list[dict[str, str]],
    write: Callable[[str, str, dict[str, Any]], None],
) -> dict[str, Any]:
    available = spool.counts.get(task, 0)
    num_records = available + len(bad)
    # a stream of its own for each task, so that one more task leaves the others as they are
    rng = np.random.default_rng([rules.seed, *task.encode()])
    order = rng.permutation(available)
    limit = part.max_examples or available
    good: list[int] = []
    start = 0
    while start < available and len(good) < limit:  # a broken image's place goes to the next one
        window = order[start : start + limit - len(good)].tolist()
        start += len(window)
        broken = _broken(part, rules, spool, task, window)
        bad += [entry for entry in broken.values() if entry is not None]
        _stop_for_bad(part, rules, {task: bad})
        good += [index for index in window if broken[index] is None]
    if not good:
        raise MeritError(
            f"{part.folder}: task {task!r}: no example is left of {num_records} records"
        )
    num_held = min(len(good) - 1, round(rules.held_out * len(good)))
    if rules.held_out and num_held == 0 and len(good) > 1:
        num_held = 1
    held, escaped = set(good[:num_held]), 0
    for index, (_, example) in zip(sorted(good), spool.read(task, sorted(good)), strict=True):
        example["task"] = f"{part.prefix}{task}"
        escaped += any(ESCAPED in message["content"] for message in example["messages"])
        write(example["task"], "held_out" if index in held else "mixture", example)
    return {
        "task": f"{part.prefix}{task}",
        "num_available": available,
        "num_examples": len(good) - num_held,
        "num_held_out": num_held,
        "num_escaped": escaped,
    }


def _broken(
    part: Part, rules: Rules, spool: Spool, task: str, indices: list[int]
) -> dict[int, dict[str, str] | None]:
    """For each example what is wrong with its images, None where nothing is."""

    def check(item: tuple[str, dict[str, Any]]) -> dict[str, str] | None:
        where, example = item
        for image in example["images"]:
            try:
                check_image(part.pictures.referring / image, decode=rules.check_images)
            except MeritError as problem:
                reason = str(problem).replace(f"{part.folder}/", "")
                return {"where": where, "reason": reason}
        return None

    indices = sorted(indices)  # images of a parquet file in their order
    found: dict[int, dict[str, str] | None] = {}
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(indices), AT_A_TIME):
            part_of = indices[start : start + AT_A_TIME]
            found |= zip(part_of, threads.map(check, spool.read(task, part_of)), strict=True)
    return found


def check_image(path: Path, decode: bool = True) -> None:
    """Raises MeritError where the image is missing, broken or longer than the processor takes."""
    if not decode:
        if not has_image(path):
            raise MeritError(f"{path}: image not found")
        return
    width, height = load_image(path).size
    if max(width, height) > WIDEST * min(width, height):
        raise MeritError(f"{path}: {width} x {height} pixels, an aspect ratio above {WIDEST}")


def _without_example(part: Part, spool: Spool) -> str:
    first = next((entry for entries in spool.bad.values() for entry in entries), None)
    why = f"; the first: {first['where']}: {first['reason']}" if first else ""
    num_bad = sum(map(len, spool.bad.values()))
    return f"{part.folder}: not one example in {num_bad} record(s){why}"


def _stop_for_bad(part: Part, rules: Rules, bad: dict[str, list[dict[str, str]]]) -> None:
    found = [(task, entry) for task, entries in bad.items() for entry in entries]
    if found and rules.on_bad_record == "error":
        lines = [f"  {e['where']}: {e['reason']}" for _, e in found[:SHOWN]]
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        task = f"task {found[0][0]!r}: " if found[0][0] else ""
        raise MeritError(
            f"{part.folder}: {task}{len(found)} bad record(s); mend them, or leave them out with "
            "`data.on_bad_record: skip`\n" + "\n".join(lines) + more
        )


def append(folder: Path) -> Callable[[str, str, dict[str, Any]], None]:
    """`write` of a mixture: a line to `<folder>/<split>/<task>.jsonl`."""

    def write(task: str, split: str, example: dict[str, Any]) -> None:
        path = task_file(folder / split, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(example, ensure_ascii=False).encode() + b"\n")

    return write
