"""Task similarity: the cosine matrix of mean gradients and its PCA (docs/method.md 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

_CHUNK = 1 << 16  # entries of each gradient widened to float64 at a time: 71 MB for 136 tasks
_NORM_CHUNK = 1 << 20  # as many of one gradient
SMALLEST = 1e-290  # |g|^2 from which its sum has no subnormal part: float32 is far above


@dataclass(frozen=True)
class Pca:
    """Top axes of a symmetric similarity matrix, rows = tasks.

    embedding float64 (T, r): task scores z_t on the top-r axes; axes float64 (T, r): the axes as
    loadings on the columns; eigenvalues float64 (r,) of the column covariance, descending;
    explained float64 (r,): their shares of the total variance.
    """

    embedding: np.ndarray
    axes: np.ndarray
    eigenvalues: np.ndarray
    explained: np.ndarray


def inner_products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 (m, n): left @ right.T, accumulated in float64 chunk by chunk.

    Works on memory-mapped float32 arrays far larger than memory.
    """
    total = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], _CHUNK):
        a = left[:, start : start + _CHUNK].astype(np.float64)
        b = a if right is left else right[:, start : start + _CHUNK].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # `_norms` names the gradient
            total += a @ b.T
    return total


def gradient_norm(gradient: np.ndarray) -> float:
    """|g| of a gradient (D,), accumulated in float64 chunk by chunk."""
    chunks = (
        gradient[start : start + _NORM_CHUNK].astype(np.float64)
        for start in range(0, len(gradient), _NORM_CHUNK)
    )
    return math.sqrt(sum(float(chunk @ chunk) for chunk in chunks))


def sketch_error(cosines: np.ndarray, size: int) -> np.ndarray:
    """The standard error of sketched cosines, (1 - rho^2) / sqrt(k) (docs/method.md, eq. (54))."""
    return (1 - np.square(cosines)) / math.sqrt(size)


def cosine_matrix(gradients: np.ndarray) -> np.ndarray:
    """C_ij = <g_i, g_j> / (|g_i| |g_j|), float64 (T, T), symmetric with ones on the diagonal.

    Args: gradients (T, D), any float type, memory-mapped or not.
    Raises ValueError naming the index of a task whose gradient is zero or not finite.
    """
    return cosines_and_norms(gradients)[0]


def cosines_and_norms(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`cosine_matrix` and the norms (T,) that it divides by, for `extend_cosine_matrix`."""
    products = inner_products(gradients, gradients)
    norms = _norms(np.diag(products), offset=0)
    return _cosines(products, norms), norms


def extend_cosine_matrix(
    similarity: np.ndarray, norms: np.ndarray, old: Sequence[np.ndarray], new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and norms after adding m tasks, from O(T m) new products (docs/method.md 3).

    Args: similarity (T, T) and norms (T,) of the old gradients, which are the rows of the arrays
    `old`, T in all; new (m, D), which come last in the result, (T+m, T+m) and (T+m,).
    Raises ValueError naming the index of a task whose gradient is zero or not finite.
    """
    cross = np.concatenate([inner_products(new, rows) for rows in old], axis=1)
    products = inner_products(new, new)
    new_norms = _norms(np.diag(products), offset=len(similarity))
    between = np.clip(cross / new_norms[:, None] / norms[None, :], -1.0, 1.0)
    extended = np.block([[similarity, between.T], [between, _cosines(products, new_norms)]])
    return extended, np.concatenate([norms, new_norms])


def _norms(squares: np.ndarray, offset: int) -> np.ndarray:
    usable = (squares > SMALLEST) & np.isfinite(squares)
    if not usable.all():
        index = offset + int(np.flatnonzero(~usable)[0])
        raise ValueError(
            f"the gradient of task {index} is zero or not finite: no direction to compare"
        )
    return np.sqrt(squares)


def _cosines(products: np.ndarray, norms: np.ndarray) -> np.ndarray:
    cosines = np.clip(products / norms[:, None] / norms[None, :], -1.0, 1.0)
    cosines = (cosines + cosines.T) / 2
    np.fill_diagonal(cosines, 1.0)
    return cosines


def column_centred(matrix: np.ndarray) -> np.ndarray:
    """C minus its column means: PCA of the rows as points (docs/method.md, eq. (5))."""
    return matrix - matrix.mean(axis=0, keepdims=True)


def double_centred(matrix: np.ndarray) -> np.ndarray:
    """C minus row and column means plus the grand mean (the Hessian study, docs/method.md 4)."""
    return (
        matrix
        - matrix.mean(axis=0, keepdims=True)
        - matrix.mean(axis=1, keepdims=True)
        + matrix.mean()
    )


def pca(
    similarity: np.ndarray, num_axes: int, centring: Literal["column", "double"] = "column"
) -> Pca:
    """PCA of a similarity matrix, rows = tasks (docs/method.md, eq. (5)).

    With X = C centred = U S V^T, the embedding is U_r S_r and the axes are V_r. Sign convention:
    the entry of the embedding's column that is largest in magnitude is positive; among entries
    within one part in 10^9 of it, the first task's. Raises ValueError for more axes than tasks.
    """
    if not 1 <= num_axes <= len(similarity):
        raise ValueError(f"{num_axes} axes asked of {len(similarity)} tasks")
    centred = (column_centred if centring == "column" else double_centred)(
        np.asarray(similarity, dtype=np.float64)
    )
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    embedding, axes = left[:, :num_axes] * singular[:num_axes], right[:num_axes].T.copy()
    for j in range(num_axes):
        magnitude = np.abs(embedding[:, j])
        leader = int(np.flatnonzero(magnitude >= magnitude.max() * (1 - 1e-9))[0])
        if embedding[leader, j] < 0:
            embedding[:, j] *= -1
            axes[:, j] *= -1
    variances = singular**2 / max(1, len(similarity) - 1)
    total = variances.sum()
    shares = variances[:num_axes] / total if total > 0 else np.zeros(num_axes)
    return Pca(embedding, axes, variances[:num_axes], shares)


def gram_matrix(gradients: np.ndarray) -> np.ndarray:
    """K_ij = <g_i, g_j>, float64 (T, T): the raw-gradient ablation's input to `pca` (table 20)."""
    return inner_products(gradients, gradients)


def gram_pca(gradients: np.ndarray, num_axes: int) -> Pca:
    """PCA of the raw-gradient Gram matrix, column-centred: the ablation rawpca-rd (table 20)."""
    return pca(gram_matrix(gradients), num_axes)


def gradient_coordinates(similarity: np.ndarray) -> np.ndarray:
    """float64 (T, T): coordinates of the normalised gradients in the space that they span.

    F = Q sqrt(max(Lambda, 0)) with C = Q Lambda Q^T, so F F^T = C: every distance between rows,
    ||f_i - f_j||^2 = 2 - 2 C_ij, is that between normalised gradients. A method that uses only
    distances, such as K-means, needs T columns instead of D.
    """
    values, vectors = np.linalg.eigh(np.asarray(similarity, dtype=np.float64))
    return vectors * np.sqrt(np.clip(values, 0.0, None))
