"""Which examples each step sees, in which order, and how they are read; only the seed decides."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from merit.errors import MeritError
from merit.train.dataset import Batch, TokenizedDataset


def data_order(num_examples: int, epochs: float, seed: int) -> np.ndarray:
    """int64 indices: a fresh permutation per epoch, the last one cut short."""
    rng = np.random.default_rng(seed)
    total = round(num_examples * epochs)
    passes = [rng.permutation(num_examples) for _ in range(math.ceil(epochs))]
    return np.concatenate(passes)[:total]


def grouped_by_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int, window: int = 16
) -> np.ndarray:
    """`order` with examples of similar length in one batch, as LLaVA trains its base: less padding.

    Within every `window` batches of the order, examples are sorted by `lengths` (one per example
    of the data) and the batches are then shuffled; a last, smaller batch stays last.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, len(order), window * batch_size):
        part = order[start : start + window * batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        full = len(part) // batch_size * batch_size
        rows = part[:full].reshape(-1, batch_size)
        parts += [rows[rng.permutation(len(rows))].ravel(), part[full:]]
    return np.concatenate(parts)


def packed_rows(lengths: np.ndarray, limit: int) -> list[np.ndarray]:
    """The examples of one step in as few rows of at most `limit` tokens as first-fit finds.

    Longest first, each into the first row that has room; a longer one has a row to itself. int64
    positions in `lengths` (n,), in the order in which they were given.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        length = int(lengths[index])
        row = next((i for i, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(limit)
        rows[row].append(int(index))
        room[row] -= length
    return [np.array(sorted(row)) for row in rows]


def even_rows(lengths: np.ndarray, number: int) -> list[np.ndarray]:
    """The examples of one step in `number` rows of about the same length, the longest row first.

    Longest first, each into the row that is shortest so far; no row is empty, so there are fewer of
    few examples.
    """
    rows: list[list[int]] = [[] for _ in range(min(number, len(lengths)))]
    sums = [0] * len(rows)
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        row = sums.index(min(sums))
        rows[row].append(int(index))
        sums[row] += int(lengths[index])
    order = np.argsort([-total for total in sums], kind="stable")
    return [np.array(sorted(rows[i])) for i in order]


@dataclass(frozen=True)
class BatchPlan:
    """Which examples each forward pass of each step sees: `rows[step]`, indices into the data.

    `lengths`: tokens of every example of the data; `processes` share the rows of a step.
    """

    rows: list[list[np.ndarray]]
    packed: bool
    lengths: np.ndarray
    processes: int = 1

    @classmethod
    def of(
        cls,
        order: np.ndarray,
        data: TokenizedDataset,
        size: int,
        pack_tokens: int | None,
        processes: int = 1,
    ) -> BatchPlan:
        """Steps of `size` examples, as one batch each or packed into rows of `pack_tokens`.

        The last step may be smaller, so that every example is seen. Several processes get as many
        rows each, of about the same length, where the limit allows it.
        """
        lengths = data.num_tokens()
        rows = []
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            step = [np.arange(len(indices))]
            if pack_tokens is not None:
                step = packed_rows(lengths[indices], pack_tokens)
            if processes > 1:
                number = -(-len(step) // processes) * processes
                even = even_rows(lengths[indices], number)
                longest = max(lengths[indices[row]].sum() for row in step)
                if lengths[indices[even[0]]].sum() <= max(longest, pack_tokens or 0):
                    step = even
            rows.append([indices[row] for row in step])
        return cls(rows, pack_tokens is not None, lengths, processes)

    def __len__(self) -> int:
        return len(self.rows)

    def examples(self, step: int) -> np.ndarray:
        """The indices of all examples of a step."""
        return np.concatenate(self.rows[step])

    def share(self, step: int, rank: int) -> list[tuple[np.ndarray, bool]]:
        """The rows of a step that process `rank` computes, and whether each counts.

        Every process gets as many, since a sharded model's take the same number of passes: the
        step's shortest example, which does not count, fills up.
        """
        rows = [(row, True) for row in self.rows[step]]
        if missing := -len(rows) % self.processes:
            indices = self.examples(step)
            shortest = indices[np.argmin(self.lengths[indices])]
            rows += [(np.array([shortest]), False)] * missing
        return rows[rank :: self.processes]


class BatchDataset(torch.utils.data.Dataset):
    """The rows that one process computes, as batches; `read` gives them in order."""

    def __init__(self, data: TokenizedDataset, rows: Sequence[np.ndarray], packed: bool) -> None:
        self.make = data.pack if packed else data.batch
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch | MeritError:
        try:
            return self.make(self.rows[index])
        except MeritError as error:  # raised in a worker it would come with a traceback
            return error

    def read(self, workers: int) -> Iterator[Batch]:
        """Batches in order, read ahead by `workers` processes. Raises MeritError for an image that
        cannot be read.
        """
        loader = torch.utils.data.DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            # forked ones share the mixture; from Python 3.14 on others would get a copy each
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            prefetch_factor=4 if workers else None,
            pin_memory=bool(workers) and torch.cuda.is_available(),
        )
        for batch in loader:
            if isinstance(batch, MeritError):
                raise batch
            yield batch
