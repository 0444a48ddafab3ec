"""Arrays of long rows on disk: filled row by row, by several processes, or as scratch space."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from merit.io.disk import writing


def create_rows(path: Path, num_rows: int, num_entries: int) -> None:
    """The .npy file of float32 (num_rows, num_entries) zeros, unless it is there already.

    Bytes are those of `np.save`. Space is taken as rows are written. Processes that share the work
    may all call it, at any time: what it writes is the same, and no row is touched.
    """
    header = io.BytesIO()
    shape = (num_rows, num_entries)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        file.write(header.getvalue())
        file.truncate(len(header.getvalue()) + 4 * num_rows * num_entries)


def write_row(path: Path, index: int, row: np.ndarray) -> None:
    """Row `index` of a file of `create_rows`. Raises ValueError for a row of another shape.

    By an ordinary write: a full disk is an error then, not a signal, and two machines that map
    the page where their rows meet could undo each other's writes.
    """
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if row.shape != rows.shape[1:] or not 0 <= index < len(rows):
        raise ValueError(f"row {index} of shape {row.shape} does not fit into {rows.shape}")
    with path.open("r+b") as file:
        file.seek(rows.offset + index * row.shape[0] * rows.itemsize)
        file.write(np.ascontiguousarray(row, dtype=rows.dtype).data)


def create_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A .npy file of zeros, memory-mapped, all of its space taken.

    Raises MeritError where the disk has too little: a mapped page that finds none is a signal.
    """
    from numpy.lib.format import open_memmap

    array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with writing(path), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextlib.contextmanager
def scratch_rows(folder: Path, num_rows: int, num_entries: int) -> Iterator[np.ndarray]:
    """float32 (num_rows, num_entries) of zeros on disk, memory-mapped; gone with the block.

    For rows that together would not fit into memory; `folder`'s disk must have room for them. The
    file has no name, so that a killed process leaves none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a signal later
            with writing(folder / "scratch rows"):
                os.posix_fallocate(file.fileno(), 0, 4 * num_rows * num_entries)
        yield np.memmap(file, dtype=np.float32, mode="w+", shape=(num_rows, num_entries))
