"""Rows of parquet files, and the images in them, as `datasets` writes them to the hub.

A reference to an image is the file's path, the row's number and, if a row holds a list of images,
the image's: `ai2d/train-00000-of-00001.parquet/0000012/0`. Readers give rows 7 digits, so that
sorted references are in the file's order. Parquet is read by row groups (100 rows of a data set
with images): images in order cost one reading of the file, in random order a row group each.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from merit.errors import MeritError
from merit.io.disk import check_file

IMAGE_COLUMNS = ("images", "image")  # list<struct<bytes, path>>, struct<bytes, path>
_ONE_AT_A_TIME = threading.Lock()  # threads that want the same row group read it once


def rows(path: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The file's rows, with these columns; a part of a nested one is named `images.path`.

    By default with all columns, except for the bytes of images.
    Raises MeritError if the file is truncated or no parquet file, or lacks a column.
    """
    file = _open(path)
    leaves = [file.schema.column(i).path for i in range(len(file.schema))]
    chosen = [] if columns else [leaf for leaf in leaves if not leaf.endswith(".bytes")]
    for name in columns:
        first, *rest = name.split(".")
        # in a list, levels of the file's own stand between
        found = [leaf for leaf in leaves if _is_part(leaf.split("."), first, rest)]
        if not found:
            known = list(file.schema_arrow.names)
            raise MeritError(f"{path}: column {name!r} is missing; the file has {known}")
        chosen += found
    with _readable(path):
        for batch in file.iter_batches(64, columns=chosen):
            yield from batch.to_pylist()


def arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of `datasets.save_to_disk`. Raises MeritError if it cannot be read."""
    import pyarrow as pa

    with _readable(path), pa.memory_map(str(path)) as source:
        for batch in pa.ipc.open_stream(source):
            yield from batch.to_pylist()


def num_rows(path: Path) -> int:
    """Raises MeritError if the file cannot be read."""
    return int(_open(path).metadata.num_rows)


def has_image(path: Path, member: str) -> bool:
    """Whether the file has the row of `member`; the row is not read."""
    place = _place(member)
    return place is not None and place[0] < _open(path).metadata.num_rows


def read_image(path: Path, member: str) -> bytes:
    """The encoded image at `member`, `<row>` or `<row>/<image>`.

    Raises MeritError if the file cannot be read or has no such image.
    """
    file, place = _open(path), _place(member)
    images: list[Any] = []
    index = 0
    if place is not None and place[0] < file.metadata.num_rows:
        row, index = place
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        group = int(np.searchsorted(starts, row, side="right")) - 1
        with _ONE_AT_A_TIME:
            column = _row_group(path, group, os.getpid(), *_state(path))
        value = column[row - int(starts[group])].as_py()
        images = value if isinstance(value, list) else [value]
    if index >= len(images) or not (images[index] or {}).get("bytes"):
        raise MeritError(f"{path}: image {member!r} not found in it; an example refers to it")
    return bytes(images[index]["bytes"])


def _place(member: str) -> tuple[int, int] | None:
    """(row, image) of a member; None if it is no such name."""
    parts = member.split("/")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else 0


def _is_part(leaf: list[str], first: str, rest: list[str]) -> bool:
    return leaf[0] == first and leaf[len(leaf) - len(rest) :] == rest


@lru_cache(maxsize=2)
def _row_group(path: Path, group: int, *state: int) -> Any:
    """The image column of one row group."""
    file = _open(path)
    column = next((name for name in IMAGE_COLUMNS if name in file.schema_arrow.names), None)
    if column is None:
        raise MeritError(f"{path}: no column of images; expected one of {list(IMAGE_COLUMNS)}")
    with _readable(path):
        return file.read_row_group(group, columns=[column]).column(column)


def _open(path: Path) -> Any:
    """The file; opened once per process and thread while it stays the same file."""
    check_file(path)
    try:
        return _handle(path, os.getpid(), threading.get_ident(), *_state(path))
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found") from None


def _state(path: Path) -> tuple[int, int, int]:
    state = path.stat()
    return state.st_ino, state.st_mtime_ns, state.st_size


@lru_cache(maxsize=64)
def _handle(path: Path, *state: int) -> Any:
    import pyarrow.parquet as pq

    with _readable(path):
        return pq.ParquetFile(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises MeritError for what pyarrow raises."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:  # the last: text that is not UTF-8
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MeritError(
            f"{path}: not a readable parquet file ({reason}); fetch or write it again"
        ) from None
