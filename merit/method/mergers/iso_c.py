"""Iso-C, isotropic merging (Marczak et al., ICML 2025): the sum with all values alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from merit.method.deltas import (
    Triplets,
    apply_delta,
    branch_deltas,
    leading_triplets,
    mean_delta,
    polar_factor,
    sum_of,
    working_dtype,
)
from merit.method.mergers import merger


@merger(published="2025-07")
def iso_c(
    base: torch.Tensor,
    branches: Sequence[torch.Tensor],
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """theta0 + scale * mean(s) U V^T, where sum_k delta_k = U diag(s) V^T (docs/method.md 10).

    All singular values become their mean, so the nuclear norm of the sum stays. Note the *sum*:
    at scale 1 the step is about K times an average's, and the official repository sweeps the
    scale on validation data. As its iso_c, except that directions of numerically zero value,
    arbitrary there, are left out of the mean and of the result (nothing changes for deltas of full
    rank). Tensors that are not matrices are averaged.

    Raises ValueError for shapes that differ.
    """
    deltas = branch_deltas(base, branches)
    if base.ndim != 2:
        return apply_delta(base, mean_delta(deltas), scale, dtype)
    common = leading_triplets(sum_of(deltas).to(working_dtype(base)))
    return apply_delta(base, flattened(common), scale, dtype)


def flattened(triplets: Triplets) -> torch.Tensor:
    """mean(s) U* V*: all directions alike, (m, n); zero for no direction."""
    left, values, right = triplets
    if len(values) == 0:
        return left @ right
    return values.mean() * (polar_factor(left) @ polar_factor(right))
