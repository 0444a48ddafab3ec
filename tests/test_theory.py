"""merit.core.theory: every identity, bound and limiting case of METHOD.md section 8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from merit.core import theory as t

Array = NDArray[np.float64]
ETA = 0.3

seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=40, deadline=None, derandomize=True)


def random_hessian(generator: np.random.Generator, dim: int) -> Array:
    """Positive semi-definite, often of deficient rank."""
    factor = generator.standard_normal((generator.integers(1, dim + 1), dim))
    return factor.T @ factor


def random_weights(generator: np.random.Generator, num: int) -> Array:
    return generator.dirichlet(np.full(num, 0.7))


def centred_tasks(generator: np.random.Generator, num: int, dim: int) -> Array:
    tasks = generator.standard_normal((num, dim)) * generator.exponential(size=dim)
    return tasks - tasks.mean(axis=0)


# --- merging gain ----------------------------------------------------------------------------


def test_quadratic_loss_by_hand() -> None:
    # 1/2 (2 * 1 + 4 * 9) + 5
    assert t.quadratic_loss([2, 3], [1, 0], np.diag([2.0, 4.0]), minimum=5) == pytest.approx(24)


def test_merging_gain_by_hand() -> None:
    # -1 and +1 along an axis of curvature 4: variance 1, or 3/4 under weights (1/4, 3/4)
    delta = [[-1.0, 7.0], [1.0, 7.0]]
    hessian = np.diag([4.0, 100.0])
    assert t.merging_gain(delta, hessian) == pytest.approx(2.0)
    assert t.merging_gain(delta, hessian, [0.25, 0.75]) == pytest.approx(0.5 * 4 * 0.75)
    assert t.merging_gain(delta, hessian, [1.0, 0.0]) == pytest.approx(0.0)


@examples
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_merging_gain_equals_the_loss_difference(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, weights = random_hessian(generator, dim), random_weights(generator, num)
    theta0, optimum = generator.standard_normal((2, dim))
    delta = generator.standard_normal((num, dim))
    losses = t.quadratic_loss(theta0 + delta, optimum, hessian, minimum=1.5)
    merged = float(t.quadratic_loss(theta0 + weights @ delta, optimum, hessian, minimum=1.5))
    gain = t.merging_gain(delta, hessian, weights)
    assert gain >= -1e-12
    assert gain == pytest.approx(t.measured_gain(losses, merged, weights), abs=1e-9)
    products = t.merging_gain_from_products(delta, lambda v: hessian @ v, weights)
    assert products == pytest.approx(gain, abs=1e-9)


@examples
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_pairwise_form_is_the_uniform_case(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, delta = random_hessian(generator, dim), generator.standard_normal((num, dim))
    expected = t.merging_gain(delta, hessian)
    assert t.merging_gain_pairwise(delta, hessian) == pytest.approx(expected, abs=1e-9)


def test_identical_branches_gain_nothing() -> None:
    delta = np.tile([1.0, -2.0, 3.0], (4, 1))
    assert t.merging_gain(delta, np.eye(3)) == 0
    assert t.merging_gain_pairwise(delta, np.eye(3)) == 0


@examples
@given(seeds, st.integers(1, 6), st.integers(1, 5))
def test_contraction(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    delta, weights = generator.standard_normal((num, dim)), random_weights(generator, num)
    mean_square, square_of_mean, spread = t.contraction(delta, weights)
    assert mean_square == pytest.approx(square_of_mean + spread)
    merged = np.average(delta, axis=0, weights=weights)
    assert square_of_mean == pytest.approx(np.linalg.norm(merged) ** 2)
    assert square_of_mean <= mean_square + 1e-12
    # twice the merging gain in the isotropic quadratic is the spread
    assert spread == pytest.approx(2 * t.merging_gain(delta, np.eye(dim), weights), abs=1e-12)


def test_contraction_by_hand() -> None:
    # orthogonal unit branches: half the squared distance is spread
    assert t.contraction(np.eye(2)) == (pytest.approx(1), pytest.approx(0.5), pytest.approx(0.5))


# --- task gradients, one step ----------------------------------------------------------------


@examples
@given(seeds, st.integers(2, 6), st.integers(1, 5))
def test_task_gradients_and_curvature_amplification(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, tasks = random_hessian(generator, dim), centred_tasks(generator, num, dim)
    gradients = t.task_gradients(tasks, hessian)
    # against differences of task t's loss at theta0 = 0; central differences are exact here
    for gradient, optimum in zip(gradients, tasks, strict=True):
        plus, minus = (t.quadratic_loss(s * np.eye(dim), optimum, hessian) for s in (1, -1))
        np.testing.assert_allclose(gradient, (plus - minus) / 2, atol=1e-9)
    np.testing.assert_allclose(gradients.sum(axis=0), 0, atol=1e-9)
    covariance = np.atleast_2d(np.cov(gradients.T, bias=True))
    np.testing.assert_allclose(t.gradient_covariance(tasks, hessian), covariance, atol=1e-8)


def test_curvature_amplification_by_hand() -> None:
    tasks = [[1.0, 2.0], [-1.0, -2.0]]
    amplified = t.gradient_covariance(tasks, np.diag([3.0, 1.0]))
    np.testing.assert_allclose(amplified, [[9, 6], [6, 4]])


@examples
@given(seeds, st.sampled_from([2, 4, 6, 8]), st.integers(1, 5))
def test_one_step_gain_in_all_its_forms(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, tasks = random_hessian(generator, dim), centred_tasks(generator, num, dim)
    gradients = t.task_gradients(tasks, hessian)
    interaction = t.interaction_matrix(gradients, hessian)
    cubed = tasks @ np.linalg.matrix_power(hessian, 3) @ tasks.T
    np.testing.assert_allclose(interaction, cubed, atol=1e-7 * max(1, np.abs(cubed).max()))

    signs = generator.permutation(np.repeat([1.0, -1.0], num // 2))
    gain = t.one_step_gain(gradients, hessian, signs, ETA)
    assert t.balanced_split_gain(interaction, signs, ETA) == pytest.approx(gain, abs=1e-9)
    # and as what it is: two branches, one step each, theorem F.1
    branches = [-ETA * gradients[signs == s].mean(axis=0) for s in (1, -1)]
    assert t.merging_gain(branches, hessian) == pytest.approx(gain, abs=1e-9)


# --- T = 4, d = 2 ----------------------------------------------------------------------------

CORNERS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=float)


def four_tasks(
    curvatures: tuple[float, float], offsets: tuple[float, float]
) -> tuple[Array, Array, Array]:
    """(gradients, H, M) of the four tasks at (+-a, +-b)."""
    hessian = np.diag(curvatures)
    gradients = t.task_gradients(CORNERS * offsets, hessian)
    return gradients, hessian, t.interaction_matrix(gradients, hessian)


def test_four_tasks_by_hand() -> None:
    # l = (2, 1), a = b = 1, eta = 1: 8/2, 1/2, 0; mean 1.5
    assert t.four_task_gains((2, 1), (1, 1), 1.0) == (4.0, 0.5, 0.0)
    assert t.four_task_expected_gain((2, 1), (1, 1), 1.0) == pytest.approx(1.5)
    assert t.four_task_pca_axis((2, 1), (1, 1)) == 0
    assert t.four_task_pca_axis((1, 2), (1, 1)) == 1
    # corollary F.7's ordering l1 >= l2 is needed: here PCA splits axis 0 (9 > 7.84) though axis 1
    # would gain more (9 < 15.68)
    assert t.four_task_pca_axis((1, 2), (3, 1.4)) == 0
    first, second, _ = t.four_task_gains((1, 2), (3, 1.4), 1.0)
    assert first < second


@examples
@given(*[st.floats(0.1, 3) for _ in range(4)])
def test_four_tasks_against_the_general_formulas(l1: float, l2: float, a: float, b: float) -> None:
    gradients, hessian, interaction = four_tasks((l1, l2), (a, b))
    splits = {tuple(s): s for s in t.balanced_splits(4)}
    first, second, diagonal = t.four_task_gains((l1, l2), (a, b), ETA)
    measured = [
        t.balanced_split_gain(interaction, splits[s], ETA)
        for s in ((1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))
    ]
    np.testing.assert_allclose(measured, [first, second, diagonal], rtol=1e-9, atol=1e-12)
    expected = t.four_task_expected_gain((l1, l2), (a, b), ETA)
    assert np.mean(measured) == pytest.approx(expected)
    assert t.expected_random_gain(interaction, ETA) == pytest.approx(expected)

    # gradient PCA's leading axis is the one that the corollary names, and the best where it says
    variances = np.diag(t.gradient_covariance(CORNERS * (a, b), hessian))
    if abs(variances[0] - variances[1]) > 1e-9:
        assert t.four_task_pca_axis((l1, l2), (a, b)) == int(variances.argmax())
    if l1 >= l2 and t.four_task_pca_axis((l1, l2), (a, b)) == 0:
        assert first == pytest.approx(max(measured))
    # remark F.13: both axes, four branches of one task each
    recursive = t.recursive_gain((l1, l2), (a, b), ETA)
    assert recursive == pytest.approx(t.merging_gain(-ETA * gradients, hessian))
    assert recursive == pytest.approx(first + second)


@examples
@given(seeds, st.integers(1, 4))
def test_recursion_adds_up_over_axes(seed: int, num_axes: int) -> None:
    generator = np.random.default_rng(seed)
    curvatures, offsets = generator.exponential(size=(2, num_axes))
    corners = np.array(np.meshgrid(*[[1.0, -1.0]] * num_axes)).reshape(num_axes, -1).T
    steps = -ETA * t.task_gradients(corners * offsets, np.diag(curvatures))
    expected = t.merging_gain(steps, np.diag(curvatures))
    assert t.recursive_gain(curvatures, offsets, ETA) == pytest.approx(expected)


# --- random splits against sign(v1) ----------------------------------------------------------


def test_balanced_splits_are_all_of_them_once() -> None:
    for num, count in ((2, 1), (4, 3), (6, 10), (8, 35)):  # C(T, T/2) / 2
        splits = [tuple(s) for s in t.balanced_splits(num)]
        assert len(set(splits)) == len(splits) == count
        assert all(sum(s) == 0 and s[0] == 1 for s in splits)


@examples
@given(seeds, st.sampled_from([2, 4, 6, 8]), st.integers(1, 4))
def test_f10_is_the_mean_over_all_balanced_splits(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, tasks = random_hessian(generator, dim), centred_tasks(generator, num, dim)
    interaction = t.interaction_matrix(t.task_gradients(tasks, hessian), hessian)
    gains = [t.balanced_split_gain(interaction, s, ETA) for s in t.balanced_splits(num)]
    assert t.expected_random_gain(interaction, ETA) == pytest.approx(np.mean(gains), abs=1e-9)


@examples
@given(seeds, st.integers(2, 9), st.integers(1, 4))
def test_f11_bounds_the_sign_split_balanced_or_not(seed: int, num: int, dim: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, tasks = random_hessian(generator, dim), centred_tasks(generator, num, dim)
    gradients = t.task_gradients(tasks, hessian)
    interaction = t.interaction_matrix(gradients, hessian)
    gain = t.one_step_gain(gradients, hessian, t.sign_split(interaction), ETA)
    bound = t.sign_split_bound(interaction, ETA)
    assert gain >= bound * (1 - 1e-9)
    assert bound > 0
    expected = t.expected_random_gain(interaction, ETA)
    assert t.dominance_ratio(interaction) == pytest.approx(bound / expected)
    if t.sign_split_dominates(interaction):
        assert gain > expected


def test_sign_split_convention() -> None:
    # v1 ~ (-3, 0, 1, 2) / sqrt(14): flipped so that -3 is positive, and zero counts as +
    vector = np.array([-3.0, 0, 1, 2])
    np.testing.assert_array_equal(t.sign_split(np.outer(vector, vector)), [1, 1, -1, -1])


@pytest.mark.parametrize("num", [2, 4, 10, 136])
def test_f12_delocalised_rank_one_wins_by_t_minus_one(num: int) -> None:
    signs = np.tile([1.0, -1.0], num // 2)
    interaction = 3.0 * np.outer(signs, signs)
    assert t.dominance_ratio(interaction) == pytest.approx(num - 1)
    assert t.sign_split_dominates(interaction) == (num > 2)
    gain = t.balanced_split_gain(interaction, t.sign_split(interaction), ETA)
    assert gain / t.expected_random_gain(interaction, ETA) == pytest.approx(num - 1)


@pytest.mark.parametrize("num", [4, 6, 8])
def test_f12_isotropic_no_split_wins(num: int) -> None:
    interaction = 5.0 * (np.eye(num) - 1 / num)
    gains = [t.balanced_split_gain(interaction, s, ETA) for s in t.balanced_splits(num)]
    np.testing.assert_allclose(gains, t.expected_random_gain(interaction, ETA))
    assert t.dominance_ratio(interaction) <= 1 + 1e-12
    assert not t.sign_split_dominates(interaction)


def test_localised_leading_direction_does_not_dominate() -> None:
    # one task (with the shared remainder) carries v1: ||v1||_1^2 is far below T
    vector = np.full(20, -1.0)
    vector[0] = 19
    tail = np.eye(20) - 1 / 20 - np.outer(vector, vector) / (vector @ vector)
    interaction = np.outer(vector, vector) / (vector @ vector) + 0.5 * tail
    assert t.dominance_ratio(interaction) < 1


def test_no_gradients_no_ratio() -> None:
    assert np.isnan(t.dominance_ratio(np.zeros((4, 4))))
    assert not t.sign_split_dominates(np.zeros((4, 4)))


# --- cosine against raw PCA ------------------------------------------------------------------


def top_eigenspace(matrix: Array, rank: int) -> Array:
    return np.linalg.eigh(matrix)[1][:, -rank:]


def largest_sine(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b @ (b.T @ a), 2))


def test_norm_concentration_by_hand() -> None:
    assert t.norm_concentration([3, 5, 4]) == (pytest.approx(4), pytest.approx(0.25))
    assert t.norm_concentration([2, 2]) == (2, 0)


@examples
@given(seeds, st.integers(3, 8), st.floats(0, 0.5), st.booleans())
def test_lemma_1_and_theorem_f4(seed: int, num: int, epsilon: float, centred: bool) -> None:
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((num, 12)) * np.array([4.0, 2.0, *[0.3] * 10])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    norms = 7 * (1 + generator.uniform(-epsilon, epsilon, num))
    gradients = norms[:, None] * directions
    gram, cosine = gradients @ gradients.T, directions @ directions.T

    alpha, found = t.norm_concentration(norms)
    assert found <= epsilon + 1e-12
    scaled = gram / alpha**2
    norm = float(np.linalg.norm(scaled, 2))
    bound = t.cosine_matrix_bound(found, norm)
    assert np.linalg.norm(cosine - scaled, 2) <= bound + 1e-12
    if centred:
        projection = np.eye(num) - 1 / num
        scaled, cosine = projection @ scaled @ projection, projection @ cosine @ projection
    spectrum = np.linalg.eigvalsh(scaled)[::-1]
    for rank in (1, 2):
        gap = float(spectrum[rank - 1] - spectrum[rank])
        sine = largest_sine(top_eigenspace(scaled, rank), top_eigenspace(cosine, rank))
        assert sine <= t.eigenspace_bound(found, norm, gap) + 1e-9


def test_lemma_1_is_tight_where_it_should_be() -> None:
    # identical directions with norms 1 -+ eps: C - K has the entry 1/(1-eps)^2 - 1 at one task
    epsilon = 0.1
    norms = np.array([1 - epsilon, 1 + epsilon])
    single = 1 / (1 - epsilon) ** 2 - 1
    assert t.cosine_matrix_bound(epsilon, 1.0) == pytest.approx(single)
    gram = np.outer(norms, norms)
    error = np.linalg.norm(np.ones((2, 2)) - gram, 2)
    assert error <= t.cosine_matrix_bound(epsilon, float(np.linalg.norm(gram, 2)))


def test_eigenspace_bound_by_hand() -> None:
    assert t.eigenspace_bound(0, 5, 1) == 0  # equal norms: the same eigenvectors
    assert t.eigenspace_bound(0.01, 1, 0) == 1  # no gap: no statement
    # f = 1/9, 2 f + f^2 = 19/81; twice that over a gap of 2
    assert t.eigenspace_bound(0.1, 1, 2) == pytest.approx(19 / 81)
    # O(eps): ten times the concentration, about ten times the bound
    assert t.eigenspace_bound(1e-4, 1, 1) / t.eigenspace_bound(1e-5, 1, 1) == pytest.approx(
        10, rel=1e-3
    )


# --- refusals --------------------------------------------------------------------------------


def test_caller_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="one row a branch"):
        t.merging_gain([1.0, 2.0], np.eye(2))
    with pytest.raises(ValueError, match="expected 2 merge weights"):
        t.merging_gain(np.eye(2), np.eye(2), [1.0])
    for weights in ([0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match="sum to 1"):
            t.contraction(np.eye(2), weights)
    with pytest.raises(ValueError, match="balanced, found a sum of 2"):
        t.balanced_split_gain(np.eye(4), [1, 1, 1, -1], ETA)
    with pytest.raises(ValueError, match=r"-1 and \+1"):
        t.balanced_split_gain(np.eye(2), [1, 0], ETA)
    with pytest.raises(ValueError, match="either side"):
        t.one_step_gain(np.eye(2), np.eye(2), [1, 1], ETA)
    with pytest.raises(ValueError, match="found 3"):
        list(t.balanced_splits(3))
    with pytest.raises(ValueError, match="positive, found 0"):
        t.norm_concentration([0, 1])
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        t.cosine_matrix_bound(1.0, 1.0)
