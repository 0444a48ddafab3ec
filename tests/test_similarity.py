"""The cosine matrix and its PCA: hand-computed values, order and scale invariance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from merit.method import similarity as module
from merit.method.similarity import (
    column_centred,
    cosine_matrix,
    cosines_and_norms,
    double_centred,
    extend_cosine_matrix,
    gradient_coordinates,
    gram_matrix,
    gram_pca,
    pca,
)

seeds = st.integers(0, 2**31 - 1)


def random_gradients(seed: int, num_tasks: int = 7, size: int = 40) -> np.ndarray:
    """Distinct lengths and directions: no two eigenvalues coincide."""
    return np.random.default_rng(seed).standard_normal((num_tasks, size)).astype(np.float32)


def test_cosines_by_hand() -> None:
    gradients = np.array([[3.0, 0.0], [4.0, 4.0], [0.0, -2.0]], dtype=np.float32)
    half = np.sqrt(0.5)
    expected = [[1, half, 0], [half, 1, -half], [0, -half, 1]]
    assert_allclose(cosine_matrix(gradients), expected, atol=1e-15)
    assert cosine_matrix(gradients).dtype == np.float64
    assert_array_equal(gram_matrix(gradients), [[9, 12, 0], [12, 32, -8], [0, -8, 4]])


def test_sums_are_float64_and_chunked_on_a_memory_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2^24 + 1 is not a float32: its sum of squares is right only when widened first."""
    monkeypatch.setattr(module, "_CHUNK", 3)
    rows = np.array([[4096, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 2]], dtype=np.float32)
    np.save(tmp_path / "g.npy", rows)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    assert gram_matrix(mapped)[0, 0] == 2**24 + 1
    assert_allclose(cosine_matrix(mapped)[0, 1], 4096 / np.sqrt((2**24 + 1) * 5), rtol=1e-15)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, 1e200, 1e-161])  # squares over-, underflow
def test_a_gradient_without_direction_is_named(bad: float) -> None:
    gradients = np.ones((3, 2))
    gradients[2] = bad
    with pytest.raises(ValueError, match="gradient of task 2 is zero or not finite"):
        cosine_matrix(gradients)
    with pytest.raises(ValueError, match="task 4"):
        extend_cosine_matrix(np.ones((2, 2)), np.ones(2), [np.ones((2, 2))], gradients)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_cosines_ignore_scale_and_follow_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    gradients, order = random_gradients(seed), generator.permutation(7)
    scales = 10.0 ** generator.uniform(-6, 6, size=(7, 1))
    similarity = cosine_matrix(gradients)
    assert_allclose(cosine_matrix(gradients * scales), similarity, atol=1e-12)
    assert_allclose(cosine_matrix(gradients[order]), similarity[np.ix_(order, order)], atol=1e-14)
    assert_array_equal(similarity, similarity.T)
    assert_array_equal(np.diag(similarity), 1.0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, num_old=st.integers(1, 6))
def test_extending_equals_starting_again(seed: int, num_old: int) -> None:
    gradients = random_gradients(seed)
    old, new = gradients[:num_old], gradients[num_old:]
    half = len(old) // 2
    extended, norms = extend_cosine_matrix(*cosines_and_norms(old), [old[:half], old[half:]], new)
    assert_allclose(extended, cosine_matrix(gradients), atol=1e-14)
    assert_allclose(norms, np.linalg.norm(gradients.astype(np.float64), axis=1), rtol=1e-12)


def test_centring_by_hand() -> None:
    matrix = np.array([[1.0, 0.0], [0.5, 1.0]])
    assert_allclose(column_centred(matrix), [[0.25, -0.5], [-0.25, 0.5]])
    assert_allclose(double_centred(matrix), [[0.375, -0.375], [-0.375, 0.375]])


def test_pca_by_hand() -> None:
    """Tasks 0, 1 agree, 2, 3 agree, the pairs oppose: one axis with scores +-sqrt(4) = +-2."""
    block = np.array([1.0, 1.0, -1.0, -1.0])
    result = pca(np.outer(block, block), num_axes=1)
    assert_allclose(result.embedding[:, 0], [2, 2, -2, -2], atol=1e-12)
    assert_allclose(result.axes[:, 0], block / 2, atol=1e-12)
    assert_allclose(result.eigenvalues, [16 / 3])  # four squares of 4 over T - 1
    assert_allclose(result.explained, [1.0])


def test_pca_does_not_subtract_row_means() -> None:
    """Column and double centring part ways on a matrix whose rows have unequal means."""
    matrix = np.array([[1.0, 0.8, 0.7], [0.8, 1.0, 0.1], [0.7, 0.1, 1.0]])
    for centring, centred in (("column", column_centred), ("double", double_centred)):
        singular = np.linalg.svd(centred(matrix), compute_uv=False)
        result = pca(matrix, 2, centring=centring)  # type: ignore[arg-type]
        assert_allclose(result.eigenvalues, singular[:2] ** 2 / 2, rtol=1e-12)
        assert_allclose(result.embedding, centred(matrix) @ result.axes, atol=1e-12)
    assert not np.allclose(pca(matrix, 2).embedding, pca(matrix, 2, centring="double").embedding)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_pca_follows_order_and_fixes_signs(seed: int) -> None:
    similarity = cosine_matrix(random_gradients(seed))
    order = np.random.default_rng(seed).permutation(7)
    result, permuted = pca(similarity, 3), pca(similarity[np.ix_(order, order)], 3)
    assert_allclose(permuted.embedding, result.embedding[order], atol=1e-6)
    assert_allclose(permuted.axes, result.axes[order], atol=1e-6)
    leaders = np.abs(result.embedding).argmax(axis=0)
    assert (result.embedding[leaders, range(3)] > 0).all()
    assert (np.diff(result.eigenvalues) <= 0).all()
    assert result.explained.sum() <= 1 + 1e-12


def test_pca_refuses_more_axes_than_tasks() -> None:
    with pytest.raises(ValueError, match="3 axes asked of 2 tasks"):
        pca(np.eye(2), 3)


def test_gram_pca_follows_length_where_cosine_pca_does_not() -> None:
    gradients = np.array([[100.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    raw, cosine = gram_pca(gradients, 1).embedding[:, 0], pca(cosine_matrix(gradients), 1)
    assert abs(raw[1] - raw[2]) < 0.02 * abs(raw[0] - raw[1])
    assert_allclose(cosine.embedding[0], cosine.embedding[1])
    assert_allclose(raw, pca(gradients @ gradients.T, 1).embedding[:, 0])


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_gradient_coordinates_keep_every_distance(seed: int) -> None:
    gradients = random_gradients(seed)
    units = gradients / np.linalg.norm(gradients.astype(np.float64), axis=1, keepdims=True)
    coordinates = gradient_coordinates(cosine_matrix(gradients))
    assert coordinates.shape == (7, 7)
    for points in (units, coordinates):
        assert_allclose(points @ points.T, units @ units.T, atol=1e-12)
