"""What the post-hoc mergers share: branch deltas, vectors, singular triplets, polar factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch


class Lazy(Sequence[torch.Tensor]):
    """Tensors that are made when asked for, every time, so that only one is in memory."""

    def __init__(self, make: Callable[[int], torch.Tensor], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        return self._make(range(self._count)[index])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self._make, range(self._count))


class Triplets(NamedTuple):
    """Leading singular triplets: left (m, k), values (k,) descending, right (k, n)."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def working_dtype(base: torch.Tensor) -> torch.dtype:
    """What deltas are computed in: float32, or float64 where the checkpoint is float64."""
    return torch.promote_types(base.dtype, torch.float32)


def branch_deltas(base: torch.Tensor, branches: Sequence[torch.Tensor]) -> Lazy:
    """delta_k = theta_k - theta0 in the `working_dtype`.

    Each is made when asked for: a merger that goes through them holds one at a time. Raises
    ValueError for no branch or, on the way, for a branch of another shape than the base.
    """
    if len(branches) == 0:
        raise ValueError("no branch to merge")
    working = working_dtype(base)
    start = base.to(working)

    def delta(k: int) -> torch.Tensor:
        branch = branches[k]
        if branch.shape != base.shape:
            raise ValueError(
                f"branch {k} has shape {tuple(branch.shape)}, base {tuple(base.shape)}"
            )
        return branch.to(working) - start

    return Lazy(delta, len(branches))


def apply_delta(
    base: torch.Tensor, delta: torch.Tensor, scale: float, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """theta0 + scale delta, computed in float64 and cast once to `dtype`, or the base's type."""
    start = base.to(torch.float64, copy=True)
    return start.add_(delta, alpha=scale).to(dtype or base.dtype)


def mean_delta(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """The uniform average of the deltas, accumulated in float64: what vectors get."""
    return sum_of(deltas) / len(deltas)


def sum_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum in float64: the order of the branches then disappears in the final cast."""
    total: torch.Tensor | None = None
    for tensor in tensors:
        total = torch.zeros_like(tensor, dtype=torch.float64) if total is None else total
        total += tensor
    assert total is not None
    return total


def leading_triplets(matrix: torch.Tensor, count: int | None = None) -> Triplets:
    """The first `count` singular triplets (all: None), those of numerically zero value left out.

    Zero is below max(m, n) eps times the largest value. The directions of a zero singular value
    are rounding noise: they would make a merge depend on the machine and on the branches' order.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    epsilon = torch.finfo(matrix.dtype).eps * max(matrix.shape)
    rank = int((values > epsilon * values[:1]).sum())
    kept = rank if count is None else min(count, rank)
    parts = (left[:, :kept], values[:kept], right[:kept])
    # a view would keep all of them in memory, for every branch
    return Triplets(*(part.clone() for part in parts) if kept < len(values) else parts)


def concatenate(parts: Sequence[Triplets]) -> Triplets:
    """Triplets side by side: left (m, sum k), values (sum k,), right (sum k, n)."""
    return Triplets(
        torch.cat([part.left for part in parts], dim=1),
        torch.cat([part.values for part in parts]),
        torch.cat([part.right for part in parts]),
    )


def polar_factor(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest (partial) isometry P Q^T of matrix = P S Q^T, directions of zero value left out.

    Orthonormalises columns or rows symmetrically (Loewdin), so permuting them permutes the result.
    """
    if matrix.numel() == 0:
        return matrix
    left, _, right = leading_triplets(matrix)
    return left @ right
