"""merit.method.hessian: known spectra, analytical Hessians, hand-made geometry."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merit.errors import MeritError
from merit.method import hessian as h

seeds = st.integers(0, 2**31 - 1)
examples = settings(max_examples=25, deadline=None, derandomize=True)


def orthogonal(dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q.to(
        dtype
    )


def with_spectrum(spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(matrix, its eigenvectors as rows) with the given eigenvalues."""
    basis = orthogonal(len(spectrum), seed)
    return basis.T @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ basis, basis


def same(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- Lanczos ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spectrum",
    [
        [5.0, 3.0, 2.0, -1.0, -4.0, 0.5],
        [2.0] * 6,
        [7.0, 7.0, 7.0, 1.0, 1.0, 0.0],
        [0.0] * 5,
        [1e6, 1.0, 1.0, 1e-3, -1e-3],
        [3.0],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_finds_the_whole_spectrum(spectrum: list[float], dtype: torch.dtype) -> None:
    matrix, _ = with_spectrum(spectrum)
    values, vectors = h.lanczos(lambda v: matrix.to(dtype) @ v, len(spectrum), 50, dtype=dtype)
    tolerance = 200 * torch.finfo(dtype).eps
    scale = max(1.0, max(abs(x) for x in spectrum))
    assert vectors.dtype == dtype
    assert values.dtype == torch.float64
    same(values, torch.tensor(sorted(spectrum, reverse=True)).double(), tolerance * scale)
    same(vectors @ vectors.T, torch.eye(len(spectrum), dtype=dtype), tolerance)
    residual = vectors @ matrix.to(dtype) - values.to(dtype)[:, None] * vectors
    assert residual.abs().max() <= tolerance * scale


def test_lanczos_converges_to_leading_pairs_of_a_large_matrix() -> None:
    spectrum = [100.0, 50.0, 25.0, 10.0, 8.0, *np.linspace(-1, 1, 395).tolist()]
    matrix, basis = with_spectrum(spectrum)
    values, vectors = h.lanczos(
        lambda v: matrix @ v, 400, 50, seed=1, dtype=torch.float64, num_vectors=5
    )
    assert vectors.shape == (5, 400)
    same(values, torch.tensor(spectrum[:5]).double(), 1e-8)
    same((vectors * basis[:5]).sum(dim=1).abs(), torch.ones(5).double(), 1e-8)
    same(vectors @ vectors.T, torch.eye(5).double(), 1e-12)


def test_lanczos_stays_orthogonal_in_float32_where_plain_lanczos_does_not() -> None:
    matrix, _ = with_spectrum([1e4, *np.linspace(0, 1, 199).tolist()])
    values, vectors = h.lanczos(lambda v: matrix.float() @ v, 200, 100)
    same(vectors @ vectors.T, torch.eye(100), 2e-5)
    # without reorthogonalisation the converged pair comes back as a ghost copy
    assert (values > 100).sum() == 1


def test_lanczos_from_an_eigenvector_goes_on() -> None:
    matrix, basis = with_spectrum([4.0, 3.0, 2.0, 1.0])
    values, _ = h.lanczos(lambda v: matrix @ v, 4, 4, v0=5 * basis[2])
    same(values, torch.tensor([4.0, 3.0, 2.0, 1.0]).double())


def test_lanczos_ritz_values_lie_inside_the_spectrum_and_improve() -> None:
    matrix, _ = with_spectrum(np.linspace(-3, 7, 60).tolist())
    tops = []
    for steps in (1, 5, 20):
        values, _ = h.lanczos(lambda v: matrix @ v, 60, steps, dtype=torch.float64)
        assert len(values) == steps
        assert -3 - 1e-9 <= values.min() <= values.max() <= 7 + 1e-9
        tops.append(float(values[0]))
    assert tops == sorted(tops)


def test_lanczos_is_deterministic_with_a_sign_convention() -> None:
    matrix, _ = with_spectrum([3.0, 2.0, 1.0, 0.0])
    first = h.lanczos(lambda v: matrix @ v, 4, 4, seed=3, dtype=torch.float64)
    again = h.lanczos(lambda v: matrix @ v, 4, 4, seed=3, dtype=torch.float64)
    other = h.lanczos(lambda v: matrix @ v, 4, 4, seed=4, dtype=torch.float64)
    assert torch.equal(first[1], again[1])
    same(other[1], first[1], 1e-9)  # same signs from another start
    largest = first[1].gather(1, first[1].abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()


def test_lanczos_refuses_bad_input() -> None:
    with pytest.raises(MeritError, match=r"iteration 1: .* not finite"):
        h.lanczos(lambda v: v * float("nan"), 3, 2)
    with pytest.raises(ValueError, match="non-zero vector of 3"):
        h.lanczos(lambda v: v, 3, 2, v0=torch.zeros(3))
    with pytest.raises(ValueError, match="positive"):
        h.lanczos(lambda v: v, 3, 0)


# --- Hessian-vector products -----------------------------------------------------------------


def central(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor, epsilon: float = 0.1
) -> Tensor:
    """The central difference of a gradient that is a function of flat parameters."""
    return h.hvp_central_difference(lambda t: gradient(theta + t * v), v, epsilon)


def quadratic(seed: int, dim: int) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dim, dim, generator=generator)
    linear = torch.randn(dim, generator=generator)
    matrix = (matrix + matrix.T) / 2
    return matrix, linear, lambda x: 0.5 * x @ matrix @ x + linear @ x


@examples
@given(seeds, st.integers(1, 8), st.floats(0.01, 100))
def test_products_on_a_quadratic(seed: int, dim: int, length: float) -> None:
    matrix, linear, loss = quadratic(seed, dim)
    theta, v = torch.randn(2, dim, generator=torch.Generator().manual_seed(seed + 1))
    v = length * v
    product = central(lambda x: matrix @ x + linear, theta, v)
    same(product / length, matrix @ v / length, 1e-3)
    parameter = theta.clone().requires_grad_()
    same(h.hvp_exact(lambda: loss(parameter), [parameter], v), matrix @ v, 1e-4)


def test_central_difference_by_hand() -> None:
    # L = sum x^4 / 4: g = x^3; along a unit axis (g(x+e) - g(x-e)) / 2e = 3 x^2 + e^2
    theta = torch.tensor([2.0, 1.0], dtype=torch.float64)
    axis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    product = central(lambda x: x**3, theta, axis, epsilon=0.1)
    same(product, torch.tensor([12.01, 0.0]).double(), 1e-6)
    # three times the vector: the same step, three times the product
    same(central(lambda x: x**3, theta, 3 * axis, epsilon=0.1), 3 * product)
    same(central(lambda x: x**3, theta, 0 * axis), 0 * axis)


def mlp_loss(flat: Tensor) -> Tensor:
    """Cross-entropy of a 3-5-4 tanh network on eight fixed examples; 44 parameters."""
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(8, 3, generator=generator, dtype=torch.float64).to(flat.dtype)
    labels = torch.arange(8) % 4
    w1, b1, w2, b2 = flat.split([15, 5, 20, 4])
    hidden = torch.tanh(inputs @ w1.view(3, 5) + b1)
    return torch.nn.functional.cross_entropy(hidden @ w2.view(5, 4) + b2, labels)


def mlp_hessian(theta: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(mlp_loss, theta)


def mlp_gradient(theta: Tensor) -> Tensor:
    leaf = theta.detach().requires_grad_()
    return torch.autograd.grad(mlp_loss(leaf), leaf)[0]


def mlp_theta(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(44, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def test_products_on_a_small_network() -> None:
    theta = mlp_theta()
    full = mlp_hessian(theta)
    v = torch.randn(44, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    blocks = [b.clone().requires_grad_() for b in theta.split([15, 5, 20, 4])]
    exact = h.hvp_exact(lambda: mlp_loss(torch.cat(blocks)), blocks, v)
    same(exact, full @ v, 1e-10)
    assert not exact.requires_grad

    errors = [float((central(mlp_gradient, theta, v, e) - full @ v).norm()) for e in (0.1, 0.05)]
    assert errors[0] < 0.01 * float((full @ v).norm())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)  # second order

    single = central(mlp_gradient, theta.float(), v.float())
    assert float((single.double() - full @ v).norm()) < 0.01 * float((full @ v).norm())


def test_lanczos_on_the_network_with_either_product() -> None:
    theta = mlp_theta()
    spectrum, basis = torch.linalg.eigh(mlp_hessian(theta))
    parameter = theta.clone().requires_grad_()
    values, vectors = h.lanczos(
        lambda v: h.hvp_exact(lambda: mlp_loss(parameter), [parameter], v),
        44,
        44,
        dtype=theta.dtype,
    )
    same(values, spectrum.flip(0), 1e-10)
    same((vectors[0] @ basis[:, -1]).abs(), torch.tensor(1.0).double(), 1e-9)

    differences, directions = h.lanczos(
        lambda v: central(mlp_gradient, theta.float(), v), 44, 30, num_vectors=3
    )
    same(differences, spectrum.flip(0)[:3], 0.01)
    assert (h.abs_cosines(directions, vectors[:3]).diagonal() > 0.99).all()


def test_exact_product_where_curvature_is_missing() -> None:
    a, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    v = torch.arange(5.0)
    same(h.hvp_exact(lambda: (a**2).sum(), [a, unused], v), torch.tensor([0.0, 2, 0, 0, 0]))
    same(h.hvp_exact(lambda: a.sum(), [a, unused], v), torch.zeros(5))
    same(h.hvp_exact(lambda: (a**2).sum() + unused.sum(), [unused, a], v)[3:], 2 * v[3:])
    with pytest.raises(ValueError, match="5 entries"):
        h.hvp_exact(lambda: a.sum(), [a, unused], torch.ones(4))


# --- directions of conflict ------------------------------------------------------------------


def test_quadrant_tasks_by_hand() -> None:
    embedding = torch.tensor(
        [[1.0, 1], [2, 3], [-1, 5], [-1, 5], [-2, -2], [-3, -1], [0.1, -1], [2, -0.5], [0, 9]]
    )
    # task 8 lies on an axis and counts as (+, +); tasks 2 and 3 tie
    assert h.quadrant_tasks(embedding) == [8, 2, 5, 7]


def test_an_empty_quadrant_is_named() -> None:
    embedding = torch.tensor([[1.0, 1], [-1, 1], [1, -1]])
    with pytest.raises(MeritError, match=r"quadrant \(-, -\)"):
        h.quadrant_tasks(embedding)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        h.quadrant_tasks(torch.eye(3))


def test_conflict_directions_by_hand() -> None:
    # orthogonal gradients of lengths 4, 3, 2, 1 along axes 3, 0, 4, 1 of six
    gradients = torch.zeros(4, 6)
    for row, (axis, length) in enumerate([(3, 4.0), (0, 3.0), (4, 2.0), (1, 1.0)]):
        gradients[row, axis] = length
    expected = torch.eye(6)[[3, 0, 4]]
    same(h.conflict_directions(gradients, centred=False), expected, 1e-6)


def test_centred_conflict_directions_by_hand() -> None:
    # a shared offset, +-2 along axis 1 and +-1 along axis 2; centring leaves the two axes
    gradients = torch.tensor([[9.0, 2, 0], [9, -2, 0], [9, 0, 1], [9, 0, -1]])
    centred = h.conflict_directions(gradients, centred=True, num_directions=2)
    same(centred.abs(), torch.eye(3)[[1, 2]], 1e-5)
    raw = h.conflict_directions(gradients, centred=False)
    same(raw.abs(), torch.eye(3), 1e-5)
    with pytest.raises(MeritError, match="span 2 centred directions, 3 are asked for"):
        h.conflict_directions(gradients, centred=True)


@examples
@given(seeds, st.booleans())
def test_conflict_directions_are_right_singular_vectors(seed: int, centred: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(4, 20, generator=generator, dtype=torch.float64)
    directions = h.conflict_directions(gradients, centred)
    same(directions @ directions.T, torch.eye(3).double())
    matrix = gradients - gradients.mean(dim=0) if centred else gradients
    expected = torch.linalg.svd(matrix).Vh[:3]
    same((directions * expected).sum(dim=1).abs(), torch.ones(3).double(), 1e-6)
    if centred:  # a gradient shared by all tasks is no conflict
        shifted = h.conflict_directions(gradients + gradients[0], centred)
        same(shifted, directions, 1e-6)


def test_inner_products_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)).split([3, 4])
    monkeypatch.setattr(h, "COLUMN_BLOCK", 7)
    same(h.inner_products(a, b), a.double() @ b.double().T, 1e-12)


# --- alignment -------------------------------------------------------------------------------


def test_cosines_by_hand() -> None:
    a = torch.tensor([[2.0, 0, 0], [0, -3, 3]])
    b = torch.tensor([[1.0, 1, 0], [0, 0, 5]])
    root = math.sqrt(0.5)
    same(h.abs_cosines(a, b), torch.tensor([[root, 0], [0.5, root]], dtype=torch.float64), 1e-7)
    same(h.max_abs_cos(a, b), torch.tensor([root, root], dtype=torch.float64), 1e-7)


def test_principal_angles_by_hand() -> None:
    axes = torch.eye(4, dtype=torch.float64)
    angle = math.radians(30)
    tilted = math.cos(angle) * axes[1] + math.sin(angle) * axes[2]
    # both planes hold e0; e1 is tilted by 30 degrees; the bases are neither unit nor orthogonal
    a = torch.stack([axes[0] + axes[1], 3 * axes[1]])
    b = torch.stack([axes[0] - tilted, 7 * tilted])
    same(h.principal_angles(a, b), torch.tensor([0.0, 30.0]).double(), 1e-5)
    same(h.principal_angles(axes[:1], axes[2:]), torch.tensor([90.0]).double())
    same(h.principal_angles(a, b[1:]), torch.tensor([30.0]).double(), 1e-6)
    with pytest.raises(ValueError, match="linearly dependent"):
        h.principal_angles(torch.stack([axes[0], axes[0]]), b)


@examples
@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_principal_angles_properties(seed: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(k, 9, generator=generator, dtype=torch.float64) for k in (n, m))
    angles = h.principal_angles(a, b)
    assert angles.shape == (min(n, m),)
    assert torch.equal(angles, angles.sort().values)
    same(h.principal_angles(b, a), angles, 1e-6)
    mixing = orthogonal(n, seed) * 2.5
    same(h.principal_angles(mixing @ a, b), angles, 1e-6)
    # no single pair of rows is closer than the leading angle
    assert float(torch.cos(torch.deg2rad(angles[0]))) >= float(h.abs_cosines(a, b).max()) - 1e-9


def test_null_distribution_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    vectors[2] = vectors[1] + 0.3 * vectors[2]  # far from orthogonal: the general case
    alignment = h.alignment_z_score(vectors[:1], vectors, num_samples=40_000)
    draws = torch.randn(40_000, 12, generator=generator, dtype=torch.float64)
    brute = h.max_abs_cos(draws, vectors)
    assert alignment.null_mean == pytest.approx(float(brute.mean()), rel=0.02)
    assert alignment.null_std == pytest.approx(float(brute.std()), rel=0.02)
    assert alignment.value == pytest.approx(1)


def test_z_score_by_hand_in_one_dimension_of_curvature() -> None:
    # one eigenvector in P dimensions: |cos| is about |N(0, 1)| / sqrt(P)
    dim = 10_000
    eigenvectors, direction = torch.zeros(1, dim), torch.zeros(1, dim)
    eigenvectors[0, 0] = 1
    direction[0, :2] = torch.tensor([0.6, 0.8])
    value, mean, std, z = h.alignment_z_score(direction, eigenvectors, num_samples=100_000)
    assert value == pytest.approx(0.6)
    assert mean == pytest.approx(math.sqrt(2 / math.pi) / 100, rel=0.02)
    assert std == pytest.approx(math.sqrt(1 - 2 / math.pi) / 100, rel=0.02)
    assert z == pytest.approx((value - mean) / std)


def test_z_score_of_random_directions_is_small_and_of_eigenvectors_large() -> None:
    basis = orthogonal(300, 5)
    eigenvectors = basis[:10]
    random = torch.randn(200, 300, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert abs(h.alignment_z_score(random, eigenvectors).z_score) < 0.3
    aligned = h.alignment_z_score(eigenvectors[:3], eigenvectors)
    assert aligned.value == pytest.approx(1)
    assert aligned.z_score > 20
    assert h.alignment_z_score(eigenvectors[:3], eigenvectors) == aligned


def test_z_score_where_the_eigenvectors_span_everything() -> None:
    # in two dimensions max(|cos|, |sin|) of a uniform angle has the mean 2 sqrt(2) / pi
    alignment = h.alignment_z_score(torch.eye(2), torch.eye(2), num_samples=100_000)
    assert alignment.null_mean == pytest.approx(2 * math.sqrt(2) / math.pi, rel=0.005)
    with pytest.raises(ValueError, match="3 eigenvectors cannot lie in 2 dimensions"):
        h.alignment_z_score(torch.eye(2), torch.ones(3, 2))
