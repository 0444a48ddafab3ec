"""Merging tensors: hand-computed values and the properties that each formula implies."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from merit.method.average import interpolate, matching_alpha, merge_weights, weighted_average
from merit.method.deltas import leading_triplets, polar_factor
from merit.method.mergers import load_merger, merger_keys
from merit.method.mergers.iso_c import iso_c
from merit.method.mergers.iso_cts import iso_cts
from merit.method.mergers.star import star
from merit.method.mergers.ties import ties, trim_threshold
from merit.method.mergers.tsv import tsv

Merger = Callable[..., Tensor]
MERGERS: dict[str, Merger] = {key: load_merger(key).merge for key in merger_keys()}
seeds = st.integers(0, 2**31 - 1)


def random_branches(seed: int, shape: tuple[int, ...] = (12, 9), count: int = 3) -> list[Tensor]:
    """The base first; branches small steps away from it, as fine-tuning leaves them."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    steps = [0.1 * torch.randn(shape, generator=generator) for _ in range(count)]
    return [base, *(base + step for step in steps)]


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float32))


# averaging -------------------------------------------------------------------------------------


def test_weighted_average_by_hand() -> None:
    weights = merge_weights([{"num_tokens": 100}, {"num_tokens": 300}], "tokens")
    assert weights == [0.25, 0.75]
    merged = weighted_average([torch.tensor([4.0, 0.0]), torch.tensor([8.0, -4.0])], weights)
    assert merged.tolist() == [7.0, -3.0]


COUNTS = [
    {"num_tokens": 600, "num_loss_tokens": 10, "num_samples": 30},
    {"num_tokens": 200, "num_loss_tokens": 70, "num_samples": 10},
]


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        ("tokens", [600 / 800, 200 / 800]),
        ("loss_tokens", [10 / 80, 70 / 80]),
        ("samples", [30 / 40, 10 / 40]),
        ("uniform", [1 / 2, 1 / 2]),
    ],
)
def test_merge_weights_of_every_reading_by_hand(reading: str, expected: list[float]) -> None:
    assert merge_weights(COUNTS, reading) == expected
    assert merge_weights(COUNTS[:1], reading) == [1.0]
    assert merge_weights(COUNTS * 3, reading) == pytest.approx([w / 3 for w in expected * 3])


@pytest.mark.parametrize("bad", [None, 0, -3])
@pytest.mark.parametrize("reading", ["tokens", "loss_tokens", "samples"])
def test_a_count_that_is_missing_or_not_positive_is_named(reading: str, bad: int | None) -> None:
    key = f"num_{reading}"
    branch = {name: count for name, count in COUNTS[1].items() if name != key}
    if bad is not None:
        branch[key] = bad
    found = re.escape(f"every branch needs a positive `{key}`, found [{COUNTS[0][key]}, {bad}]")
    with pytest.raises(ValueError, match=f"^{found}$"):
        merge_weights([COUNTS[0], branch], reading)
    assert merge_weights([COUNTS[0], branch], "uniform") == [0.5, 0.5]  # counts do not matter


def test_weights_of_no_branch_and_of_an_unknown_reading_are_refused() -> None:
    for reading in ("tokens", "uniform"):
        with pytest.raises(ValueError, match=r"^there is no branch to merge$"):
            merge_weights([], reading)
    with pytest.raises(
        ValueError,
        match=r"^merge weights are tokens, loss_tokens, samples or uniform, not 'token'$",
    ):
        merge_weights(COUNTS, "token")


def test_average_casts_once() -> None:
    """1/256 vanishes beside 1 in bfloat16: adding 8 weighted terms one by one would lose them."""
    tensors = [torch.tensor([1 + (k % 2) / 64], dtype=torch.bfloat16) for k in range(8)]
    merged = weighted_average(tensors, [1 / 8] * 8)
    assert merged.dtype == torch.bfloat16
    assert merged.item() == 1 + 1 / 128


@settings(max_examples=25, deadline=None)
@given(seed=seeds, counts=st.lists(st.integers(1, 10**9), min_size=1, max_size=8))
def test_averaging_identical_branches_is_exact(seed: int, counts: list[int]) -> None:
    tensor = random_branches(seed)[0]
    weights = merge_weights([{"num_tokens": count} for count in counts], "tokens")
    assert sum(weights) == pytest.approx(1.0)
    assert torch.equal(weighted_average([tensor] * len(counts), weights), tensor)


def test_average_refuses_what_does_not_fit() -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="add up to"):
        weighted_average([ones, ones], [0.5, 0.6])
    with pytest.raises(ValueError, match="shapes differ"):
        weighted_average([ones, torch.ones(3)], [0.5, 0.5])
    with pytest.raises(ValueError, match="2 tensors but 1"):
        weighted_average([ones, ones], [1.0])


@settings(max_examples=25, deadline=None)
@given(seed=seeds, target=st.floats(0.01, 10))
def test_interpolation_reaches_the_target_distance(seed: int, target: float) -> None:
    base, other = (tensor.double() for tensor in random_branches(seed, count=1))
    alpha = matching_alpha(target, float((other - base).norm()))
    moved = interpolate(base, other, alpha)
    assert float((moved - base).norm()) == pytest.approx(target)
    assert torch.equal(interpolate(base, other, 0.0), base)
    assert_close(interpolate(base, other, 1.0), other)


def test_matching_alpha_needs_a_distance() -> None:
    with pytest.raises(ValueError, match="distance 0"):
        matching_alpha(1.0, 0.0)


# what all post-hoc mergers share ---------------------------------------------------------------


@pytest.mark.parametrize("name", MERGERS)
@settings(max_examples=10, deadline=None)
@given(seed=seeds, order=st.permutations(range(3)))
def test_branch_order_never_matters(name: str, seed: int, order: Sequence[int]) -> None:
    base, *branches = random_branches(seed)
    merged = MERGERS[name](base, branches)
    assert_close(MERGERS[name](base, [branches[i] for i in order]), merged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MERGERS)
def test_branch_order_never_matters_for_low_rank_deltas(name: str) -> None:
    """LoRA branches: the directions of zero singular value are arbitrary and must not count."""
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(12, 9)
    factors = [torch.randn(12, 9, generator=generator)[:, [k]] for k in range(3)]
    branches = [factor @ torch.randn(1, 9, generator=generator) for factor in factors]
    merged = MERGERS[name](base, branches)
    assert_close(MERGERS[name](base, branches[::-1]), merged, atol=1e-5, rtol=1e-4)
    assert torch.linalg.matrix_rank(merged, rtol=1e-4) <= 3 or name == "ties"


@pytest.mark.parametrize("name", MERGERS)
def test_vectors_are_averaged(name: str) -> None:
    base = torch.tensor([1.0, 1.0, 1.0])
    branches = [torch.tensor([2.0, 1.0, 0.0]), torch.tensor([4.0, -1.0, 1.0])]
    assert_close(MERGERS[name](base, branches), torch.tensor([3.0, 0.0, 0.5]))
    assert_close(MERGERS[name](base, branches, scale=2.0), torch.tensor([5.0, -1.0, 0.0]))


@pytest.mark.parametrize("name", MERGERS)
def test_branches_at_the_base_and_scale(name: str) -> None:
    base, *branches = random_branches(3)
    assert torch.equal(MERGERS[name](base, [base, base]), base)
    whole, half = MERGERS[name](base, branches), MERGERS[name](base, branches, scale=0.5)
    assert_close(half - base, (whole - base) / 2, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MERGERS)
def test_dtype_is_the_base_s_and_shapes_are_checked(name: str) -> None:
    base, *branches = (tensor.bfloat16() for tensor in random_branches(4))
    assert MERGERS[name](base, branches).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="branch 1 has shape"):
        MERGERS[name](base, [branches[0], branches[0][:3]])
    with pytest.raises(ValueError, match="no branch"):
        MERGERS[name](base, [])


# TIES ------------------------------------------------------------------------------------------


def test_ties_by_hand() -> None:
    """Five entries, density 0.4: each delta keeps its two largest magnitudes."""
    base = torch.full((1, 5), 10.0)
    deltas = [[5.0, -4.0, 1.0, 0.0, 0.0], [3.0, 6.0, -2.0, 0.0, 0.0], [1.0, 2.0, 0.0, -8.0, 0.0]]
    # kept: (5, -4), (3, 6), (2, -8). Signs: +, + (-4 + 6 + 2 = 4), none, -, none.
    # means over the agreeing: (5 + 3) / 2, (6 + 2) / 2, 0, -8, 0
    merged = ties(base, [base + torch.tensor([delta]) for delta in deltas], density=0.4)
    assert merged.tolist() == [[14.0, 14.0, 10.0, 2.0, 10.0]]


def test_ties_cancelled_entries_take_the_majority_sign() -> None:
    base = torch.zeros(1, 2)
    branches = [torch.tensor([[3.0, 1.0]]), torch.tensor([[-3.0, 1.0]])]
    assert ties(base, branches, density=1.0).tolist() == [[3.0, 1.0]]
    flipped = [-branch for branch in branches]
    assert ties(base, flipped, density=1.0).tolist() == [[-3.0, -1.0]]


def test_ties_with_thresholds_of_the_whole_model() -> None:
    """A small tensor beside a large one keeps nothing under a global threshold."""
    small, large = torch.full((2, 5), 0.01), torch.arange(1.0, 11.0).reshape(2, 5)
    threshold = trim_threshold([small, large], density=0.2)
    assert threshold == 7.0  # the four largest of twenty
    zeros = torch.zeros(2, 5)
    assert torch.equal(ties(zeros, [small], thresholds=[threshold]), zeros)
    assert ties(zeros, [large], thresholds=[threshold]).count_nonzero() == 4


def test_ties_keeps_the_stated_share() -> None:
    base, branch = random_branches(5, shape=(10, 10), count=1)
    assert (ties(base, [branch], density=0.29) != base).sum() == 29
    with pytest.raises(ValueError, match="density"):
        ties(base, [branch], density=0.0)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, count=st.integers(1, 5))
def test_ties_without_trimming_returns_identical_branches(seed: int, count: int) -> None:
    base, branch = random_branches(seed, count=1)
    assert_close(ties(base, [branch] * count, density=1.0), branch, atol=1e-6, rtol=1e-6)


# STAR ------------------------------------------------------------------------------------------


def test_star_by_hand() -> None:
    """Values 5, 3, 2: eta 0.4 keeps the first, 0.6 the first two, rescaled to sum 10."""
    base = torch.zeros(3, 3)
    assert_close(star(base, [diagonal(5, 3, 2)]), diagonal(10, 0, 0))
    assert_close(star(base, [diagonal(5, 3, 2)], eta=0.6), diagonal(6.25, 3.75, 0))
    assert_close(star(base, [diagonal(5, 3, 2)], eta=0.5), diagonal(10, 0, 0))
    merged = star(base, [diagonal(5, 3, 2), diagonal(0, 4, 0)])
    assert_close(merged, diagonal(5, 2, 0))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, eta=st.floats(0.05, 1))
def test_star_keeps_the_nuclear_norm(seed: int, eta: float) -> None:
    _, branch = random_branches(seed, count=1)
    kept = star(torch.zeros_like(branch), [branch], eta=eta)
    assert_close(torch.linalg.matrix_norm(kept, "nuc"), torch.linalg.matrix_norm(branch, "nuc"))


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_star_without_truncation_is_the_average(seed: int) -> None:
    base, *branches = random_branches(seed)
    average = weighted_average(branches, [1 / 3] * 3)
    assert_close(star(base, branches, eta=1.0), average, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="eta"):
        star(base, branches, eta=0.0)


# TSV -------------------------------------------------------------------------------------------


def test_tsv_by_hand() -> None:
    """Two branches, four directions: two triplets each. On the own axes nothing interferes."""
    base = torch.zeros(4, 4)
    merged = tsv(base, [diagonal(5, 4, 1, 0.5), diagonal(0.2, 0.1, 3, 2)])
    assert_close(merged, diagonal(5, 4, 3, 2))


def test_tsv_orthogonalises_what_overlaps() -> None:
    """u1 = e1 and u2 at 60 degrees: the symmetric orthonormal pair stands at -15 and 75 degrees."""
    angle = torch.deg2rad(torch.tensor([0.0, 60.0, -15.0, 75.0]))
    u1, u2, p1, p2 = torch.stack([angle.cos(), angle.sin()], dim=1)
    e1, e2 = torch.eye(2)
    merged = tsv(torch.zeros(2, 2), [2 * torch.outer(u1, e1), 3 * torch.outer(u2, e2)])
    assert_close(merged, 2 * torch.outer(p1, e1) + 3 * torch.outer(p2, e2))


def test_tsv_of_identical_branches_is_their_leading_part() -> None:
    base = torch.zeros(4, 4)
    merged = tsv(base, [diagonal(5, 4, 1, 0.5)] * 2)
    assert_close(merged, diagonal(5, 4, 0, 0))
    only = random_branches(6, count=1)
    assert_close(tsv(only[0], only[1:]), only[1], atol=1e-5, rtol=1e-5)


# Iso -------------------------------------------------------------------------------------------


def test_iso_c_by_hand() -> None:
    """The sum has values 6, 2, 1: each becomes 3; the sign of a direction stays."""
    branches = [diagonal(4, -2, 0.5), diagonal(2, 0, 0.5)]
    assert_close(iso_c(torch.zeros(3, 3), branches), diagonal(3, -3, 3))


@pytest.mark.parametrize("merge", [iso_c, iso_cts])
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_iso_spectrum_is_flat(merge: Merger, seed: int) -> None:
    _, *branches = random_branches(seed)
    values = torch.linalg.svdvals(merge(torch.zeros_like(branches[0]), branches))
    assert len(values) == 9
    assert_close(values, values.mean().expand(9), atol=1e-5, rtol=1e-4)
    if merge is iso_c:
        total = torch.linalg.matrix_norm(sum(branches, torch.zeros(12, 9)), "nuc")
        assert_close(values.sum(), total)


def test_iso_cts_by_hand() -> None:
    """Five directions, two branches, common 3: the sum's 10, 8, 6, then one direction a branch.

    sum = diag(10, 8, 6, 3, 2); branch 0 adds e4 (value 3), branch 1 adds e5 (value 2): the mean
    of 10, 8, 6, 3, 2 is 5.8.
    """
    branches = [diagonal(5, 4, 6, 3, 0), diagonal(5, 4, 0, 0, 2)]
    merged = iso_cts(torch.zeros(5, 5), branches, common_fraction=0.6)
    assert_close(merged, diagonal(5.8, 5.8, 5.8, 5.8, 5.8))


def test_iso_leaves_opposed_directions_out() -> None:
    """e3 cancels in the sum, and again where the branches' own directions are orthonormalised."""
    branches = [diagonal(9, 7, 2, 0), diagonal(9, 7, -2, 1)]
    assert_close(iso_c(torch.zeros(4, 4), branches), diagonal(11, 11, 0, 11))
    merged = iso_cts(torch.zeros(4, 4), branches, common_fraction=0.5)
    # left (e3, e3), right (e3, -e3): polar factors of product 0; 9 is the mean of 18, 14, 2, 2
    assert_close(merged, diagonal(9, 9, 0, 0))


def test_iso_cts_without_room_for_specific_directions_is_iso_c() -> None:
    base, *branches = random_branches(7)
    for fraction in (1.0, 0.9):  # 9 - floor(8.1) = 1, and round(1 / 3) = 0
        merged = iso_cts(base, branches, common_fraction=fraction)
        assert_close(merged, iso_c(base, branches), atol=1e-5, rtol=1e-5)
    assert iso_cts(base, branches, common_fraction=0.0).shape == base.shape
    with pytest.raises(ValueError, match="common_fraction"):
        iso_cts(base, branches, common_fraction=1.5)


# shared parts ----------------------------------------------------------------------------------


def test_leading_triplets_leave_zero_directions_out() -> None:
    triplets = leading_triplets(diagonal(3, 2, 1e-12), 3)
    assert_close(triplets.values, torch.tensor([3.0, 2.0]))
    assert leading_triplets(torch.zeros(3, 2)).values.shape == (0,)


def test_polar_factor_by_hand() -> None:
    """Of the columns (u, u) the nearest partial isometry is (u, u) / sqrt 2."""
    columns = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert_close(polar_factor(columns), columns / 2**0.5)
