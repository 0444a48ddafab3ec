"""The paper's theory (appendix F, docs/method.md 14): every identity, bound and limiting case.

The model: all branches share a quadratic loss of Hessian H (positive semi-definite); T tasks have
their optima at theta0 + Delta_t with sum_t Delta_t = 0, so that task gradients at theta0 sum to
zero, too. A split is a vector of signs (T,); M = G H G^T is the tasks' interaction matrix. The
formulas stand here, above the tests that use them; what the gain study needs is the program's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from merit.method.merging_gain import measured_gain, merging_gain_from_products

Array = NDArray[np.float64]
ETA = 0.3  # step size

seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=40, deadline=None, derandomize=True)


def random_hessian(generator: np.random.Generator, dim: int) -> Array:
    """Positive semi-definite, often of deficient rank."""
    factor = generator.standard_normal((generator.integers(1, dim + 1), dim))
    return factor.T @ factor


def centred_tasks(generator: np.random.Generator, num: int, dim: int) -> Array:
    tasks = generator.standard_normal((num, dim)) * generator.exponential(size=dim)
    return tasks - tasks.mean(axis=0)


def random_gradients(seed: int, num: int, dim: int) -> tuple[Array, Array, Array]:
    """(gradients, H, M) of centred random tasks."""
    generator = np.random.default_rng(seed)
    hessian = random_hessian(generator, dim)
    gradients = -centred_tasks(generator, num, dim) @ hessian
    return gradients, hessian, gradients @ hessian @ gradients.T


def quadratic_loss(theta: Array, optimum: Array, hessian: Array) -> Array:
    """1/2 (theta - theta*)^T H (theta - theta*) of every row of theta."""
    offset = theta - optimum
    return 0.5 * np.einsum("...i,ij,...j->...", offset, hessian, offset)


# --- merging gain ----------------------------------------------------------------------------


def merging_gain(delta: Array, hessian: Array, weights: Array) -> float:
    """Theorem 3.1 / F.1: 1/2 sum_l lambda_l Var_w(u_l^T delta), (lambda_l, u_l) H's eigenpairs."""
    eigenvalues, eigenvectors = np.linalg.eigh(hessian)
    coordinates = delta @ eigenvectors
    return float(0.5 * eigenvalues @ (weights @ (coordinates - weights @ coordinates) ** 2))


def uniform_gain(delta: Array, hessian: Array) -> float:
    return merging_gain(delta, hessian, np.full(len(delta), 1 / len(delta)))


def test_merging_gain_by_hand() -> None:
    # -1 and +1 along an axis of curvature 4: variance 1, or 3/4 under weights (1/4, 3/4)
    delta, hessian = np.array([[-1.0, 7.0], [1.0, 7.0]]), np.diag([4.0, 100.0])
    for weights, gain in (([0.5, 0.5], 2.0), ([0.25, 0.75], 1.5), ([1.0, 0.0], 0.0)):
        assert merging_gain(delta, hessian, np.array(weights)) == pytest.approx(gain)
        found = merging_gain_from_products(delta, lambda v: hessian @ v, weights)
        assert found == pytest.approx(gain)
    # 0.25 * 3 + 0.75 * 5 - 4
    assert measured_gain([3.0, 5.0], 4.0, [0.25, 0.75]) == pytest.approx(0.5)


@examples
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_merging_gain_equals_the_loss_difference(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, weights = random_hessian(generator, dim), generator.dirichlet(np.full(num, 0.7))
    theta0, optimum = generator.standard_normal((2, dim))
    delta = generator.standard_normal((num, dim))
    losses = 1.5 + quadratic_loss(theta0 + delta, optimum, hessian)
    merged = 1.5 + float(quadratic_loss(theta0 + weights @ delta, optimum, hessian))
    gain = merging_gain(delta, hessian, weights)
    assert gain >= -1e-12
    assert measured_gain(losses, merged, weights) == pytest.approx(gain, abs=1e-9)
    products = merging_gain_from_products(delta, lambda v: hessian @ v, weights)
    assert products == pytest.approx(gain, abs=1e-9)


@examples
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_pairwise_form_is_the_uniform_case(seed: int, num: int, dim: int) -> None:
    """1/(4 K^2) sum_ij (delta_i - delta_j)^T H (delta_i - delta_j)."""
    generator = np.random.default_rng(seed)
    hessian, delta = random_hessian(generator, dim), generator.standard_normal((num, dim))
    differences = delta[:, None] - delta[None]
    pairwise = np.einsum("abi,ij,abj->", differences, hessian, differences) / (4 * num**2)
    assert uniform_gain(delta, hessian) == pytest.approx(pairwise, abs=1e-9)
    assert uniform_gain(np.tile(delta[0], (num, 1)), hessian) == pytest.approx(0, abs=1e-9)


@examples
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_contraction(seed: int, num: int, dim: int) -> None:
    """sum_k w_k ||delta_k||^2 = ||mean||^2 + spread, so merging never moves away from the base."""
    generator = np.random.default_rng(seed)
    weights, delta = generator.dirichlet(np.full(num, 0.7)), generator.standard_normal((num, dim))
    mean = weights @ delta
    spread = float(weights @ ((delta - mean) ** 2).sum(axis=1))
    mean_square = float(weights @ (delta**2).sum(axis=1))
    assert mean_square == pytest.approx(mean @ mean + spread)
    assert mean @ mean <= mean_square + 1e-12
    # twice the merging gain in the isotropic quadratic is the spread
    assert spread == pytest.approx(2 * merging_gain(delta, np.eye(dim), weights), abs=1e-12)


def test_contraction_of_orthogonal_unit_branches() -> None:
    # half the squared distance is spread, the other half ||mean||^2
    assert uniform_gain(np.eye(2), np.eye(2)) == pytest.approx(0.25)


# --- task gradients, one step ----------------------------------------------------------------


def one_step_gain(gradients: Array, hessian: Array, signs: Array) -> float:
    """eta^2/8 (gbar_1 - gbar_2)^T H (gbar_1 - gbar_2): two groups, a step each, averaged."""
    difference = gradients[signs > 0].mean(axis=0) - gradients[signs < 0].mean(axis=0)
    return float(ETA**2 / 8 * difference @ hessian @ difference)


def balanced_split_gain(interaction: Array, signs: Array) -> float:
    """The same gain as eta^2/(2 T^2) s^T M s, for signs that sum to zero."""
    return float(ETA**2 / (2 * len(signs) ** 2) * signs @ interaction @ signs)


def balanced_splits(num_tasks: int) -> Iterator[Array]:
    """Every balanced split of T (even) tasks once, task 0 on the + side."""
    for others in combinations(range(1, num_tasks), num_tasks // 2 - 1):
        signs = np.full(num_tasks, -1.0)
        signs[[0, *others]] = 1.0
        yield signs


@examples
@given(seeds, st.integers(2, 6), st.integers(1, 5))
def test_task_gradients_and_curvature_amplification(seed: int, num: int, dim: int) -> None:
    """g_t = -H Delta_t, and the gradients' covariance over tasks is H Sigma_theta H."""
    generator = np.random.default_rng(seed)
    hessian, tasks = random_hessian(generator, dim), centred_tasks(generator, num, dim)
    gradients = -tasks @ hessian
    # against differences of task t's loss at theta0 = 0; central differences are exact here
    for gradient, optimum in zip(gradients, tasks, strict=True):
        plus, minus = (quadratic_loss(s * np.eye(dim), optimum, hessian) for s in (1, -1))
        np.testing.assert_allclose(gradient, (plus - minus) / 2, atol=1e-9)
    np.testing.assert_allclose(gradients.sum(axis=0), 0, atol=1e-9)
    of_gradients, of_tasks = (np.cov(x.T, bias=True).reshape(dim, dim) for x in (gradients, tasks))
    np.testing.assert_allclose(hessian @ of_tasks @ hessian, of_gradients, atol=1e-8)
    # M = G H G^T is Delta H^3 Delta^T
    cubed = tasks @ np.linalg.matrix_power(hessian, 3) @ tasks.T
    tolerance = 1e-7 * max(1, np.abs(cubed).max())
    np.testing.assert_allclose(gradients @ hessian @ gradients.T, cubed, atol=tolerance)


@examples
@given(seeds, st.sampled_from([2, 4, 6, 8]), st.integers(1, 5))
def test_one_step_gain_in_all_its_forms(seed: int, num: int, dim: int) -> None:
    gradients, hessian, interaction = random_gradients(seed, num, dim)
    signs = np.random.default_rng(seed).permutation(np.repeat([1.0, -1.0], num // 2))
    gain = one_step_gain(gradients, hessian, signs)
    assert balanced_split_gain(interaction, signs) == pytest.approx(gain, abs=1e-9)
    # and as what it is: two branches, one step each, theorem F.1
    branches = np.array([-ETA * gradients[signs == s].mean(axis=0) for s in (1, -1)])
    assert uniform_gain(branches, hessian) == pytest.approx(gain, abs=1e-9)


def test_balanced_splits_are_all_of_them_once() -> None:
    for num, count in ((2, 1), (4, 3), (6, 10), (8, 35)):  # C(T, T/2) / 2
        splits = [tuple(s) for s in balanced_splits(num)]
        assert len(set(splits)) == len(splits) == count
        assert all(sum(s) == 0 and s[0] == 1 for s in splits)


# --- T = 4, d = 2: tasks at (+-a, +-b), H = diag(l1, l2) -------------------------------------

CORNERS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=float)
BY_FIRST, BY_SECOND, DIAGONAL = (
    np.array(signs, dtype=float) for signs in ((1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))
)


def four_task_gains(curvatures: Array, offsets: Array) -> Array:
    """Gains of the splits by the first axis, by the second and diagonally."""
    gradients = -(CORNERS * offsets) @ np.diag(curvatures)
    interaction = gradients @ np.diag(curvatures) @ gradients.T
    return np.array([balanced_split_gain(interaction, s) for s in (BY_FIRST, BY_SECOND, DIAGONAL)])


def pca_axis(curvatures: Array, offsets: Array) -> int:
    """Corollary F.7: the axis that gradient PCA splits first, the larger of l^2 a^2."""
    return int(np.argmax(curvatures**2 * offsets**2))


def test_four_tasks_by_hand() -> None:
    # l = (2, 1), a = b = 1: eta^2 times 8/2, 1/2, 0
    curvatures, ones = np.array([2.0, 1.0]), np.ones(2)
    np.testing.assert_allclose(four_task_gains(curvatures, ones), ETA**2 * np.array([4, 0.5, 0]))
    assert (pca_axis(curvatures, ones), pca_axis(curvatures[::-1], ones)) == (0, 1)
    # corollary F.7's ordering l1 >= l2 is needed: here PCA splits axis 0 (9 > 7.84) though axis 1
    # would gain more (9 < 15.68)
    curvatures, offsets = np.array([1.0, 2.0]), np.array([3.0, 1.4])
    assert pca_axis(curvatures, offsets) == 0
    gains = four_task_gains(curvatures, offsets) / (ETA**2 / 2)
    np.testing.assert_allclose(gains, [9, 15.68, 0], atol=1e-12)


@examples
@given(*[st.floats(0.1, 3) for _ in range(4)])
def test_proposition_f6_and_corollary_f7(l1: float, l2: float, a: float, b: float) -> None:
    curvatures, offsets = np.array([l1, l2]), np.array([a, b])
    gains = four_task_gains(curvatures, offsets)
    first, second = ETA**2 / 2 * curvatures**3 * offsets**2
    np.testing.assert_allclose(gains, [first, second, 0], rtol=1e-9, atol=1e-12)
    assert gains.mean() == pytest.approx(ETA**2 / 6 * (l1**3 * a**2 + l2**3 * b**2))
    # PCA's axis is the one of the larger gradient variance; if also the stiffer one, the best
    variances = (CORNERS * offsets * curvatures).var(axis=0)
    axis = pca_axis(curvatures, offsets)
    assert variances[axis] == pytest.approx(variances.max())
    stiffer = curvatures[axis] >= curvatures[1 - axis]
    assert not stiffer or gains[axis] == pytest.approx(gains.max())


@examples
@given(seeds, st.integers(1, 4))
def test_remark_f13_recursion_adds_up_over_axes(seed: int, num_axes: int) -> None:
    """One branch for each of 2^r corners gains eta^2/2 sum_j lambda_j^3 a_j^2."""
    curvatures, offsets = np.random.default_rng(seed).exponential(size=(2, num_axes))
    corners = np.array(np.meshgrid(*[[1.0, -1.0]] * num_axes)).reshape(num_axes, -1).T
    steps = ETA * (corners * offsets) @ np.diag(curvatures)
    expected = ETA**2 / 2 * curvatures**3 @ offsets**2
    assert uniform_gain(steps, np.diag(curvatures)) == pytest.approx(expected)


# --- random splits against sign(v1) ----------------------------------------------------------


def expected_random_gain(interaction: Array) -> float:
    """Proposition F.10: the mean over balanced random splits, eta^2/(2 T (T-1)) tr M; M 1 = 0."""
    num = len(interaction)
    return float(ETA**2 / (2 * num * (num - 1)) * np.trace(interaction))


def leading_pair(interaction: Array) -> tuple[float, Array]:
    """mu_1 and v1, its largest entry positive."""
    eigenvalues, eigenvectors = np.linalg.eigh(interaction)
    leading = eigenvectors[:, -1]
    return float(eigenvalues[-1]), leading * np.sign(leading[np.abs(leading).argmax()])


def sign_split(interaction: Array) -> Array:
    """sign(v1); zero counts as +."""
    return np.where(leading_pair(interaction)[1] >= 0, 1.0, -1.0)


def sign_split_bound(interaction: Array) -> float:
    """Proposition F.11: the sign(v1) split gains at least eta^2/(2 T^2) mu_1 ||v1||_1^2."""
    eigenvalue, leading = leading_pair(interaction)
    return float(ETA**2 / (2 * len(leading) ** 2) * eigenvalue * np.abs(leading).sum() ** 2)


def dominance_ratio(interaction: Array) -> float:
    """Bound F.11 over expectation F.10: (T-1)/T mu_1 ||v1||_1^2 / tr M."""
    return sign_split_bound(interaction) / expected_random_gain(interaction)


@examples
@given(seeds, st.sampled_from([2, 4, 6, 8]), st.integers(1, 4))
def test_f10_is_the_mean_over_all_balanced_splits(seed: int, num: int, dim: int) -> None:
    _, _, interaction = random_gradients(seed, num, dim)
    gains = [balanced_split_gain(interaction, s) for s in balanced_splits(num)]
    assert expected_random_gain(interaction) == pytest.approx(np.mean(gains), abs=1e-9)


@examples
@given(seeds, st.integers(2, 9), st.integers(1, 4))
def test_f11_bounds_the_sign_split_balanced_or_not(seed: int, num: int, dim: int) -> None:
    # unbalanced too, as the gradients sum to zero: the distance of two group means,
    # T/(2 n1 n2) ||G^T s||, is smallest at n1 = n2; beyond a ratio of 1 it beats random splits
    gradients, hessian, interaction = random_gradients(seed, num, dim)
    gain = one_step_gain(gradients, hessian, sign_split(interaction))
    bound = sign_split_bound(interaction)
    assert gain >= bound * (1 - 1e-9)
    assert bound > 0


def test_sign_split_convention() -> None:
    # v1 ~ (-3, 0, 1, 2) / sqrt(14): flipped so that -3 is positive, and zero counts as +
    vector = np.array([-3.0, 0, 1, 2])
    np.testing.assert_array_equal(sign_split(np.outer(vector, vector)), [1, 1, -1, -1])


@pytest.mark.parametrize("num", [2, 4, 10, 136])
def test_f12_delocalised_rank_one_wins_by_t_minus_one(num: int) -> None:
    signs = np.tile([1.0, -1.0], num // 2)
    interaction = 3.0 * np.outer(signs, signs)
    assert dominance_ratio(interaction) == pytest.approx(num - 1)
    gain = balanced_split_gain(interaction, sign_split(interaction))
    assert gain / expected_random_gain(interaction) == pytest.approx(num - 1)


@pytest.mark.parametrize("num", [4, 6, 8])
def test_f12_isotropic_no_split_wins(num: int) -> None:
    interaction = 5.0 * (np.eye(num) - 1 / num)
    gains = [balanced_split_gain(interaction, s) for s in balanced_splits(num)]
    np.testing.assert_allclose(gains, expected_random_gain(interaction))
    assert dominance_ratio(interaction) <= 1 + 1e-12


def test_localised_leading_direction_does_not_dominate() -> None:
    # one task (with the shared remainder) carries v1: ||v1||_1^2 is far below T
    vector = np.full(20, -1.0)
    vector[0] = 19
    leading = np.outer(vector, vector) / (vector @ vector)
    interaction = leading + 0.5 * (np.eye(20) - 1 / 20 - leading)
    assert dominance_ratio(interaction) < 1


# --- cosine against raw PCA ------------------------------------------------------------------


def norm_concentration(norms: Array) -> tuple[float, float]:
    """(alpha, eps) of norms = alpha (1 + d_i), |d_i| <= eps, with the smallest possible eps."""
    low, high = float(norms.min()), float(norms.max())
    return (high + low) / 2, (high - low) / (high + low)


def cosine_matrix_bound(epsilon: float, gram_norm: float) -> float:
    """Lemma 1: ||C - K / alpha^2||_2 <= (2 f + f^2) ||K / alpha^2||_2 with f = eps / (1 - eps).

    C = D^-1 K D^-1, D = alpha diag(1 + d_i), |d_i| <= eps < 1; `gram_norm` is ||K / alpha^2||_2.
    Writing D^-1 = (I + F)/alpha with ||F|| <= f gives C - K/alpha^2 = (FK + KF + FKF)/alpha^2.
    """
    ratio = epsilon / (1 - epsilon)
    return (2 * ratio + ratio**2) * gram_norm


def eigenspace_bound(epsilon: float, gram_norm: float, gap: float) -> float:
    """Theorem F.4: the sine of the largest angle between the top-r eigenspaces of K and C.

    Davis-Kahan (in Yu, Wang and Samworth's form): at most 2 ||C - K/alpha^2|| / gap = O(eps
    ||K||_2 / gap), and never above 1. `gap` = mu_r - mu_{r+1} of K, in the same units as
    `gram_norm` = ||K||_2 (alpha cancels). For the double-centred matrices JKJ and JCJ the bound
    holds with JKJ's gap and the uncentred ||K||_2, because a projection enlarges no norm.
    """
    return min(1.0, 2 * cosine_matrix_bound(epsilon, gram_norm) / gap)


def largest_sine(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b @ (b.T @ a), 2))


@examples
@given(seeds, st.integers(3, 8), st.floats(0, 0.5), st.booleans())
def test_lemma_1_and_theorem_f4(seed: int, num: int, epsilon: float, centred: bool) -> None:
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((num, 12)) * np.array([4.0, 2.0, *[0.3] * 10])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    norms = 7 * (1 + generator.uniform(-epsilon, epsilon, num))
    gradients = norms[:, None] * directions

    alpha, found = norm_concentration(norms)
    assert found <= epsilon + 1e-12
    scaled, cosine = gradients @ gradients.T / alpha**2, directions @ directions.T
    norm = float(np.linalg.norm(scaled, 2))
    assert np.linalg.norm(cosine - scaled, 2) <= cosine_matrix_bound(found, norm) + 1e-12
    projection = np.eye(num) - centred / num
    spectrum, spaces = np.linalg.eigh(projection @ scaled @ projection)
    _, cosine_spaces = np.linalg.eigh(projection @ cosine @ projection)
    for rank in (1, 2):
        gap = float(spectrum[-rank] - spectrum[-rank - 1])
        sine = largest_sine(spaces[:, -rank:], cosine_spaces[:, -rank:])
        assert sine <= eigenspace_bound(found, norm, gap) + 1e-9


def test_lemma_1_is_tight_where_it_should_be() -> None:
    # identical directions with norms 1 -+ eps: C - K has the entry 1/(1-eps)^2 - 1 at one task
    epsilon = 0.1
    norms = np.array([1 - epsilon, 1 + epsilon])
    assert norm_concentration(norms) == (pytest.approx(1), pytest.approx(epsilon))
    assert cosine_matrix_bound(epsilon, 1.0) == pytest.approx(1 / (1 - epsilon) ** 2 - 1)
    gram = np.outer(norms, norms)
    error = np.linalg.norm(np.ones((2, 2)) - gram, 2)
    assert error <= cosine_matrix_bound(epsilon, float(np.linalg.norm(gram, 2)))


def test_eigenspace_bound_by_hand() -> None:
    assert eigenspace_bound(0, 5, 1) == 0  # equal norms: the same eigenvectors
    # f = 1/9, 2 f + f^2 = 19/81; twice that over a gap of 2
    assert eigenspace_bound(0.1, 1, 2) == pytest.approx(19 / 81)
    # O(eps): ten times the concentration, about ten times the bound
    tenfold = eigenspace_bound(1e-4, 1, 1) / eigenspace_bound(1e-5, 1, 1)
    assert tenfold == pytest.approx(10, rel=1e-3)


# --- refusals --------------------------------------------------------------------------------


def test_caller_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="one row per branch"):
        merging_gain_from_products([1.0, 2.0], lambda v: v, [0.5, 0.5])
    with pytest.raises(ValueError, match="expected 2 merge weights"):
        measured_gain([1.0, 2.0], 1.0, [1.0])
    for weights in ([0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match="sum to 1"):
            merging_gain_from_products(np.eye(2), lambda v: v, weights)
