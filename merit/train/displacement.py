"""How far a branch has gone from theta0 (docs/method.md 12)."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def displacement(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """||theta - theta0||_2 over (theta, theta0) tensor pairs, accumulated in float64."""
    return sum(float((a.double() - b.double()).square().sum()) for a, b in pairs) ** 0.5
