"""Merge-readiness measures against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merit.method.diagnostics import (
    barrier,
    flatness_auc,
    matrix_fidelity,
    norm_concentration,
    trimmed,
)
from merit.train.branch import displacement


def test_displacement_sums_over_tensors_in_float64() -> None:
    base = [torch.zeros(2, 2), torch.zeros(1, dtype=torch.bfloat16)]
    tuned = [torch.tensor([[3.0, 0], [0, 0]]), torch.tensor([4.0], dtype=torch.bfloat16)]
    assert displacement(zip(tuned, base, strict=True)) == 5.0
    # 4096^2 + 1 is lost in float32
    pair = (torch.tensor([4096.0, 1.0]), torch.zeros(2))
    assert displacement([pair]) == (2**24 + 1) ** 0.5
    assert displacement([]) == 0.0


def test_barrier_by_hand() -> None:
    """Chord from 1 to 3: at 0.25 it is 1.5, at 0.5 it is 2, so the excesses are 0.75 and 0.5."""
    assert barrier([0, 0.25, 0.5, 1], [1.0, 2.25, 2.5, 3.0]) == 0.75
    assert barrier([0, 0.5, 1], [1.0, 0.5, 3.0]) == 0.0  # below the chord


@settings(max_examples=30, deadline=None)
@given(curvature=st.floats(0.1, 10), slope=st.floats(-5, 5))
def test_a_convex_path_has_no_barrier(curvature: float, slope: float) -> None:
    alphas = np.linspace(0, 1, 21)
    assert barrier(alphas, curvature * alphas**2 + slope * alphas) == pytest.approx(0, abs=1e-12)
    concave = -curvature * alphas**2 + slope * alphas
    assert barrier(alphas, concave) == pytest.approx(curvature / 4)


def test_barrier_refuses_half_a_path() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        barrier([0, 0.5], [1.0, 1.0])


def test_flatness_auc_by_hand() -> None:
    """Triangle 0.01 x 0.02 / 2, then trapezia 0.04 x 0.06 and 0.05 x 0.2."""
    area = flatness_auc([0.01, 0.05, 0.1], [0.02, 0.10, 0.30])
    assert area == pytest.approx(0.0001 + 0.0024 + 0.01)
    with pytest.raises(ValueError, match="ascending"):
        flatness_auc([0.1, 0.05], [1.0, 1.0])


def test_trimming_gives_the_paper_s_counts() -> None:
    norms = np.arange(1, 137)
    counts = [norm_concentration(norms, trim)["datasets"] for trim in (0.0, 0.05, 0.10)]
    assert counts == [136, 124, 110]  # table 19
    assert trimmed(np.array([5, 1, 9, 3]), 0.25).tolist() == [3, 5]
    assert len(trimmed(np.arange(100), 0.29)) == 42
    with pytest.raises(ValueError, match=r"0\.5"):
        trimmed(norms, 0.5)


def test_norm_concentration_by_hand() -> None:
    measured = norm_concentration(np.array([4.0, 2.0, 6.0, 1000.0, 0.001]), trim=0.2)
    expected = {
        "datasets": 3,
        "mean": 4.0,
        "std": 2.0,
        "coefficient_of_variation": 0.5,
        "max_over_min": 3.0,
    }
    assert measured == pytest.approx(expected)
    with pytest.raises(ValueError, match="positive"):
        norm_concentration(np.array([1.0, 0.0]))


def symmetric(a: float, b: float, c: float) -> np.ndarray:
    return np.array([[1, a, b], [a, 1, c], [b, c, 1]])


def test_matrix_fidelity_by_hand() -> None:
    """Entries (0, 1, 2) / 10 against (0, 3, 6) / 10: linear, and off by 0, 0.2 and 0.4."""
    measured = matrix_fidelity(symmetric(0, 0.1, 0.2), symmetric(0, 0.3, 0.6))
    assert measured["pearson"] == pytest.approx(1.0)
    assert measured["spearman"] == pytest.approx(1.0)
    assert measured["mean_absolute_difference"] == pytest.approx(0.2)
    assert measured["rmse"] == pytest.approx((0.2 / 3) ** 0.5)
    # ranks (1, 2, 3) against (1, 3, 2): 1 - 6 * 2 / (3 * 8) = 0.5
    assert matrix_fidelity(symmetric(0, 0.1, 0.2), symmetric(0, 0.9, 0.2))[
        "spearman"
    ] == pytest.approx(0.5)


def test_matrix_fidelity_ignores_the_diagonal() -> None:
    other = symmetric(0, 0.1, 0.2)
    np.fill_diagonal(other, -7.0)
    assert matrix_fidelity(symmetric(0, 0.1, 0.2), other)["rmse"] == 0.0
