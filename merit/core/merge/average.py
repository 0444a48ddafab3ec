"""Token-weighted averaging (METHOD 2.5) and interpolation towards the base (METHOD 3b)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def token_weights(num_tokens: Sequence[int]) -> list[float]:
    """w_k = N_k / sum_j N_j (METHOD 1). Raises ValueError unless every N_k is positive."""
    if not num_tokens or min(num_tokens) <= 0:
        raise ValueError(
            f"every branch needs a positive number of tokens, found {list(num_tokens)}"
        )
    total = sum(num_tokens)
    return [n / total for n in num_tokens]


def weighted_average(
    tensors: Sequence[torch.Tensor], merge_weights: Sequence[float]
) -> torch.Tensor:
    """sum_k w_k theta_k, accumulated in float64 and cast once to the tensors' type.

    Accumulating in float64 makes identical branches average to themselves to the last bit of
    float32. Raises ValueError where shapes differ or the merge weights do not add up to one.
    """
    if len(tensors) != len(merge_weights):
        raise ValueError(f"{len(tensors)} tensors but {len(merge_weights)} merge weights")
    if abs(sum(merge_weights) - 1.0) > 1e-9:
        raise ValueError(f"merge weights add up to {sum(merge_weights)}, not to 1")
    total = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    for tensor, weight in zip(tensors, merge_weights, strict=True):
        if tensor.shape != total.shape:
            raise ValueError(f"shapes differ: {tuple(tensor.shape)} and {tuple(total.shape)}")
        total.add_(tensor.double(), alpha=weight)
    return total.to(tensors[0].dtype)


def interpolate(base: torch.Tensor, other: torch.Tensor, alpha: float) -> torch.Tensor:
    """theta0 + alpha (theta - theta0), computed in float64 and cast once (WiSE-FT)."""
    start = base.double()
    return start.add(other.double() - start, alpha=alpha).to(other.dtype)


def matching_alpha(target_distance: float, distance: float) -> float:
    """The alpha at which the interpolation lies `target_distance` from the base.

    ||alpha (theta - theta0)|| = alpha ||theta - theta0||, so alpha = target / distance.
    """
    if distance <= 0:
        raise ValueError("a model at distance 0 from the base cannot be scaled to any distance")
    return target_distance / distance
