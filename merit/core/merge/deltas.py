"""What the post-hoc mergers share: branch deltas, vectors, singular triplets, polar factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Triplets(NamedTuple):
    """Leading singular triplets: left (m, k), values (k,) descending, right (k, n)."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor


def branch_deltas(base: torch.Tensor, branches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """delta_k = theta_k - theta0 in float32, or in float64 where the checkpoint is float64.

    Raises ValueError for no branch or for a branch of another shape than the base.
    """
    if not branches:
        raise ValueError("no branch to merge")
    for k, branch in enumerate(branches):
        if branch.shape != base.shape:
            raise ValueError(
                f"branch {k} has shape {tuple(branch.shape)}, base {tuple(base.shape)}"
            )
    working = torch.promote_types(base.dtype, torch.float32)
    start = base.to(working)
    return [branch.to(working) - start for branch in branches]


def apply_delta(base: torch.Tensor, delta: torch.Tensor, scale: float) -> torch.Tensor:
    """theta0 + scale delta, computed in float64 and cast once to the base's type."""
    return base.double().add(delta.double(), alpha=scale).to(base.dtype)


def mean_delta(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """The uniform average of the deltas, accumulated in float64: what vectors get."""
    return sum_of(deltas) / len(deltas)


def sum_of(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum in float64: the order of the branches then disappears in the final cast."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
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
    return Triplets(left[:, :kept], values[:kept], right[:kept])


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
