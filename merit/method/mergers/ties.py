"""TIES-Merging (Yadav et al., NeurIPS 2023): trim, elect signs, average what agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from merit.method.deltas import Lazy, apply_delta, branch_deltas, mean_delta
from merit.method.mergers import Deltas, Parameters, merger


def survey(deltas: Deltas, parameters: Parameters) -> Callable[[str], dict[str, Any]]:
    """Two passes over every branch for its threshold, one over all for the majority signs."""

    def threshold(k: int) -> float:
        pieces = Lazy(lambda piece: deltas.of(piece)[k], len(deltas.names))
        return trim_threshold(pieces, parameters["density"])

    def balance(piece: int) -> int:
        """How many more entries elect + than -: the sign is the majority's."""
        return int(_trimmed(deltas.of(piece), thresholds).sum(dim=0).sign().sum())

    thresholds = list(deltas.each("thresholds of branches", threshold, range(deltas.num_branches)))
    majority: Counter[str] = Counter()
    balances = deltas.each("signs of pieces", balance, range(len(deltas.names)))
    for name, more in zip(deltas.names, balances, strict=True):
        majority[name] += more
    return lambda name: {"thresholds": thresholds, "majority": majority[name]}


@merger(published="2023-12", needs="rows", survey=survey)
def ties(
    base: torch.Tensor,
    branches: Sequence[torch.Tensor],
    density: float = 0.2,
    scale: float = 1.0,
    thresholds: Sequence[float] | None = None,
    majority: float | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """theta0 + scale * TIES(delta_1..K) (docs/method.md, eq. (17)).

    1. Trim: keep of each delta the share `density` of largest magnitude (ties at the edge kept).
    2. Elect: per entry gamma = sign(sum_k delta_k), the sign of the larger total mass.
    3. Merge: per entry the mean over the branches whose kept delta is non-zero and has sign gamma.
    An entry whose masses cancel takes the tensor's majority sign and, where that too is 0, the
    negative one, as the official code does.

    Deviations from the official code (src/ties_minimal.ipynb: K=20, dis-mean, lambda=1): it trims
    the whole flattened model at once. Here every tensor is trimmed by itself unless `thresholds`
    (one a branch, from `trim_threshold` over all its tensors) are given; vectors are averaged;
    the majority sign is the tensor's, not the model's; and exactly floor(density * size), not one
    more, entries are kept. Rows of a tensor merge as the tensor does where its `thresholds` and
    its `majority` (of signs over all rows) are given, as `survey` finds them.

    Args: base and each branch of one shape, any float type; 0 < density <= 1.
    Raises ValueError for shapes that differ, a density outside (0, 1] or a missing threshold.
    """
    deltas = branch_deltas(base, branches)
    if base.ndim < 2:
        return apply_delta(base, mean_delta(deltas), scale, dtype)
    if thresholds is None:
        thresholds = [trim_threshold([delta], density) for delta in deltas]
    kept = _trimmed(deltas, thresholds)
    signs = kept.sum(dim=0).sign()
    balance = signs.sum() if majority is None else torch.tensor(majority, dtype=signs.dtype)
    signs = torch.where(signs == 0, balance.sign(), signs)
    agrees = torch.where(signs > 0, kept > 0, kept < 0)
    merged = (kept * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
    return apply_delta(base, merged, scale, dtype)


def _trimmed(deltas: Sequence[torch.Tensor], thresholds: Sequence[float]) -> torch.Tensor:
    """(K, ...) in float64: the deltas, zero where they lie below their branch's threshold."""
    return torch.stack(
        [
            delta.double() * (delta.abs() >= threshold)
            for delta, threshold in zip(deltas, thresholds, strict=True)
        ]
    )


def trim_threshold(deltas: Collection[torch.Tensor], density: float) -> float:
    """The magnitude that the share `density` of all entries of one branch's deltas reaches.

    Exact, without holding the deltas: as integers, magnitudes are ordered as their bits are, so a
    pass over the deltas fixes 16 bits by counting which entries have which. float32 takes two
    passes, float64 four; what is held beside one delta are 65,536 counts.

    Raises ValueError for a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], found {density}")
    wide = next(iter(deltas)).dtype == torch.float64
    real, integer = (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)
    size = 8 * integer.itemsize
    known, rank = 0, -1  # the leading bits; the place from below among the entries that have them
    for shift in range(size - 16, -1, -16):
        counts = torch.zeros(1 << 16, dtype=torch.int64)
        for delta in deltas:
            bits = delta.abs().to(real).flatten().view(integer)
            if shift + 16 < size:
                bits = bits[bits >> (shift + 16) == known]
            counts += torch.bincount((bits >> shift) & 0xFFFF, minlength=1 << 16)
        if rank < 0:
            num_entries = int(counts.sum())
            # the small term undoes the rounding of products such as 0.29 * 100 = 28.999...
            rank = num_entries - max(1, int(density * num_entries + 1e-6))
        ends = counts.cumsum(0)
        digit = int(torch.searchsorted(ends, rank, right=True))
        rank -= int(ends[digit] - counts[digit])
        known = known << 16 | digit
    return float(torch.tensor(known, dtype=integer).view(real))
