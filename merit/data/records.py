"""A source, and its records as they are stored: JSON lists, JSON lines, rows of parquet files.

Files are read piece by piece: Vision-FLAN's annotations are 983 MB in one list.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from merit.data import parquet
from merit.data.examples import BadRecord, Example
from merit.data.hub import files
from merit.data.images import ImageFinder
from merit.data.tasks import file_stem
from merit.io.texts import json_records, jsonl_records


@dataclass(frozen=True)
class Record:
    """One record of a source: its place, its task, what it says, and its unique id."""

    where: str  # "train.json, record 3"
    task: str
    value: dict[str, Any]
    id: str
    problem: str = ""  # why it cannot be read

    def get(self, key: str) -> Any:
        """The value of a key. Raises BadRecord if it is missing."""
        if key not in self.value:
            raise BadRecord(f"key `{key}` is missing; found {sorted(self.value)}")
        return self.value[key]


TaskOf = Callable[[dict[str, Any]], str]
Reader = Callable[[Path, str, TaskOf], Iterator[Record]]


@dataclass(frozen=True)
class Source:
    """Where a source is, and how it is read.

    `files` is a pattern below the source's folder; with `{task}` in it, every task has its own.
    `read` yields the records of a file, `convert` makes the example of a record and raises
    BadRecord. `tasks` are the names, if known before reading. `task_of` tells a record's task; by
    default it is the file's, or the only one. `archives` are patterns of the images, if they lie
    beside the records (`a|b`: a, or what it is unpacked to). `repository` is None if the hub does
    not have the source in a form that can be read; `hint` then says what to do. `num_records` is
    what its authors or the hub state.
    """

    repository: str | None
    revision: str | None
    licence: str
    files: str
    read: Reader
    convert: Callable[[Record, ImageFinder], Example]
    tasks: tuple[str, ...] = ()
    task_of: TaskOf | None = None
    # in the parquet rows, beside the records, in a folder for several sources (COCO), or nowhere
    images: Literal["rows", "beside", "shared", "none"] = "beside"
    archives: tuple[str, ...] = ()
    num_records: int | None = None
    hint: str = ""

    def patterns(self, wanted: Collection[str] | None = None) -> list[str]:
        """Patterns of the files to read for the wanted tasks (None: all)."""
        return [pattern for _, pattern in self._patterns(wanted)]

    def records(self, folder: Path, wanted: Collection[str] | None = None) -> Iterator[Record]:
        """The records of these files; those of other tasks may be among them."""
        for task, pattern in self._patterns(wanted):
            task_of = self.task_of or (lambda _, task=task: task)  # type: ignore[misc]
            for path in files(folder, [pattern]):
                yield from self.read(folder, path.relative_to(folder).as_posix(), task_of)

    def _patterns(self, wanted: Collection[str] | None) -> Iterator[tuple[str, str]]:
        if "{task}" not in self.files:
            yield self.tasks[0] if self.tasks else "", self.files
            return
        for task in self.tasks:
            if wanted is None or task in wanted:
                yield task, self.files.format(task=file_stem(task))


# --- readers ------------------------------------------------------------------------------------


def json_list(folder: Path, name: str, task_of: TaskOf) -> Iterator[Record]:
    """The records of a JSON list; each id gets a number, since public ids are not unique."""
    for number, value in enumerate(json_records(folder / name), start=1):
        own = value.get("id")
        stated = "" if own is None else f" (id {own!r})"
        identifier = f"{Path(name).stem if own is None else own}@{number}"
        yield Record(f"{name}, record {number}{stated}", task_of(value), value, identifier)


def json_lines(folder: Path, name: str, task_of: TaskOf) -> Iterator[Record]:
    """The records of a JSONL file."""
    for number, value in enumerate(jsonl_records(folder / name), start=1):
        task = task_of(value)
        yield Record(f"{name}, line {number}", task, value, f"{task}-{number}")


def parquet_rows(*columns: str) -> Reader:
    """A reader of a parquet file's rows, without images; adds `file` and `row`, from 0."""

    def read(folder: Path, name: str, task_of: TaskOf) -> Iterator[Record]:
        for row, value in enumerate(parquet.rows(folder / name, columns)):
            value |= {"file": name, "row": row}
            yield Record(f"{name}, row {row}", task_of(value), value, f"{name}/{row}")

    return read
