"""The questions' images, each opened when its batch is prepared: never all in memory."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image

from merit.data.images import as_seen, image_size, load_image, open_image, seen_size
from merit.errors import MeritError
from merit.io.disk import check_file

csv.field_size_limit(1 << 30)  # a cell holds an image
MAX_REFERENCE = 64  # VLMEvalKit takes a shorter `image` for the index of the row that holds it
UNREADABLE = (*(LookupError, ValueError, OSError, MemoryError, StopIteration, csv.Error),)
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """An image file; or, with an `index`, an image in that row of a VLMEvalKit TSV at `path`.

    A row may hold several in base64; `position` says which. Both methods raise MeritError if the
    image cannot be read.
    """

    path: Path
    index: str | None = None
    position: int = 0

    def open(self) -> Image.Image:
        """The image, decoded, as RGB."""
        if self.index is None:
            return load_image(self.path)
        return self._of_cell(as_seen)

    def size(self) -> tuple[int, int]:
        """(width, height), from the image's header."""
        return image_size(self.path) if self.index is None else self._of_cell(seen_size)

    def _of_cell(self, use: Callable[[Image.Image], T]) -> T:
        try:
            cell = _read_cell(self.path, str(self.index))
            if len(cell) <= MAX_REFERENCE:  # several questions about one image
                cell = _read_cell(self.path, cell)
            listed = cell.startswith("[")  # as Python writes a list
            cells = [c.strip(" '\"") for c in cell[1:-1].split(",")] if listed else [cell]
            content = io.BytesIO(base64.b64decode(cells[self.position], validate=True))
        except UNREADABLE as error:
            raise MeritError(
                f"{self.path}: index {self.index}: no readable image ({error})"
            ) from None
        with open_image(content, f"{self.path}: index {self.index}") as image:
            return use(image)


def _read_cell(path: Path, index: str) -> str:
    check_file(path)
    state = path.stat()
    header, rows = _scan(path, state.st_mtime_ns, state.st_size)
    start, end = rows[index]
    with path.open("rb") as file:
        file.seek(start)
        record = file.read(end - start).decode("utf-8")
    row = next(csv.reader(io.StringIO(record, newline=""), delimiter="\t"))
    return row[header.index("image")]


@lru_cache(maxsize=64)
def _scan(path: Path, *state: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """The columns, and {index: (first byte, last byte + 1) of its row}; a row may span lines."""
    offsets: dict[str, tuple[int, int]] = {}
    read = 0
    with path.open("rb") as file:

        def lines() -> Iterator[str]:
            nonlocal read
            for line in file:
                read += len(line)
                yield line.decode("utf-8")

        rows = csv.reader(lines(), delimiter="\t")
        header = next(rows)
        column, start = header.index("index"), read
        for row in rows:
            if row:
                offsets[row[column]] = (start, read)
            start = read
    return header, offsets
