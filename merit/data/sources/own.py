"""One's own mixture: JSONL, JSON or parquet files, or what `datasets` saved (docs/sources.md)."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from merit.config.data import Columns
from merit.data import parquet
from merit.data.examples import BadRecord, Example
from merit.data.forms import to_example
from merit.data.images import ImageFinder
from merit.data.records import Record, Source, TaskOf
from merit.errors import MeritError
from merit.io.artifacts import read_json
from merit.io.texts import json_records, parse_object, text_lines

SHARD = re.compile(r"-\d{5}-of-\d{5}")
OTHER_SPLITS = {"test", "validation", "valid", "val", "dev", "eval"}
EXPECTED = (
    "expected a file per task (`<task>.jsonl`, `.parquet`, `.json`), a folder per task, or what "
    "`datasets` saved"
)
File = tuple[str, str]  # path below the folder, task; "" if its records say theirs


@dataclass(frozen=True)
class OwnSource(Source):
    """Files by their own names, whatever characters those hold."""

    parts: tuple[File, ...] = ()
    task_key: str = "task"

    def patterns(self, wanted: Collection[str] | None = None) -> list[str]:
        return [glob.escape(name).replace("|", "?") for name, _ in self._wanted(wanted)]

    def records(self, folder: Path, wanted: Collection[str] | None = None) -> Iterator[Record]:
        for name, task in self._wanted(wanted):
            yield from self.read(folder, name, partial(_task, task, self.task_key))

    def _wanted(self, wanted: Collection[str] | None) -> Iterator[File]:
        for name, task in self.parts:
            if wanted is None or not task or task in wanted:
                yield name, task


def source_of(place: Path, columns: Columns) -> tuple[Path, OwnSource]:
    """(folder, source) of a folder or a file. Raises MeritError if it holds no data."""
    folder, parts = find_files(place, columns.task is not None)
    names: dict[str, set[str]] = {}
    for name, task in parts:
        names.setdefault(task, set()).add(SHARD.sub("", name))
    for task, files in names.items():
        if task and len(files) > 1 and len({Path(f).parent for f in files} - {Path()}) != 1:
            raise MeritError(
                f"{place}: {' and '.join(sorted(files))} are both of task {task!r}; rename one"
            )
    by_field = "" in names
    return folder, OwnSource(
        repository=None,
        revision=None,
        licence="the user's own",
        files="",
        read=read,
        convert=partial(convert, columns=columns),
        tasks=() if by_field else tuple(sorted(names)),
        parts=tuple(parts),
        task_key=columns.task or "task",
    )


# --- files ----------------------------------------------------------------------------------------


def find_files(place: Path, by_field: bool) -> tuple[Path, list[File]]:
    """(folder, files) of a mixture. `by_field`: every record says its task."""
    if place.is_file():
        return place.parent, [(place.name, "")]
    if not place.is_dir():
        raise MeritError(f"key `data.folder`: {place}: no such folder or file")
    if files := data_files(place):
        found = [(file, _stem(file)) for file in files]
        by_field |= files[0].suffix == ".arrow" or {task for _, task in found} == {"train"}
    else:
        folders = sorted(p for p in place.iterdir() if p.is_dir() and p.name[0] != ".")
        found = [(file, unquote(folder.name)) for folder in folders for file in data_files(folder)]
        by_field |= {task for _, task in found} == {"data"}  # a repository of the hub
    if not found:
        raise MeritError(f"{place}: found no data; {EXPECTED}")
    return place, [
        (file.relative_to(place).as_posix(), "" if by_field else task) for file, task in found
    ]


def data_files(folder: Path) -> list[Path]:
    """The files of records in a folder: of a split, the training one's."""
    if (folder / "dataset_dict.json").is_file():
        splits = _stated(folder / "dataset_dict.json", "splits")
        if "train" not in splits and len(splits) > 1:
            raise MeritError(f"{folder}: no split `train`; name one: {', '.join(splits)}")
        folder /= "train" if "train" in splits else splits[0]
    if (folder / "state.json").is_file():
        return [folder / name for name in _stated(folder / "state.json", "_data_files")]
    for suffixes in ((".jsonl", ".parquet"), (".json",)):
        files = [p for p in sorted(folder.iterdir()) if p.suffix in suffixes and not p.is_dir()]
        files = [file for file in files if not file.name.startswith(".")]
        stems = {_stem(file) for file in files}
        if "train" in stems and stems <= {"train", *OTHER_SPLITS}:
            files = [file for file in files if _stem(file) == "train"]
        if files:
            return files
    return []


def _stated(path: Path, key: str) -> list[str]:
    """Names in one of `datasets`' own files. Raises MeritError for none, or one elsewhere."""
    found = read_json(path)
    value = found.get(key) if isinstance(found, dict) else None
    if not isinstance(value, list) or not value:
        raise MeritError(f"{path}: key `{key}`: expected a list, found {value!r:.80}")
    names: list[Any] = [item.get("filename") if isinstance(item, dict) else item for item in value]
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
            raise MeritError(f"{path}: key `{key}`: {name!r:.80} does not lie in the folder itself")
    return names


def _stem(file: Path) -> str:
    """The task's name: `a%2Fb` is `a/b`, and the parts of one file are one."""
    return unquote(SHARD.sub("", file.stem))


# --- records --------------------------------------------------------------------------------------


def read(folder: Path, name: str, task_of: TaskOf) -> Iterator[Record]:
    """The records of a file; a file without any is a bad record."""
    number, stem = None, unquote(name.removesuffix(Path(name).suffix))
    for number, unit, value in _values(folder / name):
        where = f"{name}, {unit} {number}"
        if isinstance(value, MeritError):
            yield Record(where, task_of({}), {}, "", str(value))
            continue
        task, keys = task_of(value), ", ".join(f"`{key}`" for key in value)
        problem = "" if task else f"no key of its task (`data.columns.task`); found {keys}"
        identifier = f"{stem}-{number}" if value.get("id") is None else str(value["id"])
        row = {"file": name, "row": number} if unit == "row" else {}
        yield Record(where, task, value | row, identifier, problem)
    if number is None:
        yield Record(name, task_of({}), {}, "", "the file holds no record")


def _task(of_file: str, key: str, value: dict[str, Any]) -> str:
    found = value.get(key)
    return of_file or ("" if found is None else str(found))


def _values(path: Path) -> Iterator[tuple[int, str, dict[str, Any] | MeritError]]:
    if path.suffix == ".parquet":
        yield from ((i, "row", value) for i, value in enumerate(parquet.rows(path)))
    elif path.suffix == ".arrow":
        yield from ((i, "record", value) for i, value in enumerate(parquet.arrow_rows(path)))
    elif path.suffix == ".json":
        yield from ((i, "record", value) for i, value in enumerate(json_records(path), start=1))
    else:
        for number, line in enumerate(text_lines(path), start=1):
            if not line.strip():
                continue
            try:
                yield number, "line", parse_object(line, "")
            except MeritError as error:
                yield number, "line", MeritError(str(error).removeprefix(": "))


def convert(record: Record, images: ImageFinder, columns: Columns) -> Example:
    """The record's example, its images found. Raises BadRecord."""
    stated = record.value.get("task")
    if columns.task is None and stated not in (None, record.task):
        raise BadRecord(f"`task` is {stated!r}, but the file is {record.task!r}'s")
    example, named = to_example(record.id, record.task, record.value, columns)
    found = (_image(record, images, columns, i, name) for i, name in enumerate(named))
    return replace(example, images=tuple(found))


def _image(record: Record, images: ImageFinder, columns: Columns, position: int, name: Any) -> str:
    """The reference of an image: named by its path, or in the record's own row of parquet."""
    if not isinstance(name, dict):
        return images.find(name)
    if "row" not in record.value or columns.images not in (None, *parquet.IMAGE_COLUMNS):
        raise BadRecord(
            "an image in the record; such are read from the columns `image` and `images` of parquet"
        )
    return images.reference(f"{record.value['file']}/{record.value['row']:07d}/{position}")


def num_records(path: Path) -> int:
    """About how many records a file has: lines of text, rows of a table."""
    if path.suffix == ".parquet":
        return parquet.num_rows(path)
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            return sum(1 for _ in file)
    return sum(1 for _ in _values(path))
