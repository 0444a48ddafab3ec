"""Iso-CTS, isotropic merging (Marczak et al., ICML 2025): directions of single branches, too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from merit.method.deltas import (
    Triplets,
    apply_delta,
    branch_deltas,
    concatenate,
    leading_triplets,
    mean_delta,
    sum_of,
    working_dtype,
)
from merit.method.mergers import merger
from merit.method.mergers.iso_c import flattened


@merger(published="2025-07")
def iso_cts(
    base: torch.Tensor,
    branches: Sequence[torch.Tensor],
    scale: float = 1.0,
    common_fraction: float = 0.8,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Iso-C with the least significant directions given to the single branches (docs/method.md 10).

    With n = min(rows, columns) and K branches: t = round((n - floor(n common_fraction)) / K)
    directions a branch, c = n - K t common ones. Common: the leading c triplets of sum_k delta_k,
    left factor U_c. Specific: the leading t triplets of (I - U_c U_c^T) delta_k. Side by side,
    orthonormalised by their polar factors U*, V*: the result is mean(all values) U* V*.

    The official default is common_space_fraction 0.8, with a scale swept on validation data; see
    `iso_c` for scale and for directions of zero value. Tensors that are not matrices are averaged.

    Raises ValueError for shapes that differ or a fraction outside [0, 1].
    """
    if not 0 <= common_fraction <= 1:
        raise ValueError(f"common_fraction must lie in [0, 1], found {common_fraction}")
    deltas = branch_deltas(base, branches)
    if base.ndim != 2:
        return apply_delta(base, mean_delta(deltas), scale, dtype)
    size, num_branches = min(base.shape), len(deltas)
    specific = round((size - int(size * common_fraction)) / num_branches)
    specific = min(specific, size // num_branches)  # rounding up must not exceed the basis
    total = sum_of(deltas).to(working_dtype(base))
    common = leading_triplets(total, size - specific * num_branches)
    own = [
        _significant(
            leading_triplets(delta - common.left @ (common.left.T @ delta), specific), delta
        )
        for delta in deltas
    ]
    return apply_delta(base, flattened(concatenate([*own, common])), scale, dtype)


def _significant(triplets: Triplets, delta: torch.Tensor) -> Triplets:
    """Without the triplets that are rounding noise of a delta lying in the common space."""
    floor = torch.finfo(delta.dtype).eps * max(delta.shape) * torch.linalg.matrix_norm(delta)
    kept = int((triplets.values > floor).sum())
    return Triplets(triplets.left[:, :kept], triplets.values[:kept], triplets.right[:kept])
