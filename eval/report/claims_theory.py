"""C20: the identities and inequalities of METHOD.md section 8, evaluated on seeded random cases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eval.report.claims_evidence import Case, Evidence, Link
from merit.core import theory

NUM_CASES = 20
TOLERANCE = 1e-8  # relative: float64 sums of a few hundred terms
NUM_TASKS, NUM_DIMENSIONS, NUM_BRANCHES, STEP = 6, 5, 4, 0.1


class Deviations(NamedTuple):
    """The largest relative deviation of an identity, and violation of an inequality, found."""

    identity: float
    inequality: float


def deviations(seed: int) -> dict[str, Deviations]:
    """Every statement on one random case: {theorem: deviations}; 0 is exact."""
    rng = np.random.default_rng([20, seed])
    root = rng.normal(size=(NUM_DIMENSIONS, NUM_DIMENSIONS))
    hessian = root @ root.T
    delta = rng.normal(size=(NUM_BRANCHES, NUM_DIMENSIONS))
    weights = rng.dirichlet(np.ones(NUM_BRANCHES))
    optimum = rng.normal(size=NUM_DIMENSIONS)
    losses = theory.quadratic_loss(delta, optimum, hessian)
    merged = float(theory.quadratic_loss(weights @ delta, optimum, hessian))
    gain = theory.merging_gain(delta, hessian, weights)
    uniform = theory.merging_gain(delta, hessian)
    parts = theory.contraction(delta, weights)

    tasks = rng.normal(size=(NUM_TASKS, NUM_DIMENSIONS))
    tasks -= tasks.mean(axis=0)  # theta0 is the mean of the optima
    gradients = theory.task_gradients(tasks, hessian)
    interaction = theory.interaction_matrix(gradients, hessian)
    splits = list(theory.balanced_splits(NUM_TASKS))
    by_groups = [theory.one_step_gain(gradients, hessian, s, STEP) for s in splits]
    by_matrix = [theory.balanced_split_gain(interaction, s, STEP) for s in splits]
    sign = theory.sign_split(interaction)
    sign_gain = theory.one_step_gain(gradients, hessian, sign, STEP)

    curvatures, offsets = rng.uniform(0.5, 2, size=2), rng.uniform(0.5, 2, size=2)
    (l1, l2), (a, b) = curvatures.tolist(), offsets.tolist()
    square = np.array([[a, b], [a, -b], [-a, b], [-a, -b]])
    diagonal = np.diag(curvatures)
    corners = theory.task_gradients(square, diagonal)
    halves = [
        theory.one_step_gain(corners, diagonal, s, STEP)
        for s in ([1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1])
    ]
    return {
        "theorem 3.1, merging gain": Deviations(
            _relative(gain, theory.measured_gain(losses, merged, weights)), max(0.0, -gain)
        ),
        "theorem F.1, pairwise form": Deviations(
            _relative(uniform, theory.merging_gain_pairwise(delta, hessian)), 0.0
        ),
        "contraction": Deviations(
            _relative(parts.mean_square, parts.square_of_mean + parts.spread),
            max(0.0, parts.square_of_mean - parts.mean_square),
        ),
        "curvature amplification": Deviations(
            _relative(
                theory.gradient_covariance(tasks, hessian), gradients.T @ gradients / NUM_TASKS
            ),
            0.0,
        ),
        "two groups, one step": Deviations(_relative(by_groups, by_matrix), 0.0),
        "proposition F.6, four tasks on two axes": Deviations(
            _relative(halves, _corner_gains((l1, l2), (a, b))), 0.0
        ),
        "corollary F.7, their mean": Deviations(
            _relative(np.mean(halves), theory.four_task_expected_gain((l1, l2), (a, b), STEP)), 0.0
        ),
        "remark F.13, gains of axes add up": Deviations(
            _relative(theory.recursive_gain(curvatures, offsets, STEP), sum(halves)), 0.0
        ),
        "proposition F.10, random splits": Deviations(
            _relative(np.mean(by_matrix), theory.expected_random_gain(interaction, STEP)), 0.0
        ),
        "proposition F.11, sign split": Deviations(
            0.0,
            max(0.0, theory.sign_split_bound(interaction, STEP) / sign_gain - 1),
        ),
    }


def _corner_gains(
    curvatures: tuple[float, float], offsets: tuple[float, float]
) -> tuple[float, float, float]:
    return theory.four_task_gains(curvatures, offsets, STEP)


def _relative(a: object, b: object) -> float:
    """Largest deviation, relative to the largest entry."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.abs(left - right).max() / max(np.abs(left).max(), np.abs(right).max()))


def theory_holds(case: Case) -> Evidence:
    """C20: one link a statement, its worst deviation over all cases."""
    found = [deviations(seed) for seed in range(NUM_CASES)]
    links = [
        Link(
            name,
            max(max(cases[name]) for cases in found),
            NUM_CASES,
            bound=TOLERANCE,
            side="below",
        )
        for name in found[0]
    ]
    note = f"worst relative deviation over {NUM_CASES} random cases each; see tests/test_theory.py"
    return Evidence(links, "claims.json", note)
