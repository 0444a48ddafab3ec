"""STAR (Lee et al., NAACL 2025): spectral truncation and rescale, then a plain average."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from merit.method.deltas import Lazy, apply_delta, branch_deltas, mean_delta
from merit.method.mergers import merger


@merger(published="2025-04")
def star(
    base: torch.Tensor,
    branches: Sequence[torch.Tensor],
    eta: float = 0.4,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """theta0 + scale * mean_k STAR(delta_k) (docs/method.md, eq. (18)).

    Of delta = sum_i s_i u_i v_i^T keep the smallest r with sum_{i<=r} s_i >= eta ||delta||_*, and
    multiply the kept values by ||delta||_* / sum_{i<=r} s_i: the nuclear norm stays.

    The official code (merger/STAR.py, eta=40 percent) does the same to LoRA matrices. `scale` is
    ours, for the swept comparison. Tensors that are not matrices are averaged.

    Raises ValueError for shapes that differ or an eta outside (0, 1].
    """
    if not 0 < eta <= 1:
        raise ValueError(f"eta must lie in (0, 1], found {eta}")
    whole = deltas = branch_deltas(base, branches)
    if base.ndim == 2:
        deltas = Lazy(lambda k: truncate_and_rescale(whole[k], eta), len(whole))
    return apply_delta(base, mean_delta(deltas), scale, dtype)


def truncate_and_rescale(delta: torch.Tensor, eta: float) -> torch.Tensor:
    """The low-rank delta of the same nuclear norm, (m, n)."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    running = values.double().cumsum(0)
    if running[-1] == 0:
        return delta
    # a sum that reaches eta but for rounding reaches it
    rank = int((running < eta * running[-1] * (1 - 1e-9)).sum()) + 1
    kept = values[:rank] * (running[-1] / running[rank - 1]).to(values.dtype)
    return (left[:, :rank] * kept) @ right[:rank]
