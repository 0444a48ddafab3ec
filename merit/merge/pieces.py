"""What is merged, in pieces: a few rows of a tensor, one after the other or by several threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from merit.io.checkpoints import TensorInfo

PIECE = 2**18  # entries: a few of these in float64 still lie in a processor's cache
T = TypeVar("T")
R = TypeVar("R")


class Piece(NamedTuple):
    """Rows of a tensor."""

    name: str
    start: int
    stop: int


def pieces_of(name: str, info: TensorInfo, whole_matrix: bool = False) -> Iterator[Piece]:
    """A tensor in pieces of at most `PIECE` entries (at least one row), or a matrix whole."""
    if whole_matrix and len(info.shape) == 2:
        yield Piece(name, 0, info.num_rows)
        return
    row = max(1, info.row_bytes // info.dtype.itemsize)
    step = max(1, PIECE // row)
    for start in range(0, info.num_rows, step):
        yield Piece(name, start, min(start + step, info.num_rows))


def in_order(
    function: Callable[[T], R], jobs: Iterable[T], threads: int
) -> Generator[R, None, None]:
    """The results in the order of the jobs, so that sums do not depend on the threads."""
    if threads == 1:
        yield from map(function, jobs)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, jobs)
    finally:
        pool.shutdown(cancel_futures=True)
