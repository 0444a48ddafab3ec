"""The paper's theory, one formula a function (METHOD.md section 8); float64 throughout.

The model: every branch's loss is the same quadratic L(theta) = L* + 1/2 (theta - theta*)^T H
(theta - theta*) with H positive semi-definite, and K branches theta_k = theta0 + delta_k are
averaged with merge weights w (non-negative, sum 1). In the task model of appendix F the T tasks
share H, task t's optimum lies at theta0 + Delta_t, and theta0 is the mean of the optima, so
sum_t Delta_t = 0 and the task gradients at theta0 sum to zero as well.

Shapes: displacements (K, d) or (T, d), Hessian (d, d), merge weights (K,), gradients (T, d),
signs (T,) in {-1, +1}, interaction matrix M (T, T). Wrong shapes, merge weights that are not a
distribution and signs that are not balanced raise ValueError: they are a caller's mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


# --- the quadratic model and the merging gain ------------------------------------------------


def quadratic_loss(
    theta: ArrayLike, optimum: ArrayLike, hessian: ArrayLike, minimum: float = 0.0
) -> Array:
    """L(theta) = L* + 1/2 (theta - theta*)^T H (theta - theta*); theta (..., d) gives (...)."""
    offset = _array(theta) - _array(optimum)
    return minimum + 0.5 * np.einsum("...i,ij,...j->...", offset, _array(hessian), offset)


def merging_gain(
    displacements: ArrayLike, hessian: ArrayLike, merge_weights: ArrayLike | None = None
) -> float:
    """Theorem 3.1 / F.1: sum_k w_k L(theta_k) - L(merged) = 1/2 sum_l lambda_l Var_w(u_l^T delta).

    (lambda_l, u_l) are H's eigenpairs and Var_w the variance under the merge weights (uniform by
    default). Never negative, and independent of theta* and of where theta0 lies.
    """
    delta = _rows(displacements)
    weights = _distribution(merge_weights, len(delta))
    eigenvalues, eigenvectors = np.linalg.eigh(_array(hessian))
    coordinates = delta @ eigenvectors  # (K, d): u_l^T delta_k
    variances = weights @ (coordinates - weights @ coordinates) ** 2
    return float(0.5 * eigenvalues @ variances)


def merging_gain_pairwise(displacements: ArrayLike, hessian: ArrayLike) -> float:
    """Theorem F.1, uniform: 1/(4 K^2) sum_ij (delta_i - delta_j)^T H (delta_i - delta_j)."""
    delta = _rows(displacements)
    differences = delta[:, None] - delta[None]  # (K, K, d)
    total = np.einsum("abi,ij,abj->", differences, _array(hessian), differences)
    return float(total / (4 * len(delta) ** 2))


def merging_gain_from_products(
    displacements: ArrayLike,
    hessian_product: Callable[[Array], ArrayLike],
    merge_weights: ArrayLike | None = None,
) -> float:
    """Theorem F.1 without H: 1/2 sum_k w_k (delta_k - mean)^T H (delta_k - mean).

    `hessian_product` maps v (d,) to H v (d,); one call a branch. On a real model this is the
    predicted gain that is set beside the measured one (`measured_gain`).
    """
    delta = _rows(displacements)
    weights = _distribution(merge_weights, len(delta))
    centred = delta - weights @ delta
    curvatures = np.array([v @ _array(hessian_product(v)) for v in centred])
    return float(0.5 * weights @ curvatures)


def measured_gain(
    branch_losses: ArrayLike, merged_loss: float, merge_weights: ArrayLike | None = None
) -> float:
    """The left side of theorem 3.1 from measured losses: sum_k w_k L(theta_k) - L(merged)."""
    losses = _array(branch_losses)
    return float(_distribution(merge_weights, len(losses)) @ losses - merged_loss)


class Contraction(NamedTuple):
    """mean_square = square_of_mean + spread; `square_of_mean` is ||merged - theta0||^2."""

    mean_square: float
    square_of_mean: float
    spread: float


def contraction(displacements: ArrayLike, merge_weights: ArrayLike | None = None) -> Contraction:
    """sum_k w_k ||delta_k||^2 = ||mean||^2 + sum_k w_k ||delta_k - mean||^2 (section 8).

    Each term is computed on its own. The spread is never negative, hence the bound
    ||merged - theta0||^2 <= sum_k w_k ||theta_k - theta0||^2.
    """
    delta = _rows(displacements)
    weights = _distribution(merge_weights, len(delta))
    mean = weights @ delta
    return Contraction(
        mean_square=float(weights @ (delta**2).sum(axis=1)),
        square_of_mean=float(mean @ mean),
        spread=float(weights @ ((delta - mean) ** 2).sum(axis=1)),
    )


# --- the task model: gradients at theta0 -----------------------------------------------------


def task_gradients(task_displacements: ArrayLike, hessian: ArrayLike) -> Array:
    """g_t = -H Delta_t for every task: (T, d); the gradient of task t's loss at theta0."""
    return -_rows(task_displacements) @ _array(hessian)


def gradient_covariance(task_displacements: ArrayLike, hessian: ArrayLike) -> Array:
    """Curvature amplification: Sigma_g = H Sigma_theta H, both covariances over tasks (1/T).

    Directions of high curvature weigh lambda^2 more in gradient space than in parameter space,
    which is why PCA of gradients finds the directions where the merging gain is made.
    """
    delta = _rows(task_displacements)
    centred = delta - delta.mean(axis=0)
    return _array(hessian) @ (centred.T @ centred / len(delta)) @ _array(hessian)


def interaction_matrix(gradients: ArrayLike, hessian: ArrayLike) -> Array:
    """M = G H G^T (T, T); with g_t = -H Delta_t also M_ij = Delta_i^T H^3 Delta_j."""
    matrix = _rows(gradients)
    return matrix @ _array(hessian) @ matrix.T


# --- two groups, one gradient step -----------------------------------------------------------


def one_step_gain(
    gradients: ArrayLike, hessian: ArrayLike, signs: ArrayLike, step_size: float
) -> float:
    """G_var = eta^2/8 (gbar_1 - gbar_2)^T H (gbar_1 - gbar_2) (appendix F).

    Both groups take one step of size eta along their mean gradient from theta0 and are averaged
    uniformly. The groups (signs +1 and -1) need not be of equal size, but neither may be empty.
    """
    matrix, split = _rows(gradients), _signs(signs)
    if abs(split.sum()) == len(split):
        raise ValueError("a split needs a task on either side")
    difference = matrix[split > 0].mean(axis=0) - matrix[split < 0].mean(axis=0)
    return float(step_size**2 / 8 * difference @ _array(hessian) @ difference)


def balanced_split_gain(interaction: ArrayLike, signs: ArrayLike, step_size: float) -> float:
    """The same gain as eta^2/(2 T^2) s^T M s, for balanced signs s (appendix F)."""
    matrix, split = _array(interaction), _signs(signs)
    if split.sum() != 0:
        raise ValueError(f"signs must be balanced, found a sum of {split.sum():g}")
    return float(step_size**2 / (2 * len(split) ** 2) * split @ matrix @ split)


def balanced_splits(num_tasks: int) -> Iterator[Array]:
    """Every balanced split of T (even) tasks once, as signs with task 0 on the + side."""
    if num_tasks < 2 or num_tasks % 2:
        raise ValueError(f"balanced splits need an even number of tasks, found {num_tasks}")
    for others in combinations(range(1, num_tasks), num_tasks // 2 - 1):
        signs = np.full(num_tasks, -1.0)
        signs[[0, *others]] = 1.0
        yield signs


def four_task_gains(
    curvatures: tuple[float, float], offsets: tuple[float, float], step_size: float
) -> tuple[float, float, float]:
    """Proposition F.6, T = 4, d = 2, H = diag(l1, l2), Delta = (+-a, +-b).

    The gains of the three balanced splits: by the first axis eta^2/2 l1^3 a^2, by the second
    eta^2/2 l2^3 b^2, and 0 for the diagonal one.
    """
    (l1, l2), (a, b) = curvatures, offsets
    return step_size**2 / 2 * l1**3 * a**2, step_size**2 / 2 * l2**3 * b**2, 0.0


def four_task_pca_axis(curvatures: tuple[float, float], offsets: tuple[float, float]) -> int:
    """Corollary F.7: the axis gradient PCA splits first: 0 if l1^2 a^2 >= l2^2 b^2, else 1.

    That split is the best one when the axis is also the stiffer one (l1 >= l2, the corollary's
    ordering): l1^2 a^2 > l2^2 b^2 then implies l1^3 a^2 > l2^3 b^2. Without it, it need not be.
    """
    (l1, l2), (a, b) = curvatures, offsets
    return 0 if l1**2 * a**2 >= l2**2 * b**2 else 1


def four_task_expected_gain(
    curvatures: tuple[float, float], offsets: tuple[float, float], step_size: float
) -> float:
    """Corollary F.7: the mean over the three balanced splits, eta^2/6 (l1^3 a^2 + l2^3 b^2)."""
    (l1, l2), (a, b) = curvatures, offsets
    return step_size**2 / 6 * (l1**3 * a**2 + l2**3 * b**2)


# --- general T: random splits against the sign of the leading eigenvector --------------------


def expected_random_gain(interaction: ArrayLike, step_size: float) -> float:
    """Proposition F.10: the mean gain over balanced random splits, eta^2/(2 T (T-1)) tr M.

    Needs gradients that sum to zero (theta0 the mean optimum), that is M 1 = 0.
    """
    matrix = _array(interaction)
    num_tasks = len(matrix)
    return float(step_size**2 / (2 * num_tasks * (num_tasks - 1)) * np.trace(matrix))


def sign_split(interaction: ArrayLike) -> Array:
    """sign(v1) of M's leading eigenvector; zero counts as +, and v1's largest entry is positive."""
    _, leading = _leading_pair(interaction)
    return np.where(leading >= 0, 1.0, -1.0)


def sign_split_bound(interaction: ArrayLike, step_size: float) -> float:
    """Proposition F.11: the sign(v1) split gains at least eta^2/(2 T^2) mu_1 ||v1||_1^2.

    With gradients that sum to zero it holds for unbalanced sign(v1) too: the distance of two
    group means, T/(2 n1 n2) ||G^T s||, is smallest at n1 = n2.
    """
    eigenvalue, leading = _leading_pair(interaction)
    return float(step_size**2 / (2 * len(leading) ** 2) * eigenvalue * np.abs(leading).sum() ** 2)


def dominance_ratio(interaction: ArrayLike) -> float:
    """Bound F.11 over expectation F.10: (T-1)/T mu_1 ||v1||_1^2 / tr M; nan for M = 0.

    Corollary F.12: T - 1 for a delocalised rank-1 M (|v1| constant); at most 1 for an isotropic M
    (a multiple of the centring matrix), where every balanced split gains the same.
    """
    matrix = _array(interaction)
    eigenvalue, leading = _leading_pair(matrix)
    trace = np.trace(matrix)
    if trace <= 0:
        return float("nan")
    num_tasks = len(matrix)
    return float((num_tasks - 1) / num_tasks * eigenvalue * np.abs(leading).sum() ** 2 / trace)


def sign_split_dominates(interaction: ArrayLike) -> bool:
    """Proposition F.11's condition mu_1 ||v1||_1^2 > T/(T-1) tr M: sign(v1) beats random splits.

    Equality up to rounding (two tasks, isotropic M) is no dominance.
    """
    return dominance_ratio(interaction) > 1 + 1e-9


def recursive_gain(curvatures: ArrayLike, offsets: ArrayLike, step_size: float) -> float:
    """Remark F.13: splitting along r axes gains eta^2/2 sum_j lambda_j^3 a_j^2.

    The tasks' optima sit at the corners (+-a_1, ..., +-a_r) along H's eigenvectors of curvature
    lambda_j; each axis adds its own gain, K = 2^r.
    """
    return float(step_size**2 / 2 * (_array(curvatures) ** 3) @ (_array(offsets) ** 2))


# --- cosine against raw PCA ------------------------------------------------------------------


def norm_concentration(norms: ArrayLike) -> tuple[float, float]:
    """(alpha, eps) of norms = alpha (1 + d_i), |d_i| <= eps, with the smallest possible eps.

    alpha is the mid-range (max + min)/2 and eps = (max - min)/(max + min). The norms are positive.
    """
    values = _array(norms)
    low, high = float(values.min()), float(values.max())
    if low <= 0:
        raise ValueError(f"gradient norms must be positive, found {low:g}")
    return (high + low) / 2, (high - low) / (high + low)


def cosine_matrix_bound(epsilon: float, gram_norm: float) -> float:
    """Lemma 1: ||C - K / alpha^2||_2 <= (2 f + f^2) ||K / alpha^2||_2 with f = eps / (1 - eps).

    C = D^-1 K D^-1, D = alpha diag(1 + d_i), |d_i| <= eps < 1; `gram_norm` is ||K / alpha^2||_2.
    Writing D^-1 = (I + F)/alpha with ||F|| <= f gives C - K/alpha^2 = (FK + KF + FKF)/alpha^2.
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon must lie in [0, 1), found {epsilon:g}")
    ratio = epsilon / (1 - epsilon)
    return (2 * ratio + ratio**2) * gram_norm


def eigenspace_bound(epsilon: float, gram_norm: float, gap: float) -> float:
    """Theorem F.4: the sine of the largest angle between the top-r eigenspaces of K and C.

    Davis-Kahan (in Yu, Wang and Samworth's form): at most 2 ||C - K/alpha^2|| / gap = O(eps
    ||K||_2 / gap), and never above 1. `gap` = mu_r - mu_{r+1} of K, in the same units as
    `gram_norm` = ||K||_2 (alpha cancels). For the double-centred matrices JKJ and JCJ the bound
    holds with JKJ's gap and the uncentred ||K||_2, because a projection enlarges no norm.
    """
    if gap <= 0:
        return 1.0
    return min(1.0, 2 * cosine_matrix_bound(epsilon, gram_norm) / gap)


# --- checks ----------------------------------------------------------------------------------


def _array(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _rows(values: ArrayLike) -> Array:
    matrix = _array(values)
    if matrix.ndim != 2:
        raise ValueError(f"expected one row a branch or task, found shape {matrix.shape}")
    return matrix


def _distribution(merge_weights: ArrayLike | None, num_branches: int) -> Array:
    if merge_weights is None:
        return np.full(num_branches, 1 / num_branches)
    weights = _array(merge_weights)
    if weights.shape != (num_branches,):
        raise ValueError(f"expected {num_branches} merge weights, found shape {weights.shape}")
    if (weights < 0).any() or abs(weights.sum() - 1) > 1e-9:
        raise ValueError("merge weights must be non-negative and sum to 1")
    return weights


def _signs(signs: ArrayLike) -> Array:
    split = _array(signs)
    if split.ndim != 1 or not np.isin(split, (-1, 1)).all():
        raise ValueError("signs must be a vector of -1 and +1")
    return split


def _leading_pair(interaction: ArrayLike) -> tuple[float, Array]:
    eigenvalues, eigenvectors = np.linalg.eigh(_array(interaction))
    leading = eigenvectors[:, -1]
    return float(eigenvalues[-1]), leading * np.sign(leading[np.abs(leading).argmax()])
