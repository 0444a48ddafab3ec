"""Evaluators whose loss is known in closed form, in the place of a model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from merit.eval.measuring.losses import Losses, LossEvaluator
from tests import synthetic


@dataclass(frozen=True)
class Analytic(LossEvaluator):
    """Two batches of equal size with L(theta) = 1/2 theta^T H theta + q/4 sum theta^4
    + bump exp(-|theta|^2 / 0.05) -+ noise.
    """

    hessian: torch.Tensor
    quartic: float = 0.0
    noise: float = 0.0
    bump: float = 0.0

    def losses(self, theta: torch.Tensor) -> Losses:
        x = theta.double()
        value = float(0.5 * x @ self.hessian @ x + self.quartic / 4 * (x**4).sum())
        value += self.bump * float(torch.exp(-x.square().sum() / 0.05))
        return np.array([value - self.noise, value + self.noise])

    def hessian_product(self, theta: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        x, y = theta.double(), v.double()
        return (self.hessian @ y + 3 * self.quartic * x**2 * y).to(v)


def analytic(hessian: Any, **options: float) -> Analytic:
    h = torch.as_tensor(np.array(hessian, dtype=np.float64))
    parameters = {"w": torch.zeros(synthetic.SHAPE)}
    batches = [np.arange(3), np.arange(3)]
    counts = np.array([2, 2])
    return Analytic(None, parameters, None, batches, counts, h, **options)  # type: ignore[arg-type]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values)
