"""Do the directions of gradient conflict lie along the loss's curvature? (docs/method.md 13)

Directions and eigenvectors are rows, (num, P) with P the number of trainable parameters; flat
vectors are (P,). Everything runs on the device and in the dtype (float32 or float64) of its
inputs; inner products of long rows are accumulated in float64, block by block, and small matrices
are decomposed in float64 on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from merit.errors import MeritError

COLUMN_BLOCK = 2**20  # entries of a long row that are widened to float64 at a time


# --- eigenvectors of the Hessian -------------------------------------------------------------


def lanczos(
    matvec: Callable[[Tensor], Tensor],
    dim: int,
    num_iterations: int,
    *,
    seed: int = 0,
    v0: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    num_vectors: int | None = None,
    empty: Callable[[int, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Ritz pairs of a symmetric operator by Lanczos with full reorthogonalisation.

    `matvec` maps (dim,) to (dim,). The start is `v0` (whose dtype and device are then used) or a
    Gaussian vector drawn from `seed` on the CPU, the same on every machine. Returns eigenvalues
    (m,) float64 in descending order and orthonormal eigenvectors (m, dim), largest entry
    positive; m = min(num_iterations, dim), or the `num_vectors` leading ones of them.
    `empty(n, dim)` allocates n long rows, of v0's dtype and device, for the basis of num_iterations
    and for the eigenvectors: in memory by default, memory-mapped if the caller likes.

    If the Krylov space is exhausted (a degenerate spectrum, a start inside an invariant subspace),
    it continues from a random vector orthogonal to the basis, which finds further copies of a
    multiple eigenvalue; with m = dim the result is the whole spectrum.
    Raises MeritError if a product is not finite.
    """
    if num_iterations < 1 or dim < 1:
        raise ValueError(f"dim and num_iterations must be positive: {dim}, {num_iterations}")
    generator = torch.Generator().manual_seed(seed)
    if v0 is None:
        v0 = torch.randn(dim, generator=generator, dtype=dtype)
    if v0.shape != (dim,) or not v0.norm() > 0:
        raise ValueError(f"the start must be a non-zero vector of {dim} entries")
    size = min(num_iterations, dim)
    make = empty or functools.partial(torch.empty, dtype=v0.dtype, device=v0.device)
    basis = make(size, dim)
    tridiagonal = torch.zeros(size, size, dtype=torch.float64)
    # below this share of the operator's scale a residual is rounding noise, not a direction
    tolerance = 100 * torch.finfo(v0.dtype).eps
    scale = 0.0

    basis[0] = v0 / v0.norm()
    for i in range(size):
        product = matvec(basis[i])
        if not torch.isfinite(product).all():
            raise MeritError(
                f"Lanczos iteration {i + 1}: the Hessian-vector product is not finite; "
                "check the loss at theta0, or change epsilon"
            )
        scale = max(scale, float(product.norm()))
        tridiagonal[i, i] = float(basis[i] @ product)
        if i + 1 == size:
            break
        residual = _orthogonalise(product, basis[: i + 1])
        beta = float(residual.norm())
        if beta > tolerance * scale:
            tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = beta
        else:
            fresh = torch.randn(dim, generator=generator, dtype=v0.dtype).to(v0.device)
            residual = _orthogonalise(fresh, basis[: i + 1])
        basis[i + 1] = residual / residual.norm()

    eigenvalues, coefficients = _eigh(tridiagonal)
    kept = slice(None) if num_vectors is None else slice(num_vectors)
    eigenvalues, coefficients = eigenvalues.flip(0)[kept], coefficients.flip(1)[:, kept]
    vectors = make(len(eigenvalues), dim)
    torch.matmul(coefficients.T.to(basis), basis, out=vectors)
    return eigenvalues, _fix_signs(vectors)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors by numpy: torch's LAPACK depends on the CPU."""
    values, vectors = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    """Gram-Schmidt against orthonormal rows; twice is enough (Parlett)."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def _fix_signs(rows: Tensor) -> Tensor:
    """Every row's entry of largest magnitude made positive, in place."""
    for row in rows:
        if row[row.abs().argmax()] < 0:
            row.neg_()
    return rows


def hvp_central_difference(
    gradient_along: Callable[[Tensor], Tensor], v: Tensor, epsilon: float = 0.1
) -> Tensor:
    """H v as ||v|| (g(theta + epsilon u) - g(theta - epsilon u)) / (2 epsilon), u = v / ||v||.

    `gradient_along` maps a scalar t to a new flat tensor, the gradient (P,) at theta + t v: the
    caller moves the parameters tensor by tensor, so that beside theta and v no more than two flat
    vectors are alive. epsilon is the length of the step in parameter space whatever v's norm is;
    for Lanczos' unit vectors this is the paper's (g(theta + epsilon v) - g(theta - epsilon v)) /
    (2 epsilon) with epsilon = 0.1. Error O(epsilon^2 ||v||), none for a quadratic loss. v = 0
    gives 0.
    """
    norm = v.norm()
    if norm == 0:
        return torch.zeros_like(v)
    # detached: the product is a number; no graph may pile up over Lanczos' iterations
    difference = gradient_along(epsilon / norm).detach()
    difference -= gradient_along(-epsilon / norm).detach()
    return difference.mul_(norm / (2 * epsilon))


def hvp_exact(loss_fn: Callable[[], Tensor], params: Sequence[Tensor], v: Tensor) -> Tensor:
    """H v by double backward: the gradient of (grad L)^T v. Flat v (P,) in, flat (P,) out.

    `loss_fn` evaluates the scalar loss at the current values of `params`, which must require
    gradients; v lists their entries in the same order. A parameter that the loss (or its
    gradient) does not depend on has zero curvature. Attention must run in an implementation that
    can be differentiated twice ("eager").
    """
    shapes = [p.numel() for p in params]
    if v.shape != (sum(shapes),):
        raise ValueError(f"v must have {sum(shapes)} entries, found shape {tuple(v.shape)}")
    gradients = torch.autograd.grad(
        loss_fn(), params, create_graph=True, allow_unused=True, materialize_grads=True
    )
    blocks = v.split(shapes)
    products = [(g * b.view_as(g)).sum() for g, b in zip(gradients, blocks, strict=True)]
    total = torch.stack(products).sum()
    if not total.requires_grad:  # the loss is linear in every parameter
        return torch.zeros_like(v)
    second = torch.autograd.grad(total, params, allow_unused=True, materialize_grads=True)
    return torch.cat([s.reshape(-1) for s in second]).detach()


# --- directions of conflict ------------------------------------------------------------------


def quadrant_tasks(embedding: Tensor) -> list[int]:
    """The task farthest from the origin in each sign quadrant of a (T, 2) embedding.

    Order (+,+), (-,+), (-,-), (+,-); a zero coordinate counts as +; of equally far tasks the first
    wins. Raises MeritError if a quadrant holds no task.
    """
    if embedding.ndim != 2 or embedding.shape[1] != 2:
        raise ValueError(f"expected a (T, 2) embedding, found shape {tuple(embedding.shape)}")
    positive = (embedding >= 0).tolist()
    distances = embedding.double().norm(dim=1).tolist()
    chosen = []
    for quadrant in ([True, True], [False, True], [False, False], [True, False]):
        tasks = [t for t, signs in enumerate(positive) if signs == quadrant]
        if not tasks:
            name = ", ".join("+" if sign else "-" for sign in quadrant)
            raise MeritError(
                f"the quadrant ({name}) of the task embedding holds no task: "
                "the Hessian study needs one in each; use more tasks"
            )
        chosen.append(max(tasks, key=lambda t: distances[t]))
    return chosen


def conflict_directions(
    gradients: Tensor, centred: bool, num_directions: int = 3, out: Tensor | None = None
) -> Tensor:
    """Top eigenvectors of the tasks' Gram matrix, lifted to parameter space: (num_directions, P).

    `gradients` (n, P), n = 4 in the paper; K = G G^T, or J K J with J = I - 11^T/n where `centred`.
    An eigenvector c with eigenvalue mu becomes the unit vector G^T c / sqrt(mu) (with JG for G
    where centred, which is the same as c then sums to zero): the directions are orthonormal. c's
    largest entry is positive. `out` (num_directions, P) takes the directions if it is given.
    Raises MeritError if fewer directions exist (linearly dependent gradients).
    """
    num_tasks = len(gradients)
    gram = inner_products(gradients, gradients)
    if centred:
        gram = gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
    eigenvalues, eigenvectors = _eigh(gram)
    eigenvalues = eigenvalues.flip(0)
    floor = max(float(eigenvalues[0]), 0.0) * num_tasks * torch.finfo(gradients.dtype).eps
    rank = int((eigenvalues > floor).sum())
    if rank < num_directions:
        raise MeritError(
            f"the gradients of the {num_tasks} tasks span {rank} "
            f"{'centred ' if centred else ''}directions, {num_directions} are asked for: "
            "choose tasks whose gradients differ"
        )
    coefficients = _fix_signs(eigenvectors.flip(1).T[:num_directions])
    roots = np.sqrt(eigenvalues[:num_directions, None].numpy())
    scaled = coefficients / torch.from_numpy(roots)
    return torch.matmul(scaled.to(gradients), gradients, out=out)


# --- alignment -------------------------------------------------------------------------------


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """A B^T of rows a (n, P) and b (m, P): (n, m) float64 on the CPU."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    pairs = zip(a.split(COLUMN_BLOCK, dim=1), b.split(COLUMN_BLOCK, dim=1), strict=True)
    for block_a, block_b in pairs:
        total += (block_a.double() @ block_b.double().T).cpu()
    return total


def abs_cosines(a: Tensor, b: Tensor) -> Tensor:
    """|cos| between the rows of a (n, P) and of b (m, P): (n, m) float64."""
    return (inner_products(a, b) / torch.outer(_norms(a), _norms(b))).abs().clamp(max=1)


def _norms(rows: Tensor) -> Tensor:
    """(n,) float64 on the CPU; widened block by block."""
    blocks = rows.split(COLUMN_BLOCK, dim=1)
    parts = [torch.linalg.vector_norm(block, dim=1, dtype=torch.float64) for block in blocks]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0).cpu()


def max_abs_cos(a: Tensor, b: Tensor) -> Tensor:
    """For every row of a its largest |cos| with a row of b: (n,) float64.

    Table 21's `max_abs_cos` is the maximum of these values and `mean_top1_abs_cos` their mean.
    """
    return abs_cosines(a, b).amax(dim=1)


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles in degrees between the row spaces of a (n, P) and b (m, P), ascending: (min(n, m),).

    The first is the leading angle of table 21. Rows must be linearly independent (else
    ValueError), but need not be orthonormal: with the Cholesky factors A A^T = L L^T the cosines
    are the singular values of L_a^-1 A B^T L_b^-T. Accurate to about 1e-6 degrees. float64.
    """
    factor_a, factor_b = _cholesky(a), _cholesky(b)
    left = torch.linalg.solve_triangular(factor_a, inner_products(a, b), upper=False)
    both = torch.linalg.solve_triangular(factor_b, left.T, upper=False)
    return torch.linalg.svdvals(both).clamp(max=1).arccos().rad2deg()


def _cholesky(rows: Tensor) -> Tensor:
    """L of A A^T = L L^T; L's rows are A's in an orthonormal basis of their span."""
    gram = inner_products(rows, rows)
    factor, info = torch.linalg.cholesky_ex(gram)
    # a rank lost only to rounding leaves a pivot that is tiny beside its row's norm
    if info or (factor.diagonal() ** 2 <= 1e-14 * gram.diagonal()).any():
        raise ValueError("the rows are linearly dependent")
    return factor


class Alignment(NamedTuple):
    """`z_score` = (value - null_mean) / null_std."""

    value: float
    null_mean: float
    null_std: float
    z_score: float


def alignment_z_score(
    directions: Tensor, eigenvectors: Tensor, *, num_samples: int = 10_000, seed: int = 0
) -> Alignment:
    """How far the directions' alignment with the eigenvectors lies above chance.

    value = mean over directions of max_abs_cos(direction, eigenvectors); the null distribution is
    max_abs_cos of one Gaussian random vector in the same P dimensions. (The paper does not define
    its z-score; this is an inference. Table 21's mean_top1_abs_cos of 0.136 among 10 eigenvectors
    gives z = 14,750 at P = 3.09e9 under this reading; the table says 15,386.)

    The null is sampled exactly and at a cost that does not depend on P: a Gaussian vector's
    coordinates in an orthonormal basis of the eigenvectors are m normal numbers, and the square of
    the rest of its norm is chi-square with P - m degrees of freedom.
    """
    value = float(max_abs_cos(directions, eigenvectors).mean())
    num_vectors, dim = eigenvectors.shape
    if dim < num_vectors:
        raise ValueError(f"{num_vectors} eigenvectors cannot lie in {dim} dimensions")
    generator = np.random.default_rng(seed)
    inside = generator.standard_normal((num_samples, num_vectors))
    rest = generator.chisquare(dim - num_vectors, num_samples) if dim > num_vectors else 0.0
    # the unit eigenvectors in that basis: the identity where they are orthonormal
    factor = _cholesky(eigenvectors).numpy()
    coordinates = factor / np.linalg.norm(factor, axis=1, keepdims=True)
    norms = np.sqrt((inside**2).sum(axis=1) + rest)
    null = np.abs(inside @ coordinates.T).max(axis=1) / norms
    mean, std = float(null.mean()), float(null.std())
    return Alignment(value, mean, std, (value - mean) / std)
