"""In which order examples are seen, and which of them make a step; from the seed alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


def data_order(num_examples: int, epochs: float, seed: int) -> np.ndarray:
    """int64 indices: a fresh permutation an epoch, the last one cut short; from the seed alone."""
    rng = np.random.default_rng(seed)
    total = round(num_examples * epochs)
    passes = [rng.permutation(num_examples) for _ in range(math.ceil(epochs))]
    return np.concatenate(passes)[:total]


def grouped_by_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int, window: int = 16
) -> np.ndarray:
    """`order` with examples of like length in one batch, as LLaVA trains its base: less padding.

    Within every `window` batches of the order, examples are sorted by `lengths` (one for each
    example of the data) and the batches are then shuffled; a last, smaller batch stays last.
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


def batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Slices of the data order; the last one may be smaller, so that every example is seen."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
