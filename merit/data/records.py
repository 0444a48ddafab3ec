"""A source, and its records as they are stored: JSON lists, JSON lines, rows of parquet files.

Nothing here holds more than a chunk of a file: Vision-FLAN's annotations are 983 MB in one list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from merit.data import parquet
from merit.data.examples import BadRecord, Example
from merit.data.hub import files
from merit.data.images import ImageFinder
from merit.data.tasks import file_stem
from merit.errors import MeritError
from merit.io.disk import check_file
from merit.io.texts import DEEP, is_object, parse_object

CHUNK = 2**20  # characters
LONGEST = 2**26  # characters that a record may take; what is longer is malformed, not unfinished
POINTER = "version https://git-lfs.github.com/spec/"


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
            task_of = self.task_of or partial(_constant, task)
            for path in files(folder, [pattern]):
                yield from self.read(folder, path.relative_to(folder).as_posix(), task_of)

    def _patterns(self, wanted: Collection[str] | None) -> Iterator[tuple[str, str]]:
        if "{task}" not in self.files:
            yield self.tasks[0] if self.tasks else "", self.files
            return
        for task in self.tasks:
            if wanted is None or task in wanted:
                yield task, self.files.format(task=file_stem(task))


def _constant(task: str, value: dict[str, Any]) -> str:
    return task


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


def json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, `[{...}, {...}]`, or of one object after the other.

    Raises MeritError that names the file and the record if it is truncated or malformed.
    """
    decoder, number = json.JSONDecoder(), 0
    with _open(path) as file:
        text, position, ended = _read(file, path), 0, False
        _refuse_pointer(path, text)
        while True:
            while position < len(text) and text[position] in " \t\r\n,[]\ufeff":
                position += 1
            if position < len(text):
                where = f"{path}, record {number + 1}"
                try:
                    value, position = decoder.raw_decode(text, position)
                except RecursionError:
                    raise MeritError(f"{where}: not valid JSON ({DEEP})") from None
                except ValueError as error:
                    why = getattr(error, "msg", str(error))
                    if ended or len(text) - position > LONGEST:
                        raise MeritError(
                            f"{where}: truncated or not valid JSON ({why}); write the file again"
                        ) from None
                else:
                    number += 1
                    yield is_object(value, where)
                    continue
            if ended:
                return
            more = _read(file, path)
            text, position, ended = text[position:] + more, 0, not more


def jsonl_records(path: Path) -> Iterator[dict[str, Any]]:
    """The object of every line. Raises MeritError that names the file and the line."""
    for number, line in enumerate(text_lines(path), start=1):
        yield parse_object(line, f"{path}, line {number}")


def text_lines(path: Path) -> Iterator[str]:
    """Every line, unparsed. Raises MeritError if the file is missing or no UTF-8 text."""
    with _open(path) as file:
        line = _read(file, path, line=True)
        _refuse_pointer(path, line)
        while line:
            yield line
            line = _read(file, path, line=True)


def _open(path: Path) -> TextIO:
    check_file(path)
    try:
        return path.open(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found") from None


def _read(file: TextIO, path: Path, line: bool = False) -> str:
    try:
        text = file.readline(LONGEST) if line else file.read(CHUNK)
    except UnicodeDecodeError as error:
        raise MeritError(f"{path}: not UTF-8 text ({error.reason})") from None
    if len(text) == LONGEST:
        raise MeritError(f"{path}: a line of {LONGEST} characters or more; write a record a line")
    return text


def _refuse_pointer(path: Path, text: str) -> None:
    if text.startswith(POINTER):
        raise MeritError(
            f"{path}: a Git LFS pointer in place of the file; fetch the file itself "
            "(`git lfs pull`, or let merit fetch it)"
        )
