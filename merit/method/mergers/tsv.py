"""TSV-Merge (Gargiulo et al., CVPR 2025): task singular vectors without interference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from merit.method.deltas import (
    apply_delta,
    branch_deltas,
    concatenate,
    leading_triplets,
    mean_delta,
    polar_factor,
)
from merit.method.mergers import merger


@merger(published="2025-06")
def tsv(
    base: torch.Tensor,
    branches: Sequence[torch.Tensor],
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """theta0 + scale * U* S V* (docs/method.md, eq. (19); scale is the paper's alpha).

    The leading floor(min(m, n) / K) singular triplets of every delta_k are put side by side,
    U = [U_1 .. U_K], S = diag(S_1 .. S_K), V likewise, and U and V replaced by their polar factors
    U*, V*: the nearest matrices with orthonormal columns, which is what removes interference.

    As in the official code (TSVM_utils.compute_and_sum_svd_mem_reduction), except that at least
    one triplet a branch is kept, and that directions of numerically zero singular value are left
    out of the factors (the official ones are arbitrary there). Identical branches so give back
    their leading triplets. Tensors that are not matrices are averaged.

    Raises ValueError for shapes that differ.
    """
    deltas = branch_deltas(base, branches)
    if base.ndim != 2:
        return apply_delta(base, mean_delta(deltas), scale, dtype)
    count = max(1, min(base.shape) // len(deltas))
    left, values, right = concatenate([leading_triplets(delta, count) for delta in deltas])
    return apply_delta(base, (polar_factor(left) * values) @ polar_factor(right), scale, dtype)
