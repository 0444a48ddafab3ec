"""The examples of one source: converted, tasks chosen, examples drawn, their images checked.

Records are converted in one pass into a spool, a temporary file of which only the positions of
lines are kept in memory.
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from merit.config.data import JsonlData, PublicData, TaskRule
from merit.data.examples import BadRecord, Example, split_turns
from merit.data.images import ImageFinder, has_image, load_image
from merit.data.records import Source
from merit.data.tasks import check_known, choose
from merit.errors import MeritError

WIDEST = 200  # the ratio of an image's sides above which Qwen2.5-VL's processor raises
AT_A_TIME = 4096  # examples in memory while their images are checked
SHOWN = 5  # bad records that an error lists; the manifest lists all


@dataclass(frozen=True)
class Part:
    """One source as it goes into a mixture; `key` is its place in the settings, for messages."""

    name: str
    source: Source
    folder: Path  # of the source's files
    images: ImageFinder
    settings: PublicData | JsonlData
    tasks: Sequence[str] | TaskRule
    key: str
    prefix: str = ""
    max_examples: int | None = None
    max_turns: int | None = None
    max_records: int | None = None  # only the first so many are read, whatever their tasks
    phase: str = ""  # of the base: all tasks go into its file, and nothing is held out


@dataclass
class Spool:
    """Converted examples on disk, and the records that are none, by task."""

    file: BinaryIO
    positions: dict[str, array[int]] = field(default_factory=dict)  # of a task's lines
    bad: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    left_out: set[str] = field(default_factory=set)  # tasks that were seen and are not wanted
    num_records: int = 0

    def add(self, example: Example, where: str) -> None:
        """Raises BadRecord if the example's text cannot be written."""
        try:
            line = json.dumps([where, example.to_json()], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise BadRecord(f"{half!r} is half of a character; write the whole pair") from None
        self.positions.setdefault(example.task, array("q")).append(self.file.tell())
        self.file.write(line + b"\n")

    def read(self, task: str, indices: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where, example) of some of a task's examples."""
        for index in indices:
            self.file.seek(self.positions[task][index])
            where, example = json.loads(self.file.readline())
            yield where, example

    def count(self, task: str) -> int:
        """How many examples the task has."""
        return len(self.positions.get(task, ()))


def wanted_before_reading(part: Part) -> list[str] | None:
    """The tasks to read, if they are known without reading; None: all."""
    known = dict.fromkeys(part.source.tasks, 1)
    if isinstance(part.tasks, TaskRule):
        is_known = known and part.tasks.minimum == 1
        return choose(known, part.tasks, part.settings.seed, part.key) if is_known else None
    return choose(known or dict.fromkeys(part.tasks, 1), part.tasks, part.settings.seed, part.key)


def convert_all(part: Part, spool: Spool, wanted: Collection[str] | None) -> None:
    """Put every record of the wanted tasks into the spool, or among its bad records."""
    for record in islice(part.source.records(part.folder, wanted), part.max_records):
        spool.num_records += 1
        if record.task and wanted is not None and record.task not in wanted:
            spool.left_out.add(record.task)
            continue
        try:
            if record.problem or not record.task:
                raise BadRecord(record.problem or "it does not say its task")
            example = part.source.convert(record, part.images)
            for piece in split_turns(example, part.max_turns) if part.max_turns else [example]:
                spool.add(replace(piece, task=record.task), record.where)
        except BadRecord as problem:
            spool.bad[record.task].append({"where": record.where, "reason": str(problem)})


def choose_tasks(part: Part, spool: Spool, wanted: Sequence[str] | None) -> tuple[list[str], int]:
    """(the tasks to write, how many were found). `wanted`: those chosen before reading.

    Raises MeritError for records without a task, no good example, or a choice that cannot be met.
    """
    _stop_for_bad(part, spool, "")
    seen = spool.left_out | (spool.bad.keys() - {""}) | spool.positions.keys()
    counts = {task: spool.count(task) for task in seen}
    takes_all = isinstance(part.tasks, TaskRule) and part.tasks.draw is None
    if wanted is not None and not takes_all:  # a rule for all skips a task without a record
        check_known(wanted, counts, part.key)
    if not spool.positions:
        bad = [entry for entries in spool.bad.values() for entry in entries]
        why = f"; the first: {bad[0]['where']}: {bad[0]['reason']}" if bad else ""
        raise MeritError(f"{part.folder}: not one example in {len(bad)} record(s){why}")
    choice = part.tasks if wanted is None else [task for task in wanted if task in counts]
    return choose(counts, choice, part.settings.seed, part.key), len(counts)


def draw(part: Part, spool: Spool, task: str) -> list[int]:
    """Indices of the drawn examples; a broken image's place goes to the next one."""
    _stop_for_bad(part, spool, task)
    # a random stream per task, so that one more task leaves the others as they are
    rng = np.random.default_rng([part.settings.seed, *task.encode()])
    order = rng.permutation(spool.count(task))
    limit = part.max_examples or len(order)
    good: list[int] = []
    start = 0
    while start < len(order) and len(good) < limit:
        window = order[start : start + limit - len(good)].tolist()
        start += len(window)
        broken = _broken(part, spool, task, sorted(window))  # parquet files are read in order
        spool.bad[task] += broken.values()
        _stop_for_bad(part, spool, task)
        good += [index for index in window if index not in broken]
    return good


def _broken(part: Part, spool: Spool, task: str, indices: list[int]) -> dict[int, dict[str, str]]:
    """What is wrong with the images of an example, for those with a broken one."""

    def check(item: tuple[str, dict[str, Any]]) -> dict[str, str] | None:
        where, example = item
        try:
            for image in example["images"]:
                check_image(part.images.referring / image, part.settings.check_images == "decode")
        except MeritError as problem:
            return {"where": where, "reason": str(problem).replace(f"{part.folder}/", "")}
        return None

    found: dict[int, dict[str, str]] = {}
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(indices), AT_A_TIME):
            some = indices[start : start + AT_A_TIME]
            problems = threads.map(check, spool.read(task, some))
            found |= {i: problem for i, problem in zip(some, problems, strict=True) if problem}
    return found


def check_image(path: Path, decode: bool) -> None:
    """Raises MeritError if the image is missing, broken or longer than the processor takes."""
    if not decode:
        if not has_image(path):
            raise MeritError(f"{path}: image not found")
        return
    width, height = load_image(path).size
    if max(width, height) > WIDEST * min(width, height):
        raise MeritError(f"{path}: {width} x {height} pixels, an aspect ratio above {WIDEST}")


def _stop_for_bad(part: Part, spool: Spool, task: str) -> None:
    bad = spool.bad[task]
    if bad and part.settings.on_bad_record == "error":
        lines = [f"\n  {entry['where']}: {entry['reason']}" for entry in bad[:SHOWN]]
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        named = f"task {task!r}: " if task else ""
        raise MeritError(
            f"{part.folder}: {named}{len(bad)} bad record(s); mend them, or leave them out with "
            f"`data.on_bad_record: skip`{''.join(lines)}{more}"
        )
