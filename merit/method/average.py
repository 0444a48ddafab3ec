"""Token-weighted averaging and interpolation towards the base (docs/method.md 8 and 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

# What N_k counts, by the reading of `merge_weights` in an experiment's YAML: the key of a manifest.
BUDGETS = {"tokens": "num_tokens", "loss_tokens": "num_loss_tokens", "samples": "num_samples"}


def merge_weights(manifests: Sequence[Mapping[str, int]], reading: str) -> list[float]:
    """w_k = N_k / sum_j N_j (docs/method.md 8), N_k what `reading` counts; 1 / K for "uniform".

    "tokens" counts every token of a branch's training sequences as the model sees them (image,
    prompt and answer), "loss_tokens" those that bear the loss, "samples" the examples, all times
    the epochs (samples: without). Raises ValueError for another reading, or unless every N_k is
    known and positive.
    """
    if not manifests:
        raise ValueError("there is no branch to merge")
    if reading == "uniform":
        return [1 / len(manifests)] * len(manifests)
    if reading not in BUDGETS:
        raise ValueError(f"merge weights are {', '.join(BUDGETS)} or uniform, not {reading!r}")
    key = BUDGETS[reading]
    counts = [manifest.get(key) for manifest in manifests]
    known = [count for count in counts if count is not None and count > 0]
    if not known or len(known) < len(counts):
        raise ValueError(f"every branch needs a positive `{key}`, found {counts}")
    total = sum(known)
    return [count / total for count in known]


def weighted_average(
    tensors: Sequence[torch.Tensor],
    merge_weights: Sequence[float],
    dtype: torch.dtype | None = None,
    working: torch.dtype = torch.float64,
) -> torch.Tensor:
    """sum_k w_k theta_k, accumulated in `working` and cast once to `dtype`, or the tensors' type.

    Accumulating in float64 makes identical branches average to themselves to the last bit of
    float32; for bfloat16 and float16, float32 does so at half the cost. Every tensor is asked for
    once. Raises ValueError where shapes differ or the merge weights do not add up to one.
    """
    if len(tensors) != len(merge_weights):
        raise ValueError(f"{len(tensors)} tensors but {len(merge_weights)} merge weights")
    if abs(sum(merge_weights) - 1.0) > 1e-9:
        raise ValueError(f"merge weights add up to {sum(merge_weights)}, not to 1")
    total: torch.Tensor | None = None
    for tensor, weight in zip(tensors, merge_weights, strict=True):
        if total is None:
            total = torch.zeros(tensor.shape, dtype=working, device=tensor.device)
        if tensor.shape != total.shape:
            raise ValueError(f"shapes differ: {tuple(tensor.shape)} and {tuple(total.shape)}")
        total.add_(tensor.to(working), alpha=weight)
        dtype = dtype or tensor.dtype
    assert total is not None
    return total.to(dtype)


def interpolate(
    base: torch.Tensor, other: torch.Tensor, alpha: float, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """theta0 + alpha (theta - theta0), computed in float64 and cast once (WiSE-FT)."""
    start = base.double()
    return start.add(other.double() - start, alpha=alpha).to(dtype or other.dtype)


def matching_alpha(target_distance: float, distance: float) -> float:
    """The alpha at which the interpolation lies `target_distance` from the base.

    ||alpha (theta - theta0)|| = alpha ||theta - theta0||, so alpha = target / distance.
    """
    if distance <= 0:
        raise ValueError("a model at distance 0 from the base cannot be scaled to any distance")
    return target_distance / distance
