"""TIES-Merging (Yadav et al., NeurIPS 2023): trim, elect signs, average what agrees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from merit.core.merge.deltas import apply_delta, branch_deltas, mean_delta


def ties(
    base: torch.Tensor,
    branches: Sequence[torch.Tensor],
    density: float = 0.2,
    scale: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> torch.Tensor:
    """theta0 + scale * TIES(delta_1..K) (docs/method.md, eq. (17)).

    1. Trim: keep of each delta the share `density` of largest magnitude (ties at the edge kept).
    2. Elect: per entry gamma = sign(sum_k delta_k), the sign of the larger total mass.
    3. Merge: per entry the mean over the branches whose kept delta is non-zero and has sign gamma.
    An entry whose masses cancel takes the tensor's majority sign and, where that too is 0, the
    negative one, as the official code does.

    Deviations from the official code (src/ties_minimal.ipynb: K=20, dis-mean, lambda=1): it trims
    the whole flattened model at once. Here every tensor is trimmed alone unless `thresholds`
    (one a branch, from `trim_threshold` over all its tensors) are given; vectors are averaged;
    the majority sign is the tensor's, not the model's; and exactly floor(density * size), not one
    more, entries are kept.

    Args: base and each branch of one shape, any float type; 0 < density <= 1.
    Raises ValueError for shapes that differ, a density outside (0, 1] or a missing threshold.
    """
    deltas = branch_deltas(base, branches)
    if base.ndim < 2:
        return apply_delta(base, mean_delta(deltas), scale)
    if thresholds is None:
        thresholds = [trim_threshold([delta], density) for delta in deltas]
    kept = torch.stack(
        [
            delta.double() * (delta.abs() >= threshold)
            for delta, threshold in zip(deltas, thresholds, strict=True)
        ]
    )
    signs = kept.sum(dim=0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    agrees = torch.where(signs > 0, kept > 0, kept < 0)
    merged = (kept * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
    return apply_delta(base, merged, scale)


def trim_threshold(deltas: Iterable[torch.Tensor], density: float) -> float:
    """The magnitude that the share `density` of all entries of one branch's deltas reaches.

    Holds one magnitude an entry in memory: for a whole model, 4 bytes a parameter.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], found {density}")
    magnitudes = torch.cat([delta.abs().flatten() for delta in deltas])
    # the small term undoes the rounding of products such as 0.29 * 100 = 28.999...
    num_kept = max(1, int(density * magnitudes.numel() + 1e-6))
    return float(magnitudes.kthvalue(magnitudes.numel() - num_kept + 1).values)
