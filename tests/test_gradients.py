"""Mean gradients folded as they appear: strides and sketches, by hand and against theory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from merit.errors import MeritError
from merit.method import gradients
from merit.method.gradients import Representation, Sketch, Stride, mean_gradient, mean_gradients
from merit.train.dataset import IGNORED
from merit.train.loss import forward_loss
from merit.train.model import set_trainable
from tests.conftest import Tiny

Losses = list[Callable[[], tuple[torch.Tensor, int]]]
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def represent(representation: Representation, pieces: list[torch.Tensor]) -> torch.Tensor:
    """R of the pieces' concatenation, piece by piece."""
    total = torch.zeros(representation.size(sum(len(p) for p in pieces)))
    start = 0
    for piece in pieces:
        representation.add(total, piece, start, 1.0)
        start += len(piece)
    return total


def token_losses(tiny: Tiny, model: torch.nn.Module, size: int) -> Losses:
    """A loss per batch of `size` of the tiny mixture's examples."""

    def batch_loss(indices: np.ndarray) -> tuple[torch.Tensor, int]:
        batch = tiny.encoded.batch(indices)
        return forward_loss(model, batch, None), int((batch["labels"][:, 1:] != IGNORED).sum())

    parts = np.split(np.arange(15), range(size, 15, size))
    return [(lambda part=part: batch_loss(part)) for part in parts]


# --- representations ----------------------------------------------------------------------------


@given(SHAPES, st.integers(1, 9))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_stride_is_concatenate_then_slice(sizes: list[int], every: int) -> None:
    whole = torch.arange(1.0, sum(sizes) + 1)
    found = represent(Stride(every), list(whole.split(sizes)))
    assert found.tolist() == whole[::every].tolist()
    assert len(found) == Stride(every).size(len(whole))


@given(SHAPES, st.integers(1, 24), st.integers(0, 3))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_sketch_is_the_sum_of_signed_entries_of_a_bucket(
    sizes: list[int], buckets: int, seed: int
) -> None:
    """However the gradient is cut into tensors, and the tensors into chunks."""
    whole = torch.arange(1.0, sum(sizes) + 1)
    sketch = Sketch(buckets, seed)
    signs = sketch.signs(0, len(whole))
    expected = [float((signs * whole)[b::buckets].sum()) for b in range(buckets)]
    assert represent(sketch, list(whole.split(sizes))).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "CHUNK", 48)
        assert represent(sketch, [whole]).tolist() == expected


def test_signs_are_bits_of_splitmix64() -> None:
    """By the published algorithm in Python's integers."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    # the first outputs of the reference implementation, seeded with 0
    states = [n * 0x9E3779B97F4A7C15 & mask for n in (1, 2)]
    assert [mix(z) for z in states] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    far = 3_085_938_688  # 3B's last entries: beyond what 32 bits hold
    for start, seed in ((0, 0), (100, 0), (far - 200, 0), (far - 200, 7)):
        expected = []
        for i in range(start, start + 200):
            word = mix((mix(seed) + (i // 64 + 1) * 0x9E3779B97F4A7C15) & mask)
            expected.append(1.0 - 2.0 * (word >> (i % 64) & 1))
        assert Sketch(8, seed).signs(start, 200).tolist() == expected


def test_signs_are_balanced_and_unlike_those_of_another_seed() -> None:
    signs = Sketch(1).signs(0, 1 << 20)
    assert set(signs.tolist()) == {-1.0, 1.0}
    for other in (torch.ones(1 << 20), Sketch(1, 1).signs(0, 1 << 20), signs.roll(64)):
        assert abs(float((signs * other).mean())) < 4 / 1024  # four standard errors


@pytest.mark.gpu
def test_a_device_gives_the_same_signs() -> None:
    expected = Sketch(8, 3).signs(3_000_000_001, 100_000)
    assert torch.equal(Sketch(8, 3).signs(3_000_000_001, 100_000, "cuda").cpu(), expected)


def test_sketched_cosines_are_unbiased_with_the_error_of_the_formula() -> None:
    """Over 400 seeds: mean within four standard errors, spread within 15 % of eq. (54)."""
    generator = torch.Generator().manual_seed(0)
    common, a, b = torch.randn(3, 8192, generator=generator)
    x, y = common + a, common + b
    exact = float(torch.cosine_similarity(x, y, dim=0))
    assert 0.4 < exact < 0.6
    buckets, found, products = 64, [], []
    for seed in range(400):
        u, v = (represent(Sketch(buckets, seed), [z]) for z in (x, y))
        found.append(float(torch.cosine_similarity(u, v, dim=0)))
        products.append(float(u @ v))
    error = (1 - exact**2) / math.sqrt(buckets)
    assert np.std(found) == pytest.approx(error, rel=0.15)
    assert (
        abs(np.mean(found) - exact) < 4 * error / 20 + 1 / buckets
    )  # a ratio's own bias is O(1/k)
    spread = np.std(products) / 20
    assert abs(np.mean(products) - float(x @ y)) < 4 * spread


def test_a_prime_size_spreads_the_heavy_columns_of_a_matrix() -> None:
    """Two of 256 columns hold half of the squared norm: with k a multiple of 256 they share few
    buckets, and the error is far above eq. (54); with a prime k it is what the formula says.
    """
    generator = torch.Generator().manual_seed(0)
    scale = torch.ones(256)
    scale[[3, 77]] = 127**0.5
    x, y = ((torch.randn(256, 256, generator=generator) * scale).reshape(-1) for _ in range(2))
    exact = float(torch.cosine_similarity(x, y, dim=0))
    errors = {}
    for buckets in (1024, 1021):
        found = [
            torch.cosine_similarity(*(represent(Sketch(buckets, seed), [z]) for z in (x, y)), dim=0)
            for seed in range(60)
        ]
        errors[buckets] = float((torch.stack(found) - exact).square().mean().sqrt())
    predicted = (1 - exact**2) / math.sqrt(1021)
    assert errors[1021] == pytest.approx(predicted, rel=0.3)
    assert errors[1024] > 3 * predicted


# --- mean gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (4, 5)])
def test_mean_gradient_is_that_of_the_token_mean(tiny: Tiny, size: int, stride: int) -> None:
    """However the task is cut into batches, and however unlike their numbers of tokens are."""
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])
    found = mean_gradient(token_losses(tiny, model, size), parameters, Stride(stride))
    whole = forward_loss(model, tiny.encoded.batch(np.arange(15)), None)
    grads = torch.autograd.grad(whole, list(parameters.values()))
    expected = torch.cat([g.flatten() for g in grads])[::stride]
    assert found.dtype == torch.float32
    assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(expected.norm()) > 0.1


def test_a_stride_has_the_bits_of_whole_gradients_added_up_and_sliced(tiny: Tiny) -> None:
    """The arithmetic of every number in the reports: float32, entry by entry, batch by batch."""
    model = copy.deepcopy(tiny.model)
    parameters = set_trainable(model, ["decoder"])
    losses = token_losses(tiny, model, 4)
    tensors = list(parameters.values())
    total, weight = [torch.zeros_like(p) for p in tensors], 0
    for compute in losses:
        loss, count = compute()
        for sum_, gradient in zip(total, torch.autograd.grad(loss, tensors), strict=True):
            sum_.add_(gradient.float(), alpha=count)
        weight += count
    expected = torch.cat([t.reshape(-1) for t in total]) / weight
    exact, fifth, sketch = mean_gradients(losses, parameters, [Stride(1), Stride(5), Sketch(64)])
    assert torch.equal(exact, expected)
    assert torch.equal(fifth, expected[::5])
    assert_close(sketch, represent(Sketch(64), [expected]), rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in tensors)


def test_no_more_than_one_gradient_is_alive_at_a_time() -> None:
    """What a second copy of all gradients would take at 3B is 12 GB."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(5)))
    alive = []

    class Spy(Stride):
        def add(self, total: torch.Tensor, entries: torch.Tensor, start: int, w: float) -> None:
            alive.append(sum(p.grad is not None for p in layers.parameters()))
            super().add(total, entries, start, w)

    loss = [lambda: (layers(torch.ones(2, 10)).square().mean(), 3)]
    mean_gradient(loss, dict(layers.named_parameters()), Spy(10))
    assert alive == [0] * 5


def test_half_precision_gradients_are_widened_before_they_are_added() -> None:
    """256 + 1 is 256 in bfloat16."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    losses = [lambda: (256 * weight.sum(), 1), *[lambda: (weight.sum(), 1)] * 3]
    found = mean_gradients(losses, {"w": weight}, [Stride(1), Sketch(4)])
    assert found[0].dtype == torch.float32
    assert found[0].tolist() == [259 / 4] * 4
    assert found[1].abs().tolist() == [259 / 4] * 4


def test_a_tensor_used_twice_counts_once_and_named_twice_is_refused() -> None:
    embedding = torch.nn.Embedding(3, 2)
    head = torch.nn.Linear(2, 3, bias=False)
    head.weight = embedding.weight
    model = torch.nn.ModuleDict({"embedding": embedding, "head": head})

    def loss() -> tuple[torch.Tensor, int]:
        return head(embedding(torch.tensor([0]))).sum(), 1

    parameters = dict(model.named_parameters())
    found = mean_gradient([loss], parameters, Stride(1))
    (expected,) = torch.autograd.grad(loss()[0], [embedding.weight])
    assert found.tolist() == expected.flatten().tolist()
    twice = parameters | {"head.weight": head.weight}
    with pytest.raises(
        ValueError, match=r"'head.weight' and 'embedding.weight' are one tied tensor"
    ):
        mean_gradient([loss], twice, Stride(1))


def test_a_parameter_without_a_part_in_the_loss_has_gradient_zero() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    found = mean_gradient([lambda: (used.sum(), 1)], {"a": unused, "b": used}, Stride(1))
    assert found.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="without a supervised token"):
        mean_gradient([], {"a": used}, Stride(1))


def test_sharded_parameters_are_refused_by_name() -> None:
    class Sharded(torch.nn.Parameter):
        def to_local(self) -> None: ...

    with pytest.raises(MeritError, match=r"parameter 'w' is sharded.*load it unsharded"):
        mean_gradient([], {"w": Sharded(torch.ones(2))}, Stride(1))
