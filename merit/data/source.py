"""What a source is to the writer of a mixture: where it is, its records, how one is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from merit.data import parquet
from merit.data.examples import BadRecord, Example
from merit.data.images import ImageFinder


@dataclass(frozen=True)
class Record:
    """One record of a source: `where` it stands, the task that it belongs to, and what it says."""

    where: str  # "train.json, record 3"
    task: str
    value: dict[str, Any]
    id: str  # unique within the source

    def get(self, key: str) -> Any:
        """Raises BadRecord where the key is missing."""
        if key not in self.value:
            raise BadRecord(f"key `{key}` is missing; found {sorted(self.value)}")
        return self.value[key]


# where a source's images are: in the parquet rows, beside the records, in a folder that it shares
# with other sources (COCO, Visual Genome), or nowhere
Images = Literal["rows", "beside", "shared", "none"]


@dataclass(frozen=True)
class Source:
    """A public source.

    `files` names what is read, as patterns below the source's folder, for the tasks that are wanted
    (None: all). `records` reads from the folder, `convert` makes the example of one record and
    raises BadRecord. `tasks` are the names where they are known before reading. `archives` are the
    patterns of the images where they lie beside the records (`a|b`: a, or b instead, which is what
    a is unpacked to). `repository` is None where the hub does not have the source in a form that
    can be read; `hint` then says what to do.
    """

    repository: str | None
    revision: str | None
    licence: str
    files: Callable[[Collection[str] | None], list[str]]
    records: Callable[[Path, Collection[str] | None], Iterator[Record]]
    convert: Callable[[Record, ImageFinder], Example]
    tasks: tuple[str, ...] = ()
    images: Images = "beside"
    archives: tuple[str, ...] = ()
    gigabytes: float | None = None  # of all that `files` and `archives` name; None: not known
    gated: bool = False
    num_records: int | None = None  # as its authors or the hub state them; in the manifest
    hint: str = ""


def only(*patterns: str) -> Callable[[Collection[str] | None], list[str]]:
    """`files` of a source that is read whole, whatever tasks are wanted."""
    return lambda tasks: list(patterns)


def numbered(
    file: str, values: Iterable[dict[str, Any]], task: Callable[[dict[str, Any]], str]
) -> Iterator[Record]:
    """The records of one file; each gets its number, since public sources' ids are not unique."""
    for number, value in enumerate(values, start=1):
        own = value.get("id")
        name = "" if own is None else f" (id {own!r})"
        identifier = f"{Path(file).stem if own is None else own}@{number}"
        yield Record(f"{file}, record {number}{name}", task(value), value, identifier)


def parquet_records(
    folder: Path, file: Path, columns: list[str], task: Callable[[dict[str, Any]], str]
) -> Iterator[Record]:
    """The rows of one parquet file, without images; `file` and `row` (from 0) say which."""
    inside = file.relative_to(folder).as_posix()
    for row, value in enumerate(parquet.rows(file, columns)):
        value |= {"file": inside, "row": row}
        yield Record(f"{inside}, row {row}", task(value), value, f"{inside}/{row}")
