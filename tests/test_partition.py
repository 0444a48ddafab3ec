"""Groups: hand-computed splits, balance, cover, and independence of the order of tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from merit.errors import MeritError
from merit.method.partition import (
    Split,
    conflict_groups,
    joint_group,
    kmeans_groups,
    merit_groups,
    random_groups,
    weighted_median_cut,
)

seeds = st.integers(0, 2**31 - 1)


def named(count: int) -> list[str]:
    return [f"task_{i:02d}" for i in range(count)]


def world(seed: int, num_tasks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Embedding with many tied scores, unequal sizes, a cosine matrix, names out of order."""
    generator = np.random.default_rng(seed)
    embedding = generator.integers(-2, 3, size=(num_tasks, 3)).astype(np.float64)
    counts = generator.integers(1, 200, size=num_tasks)
    directions = generator.standard_normal((num_tasks, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    names = [named(num_tasks)[i] for i in generator.permutation(num_tasks)]
    return embedding, counts, directions @ directions.T, names


def test_one_axis_by_hand() -> None:
    """Samples 10, 10, 20, 40 along the axis: 40 | 40 is the balanced cut, not 2 | 2 tasks."""
    embedding = np.array([[3.0], [-2.0], [0.5], [-1.0]])
    counts = np.array([40, 10, 20, 10])
    groups, splits = merit_groups(embedding, counts, named(4), 1)
    assert_array_equal(groups, [1, 0, 0, 0])
    assert splits == [Split("", 0, 1.75)]


def test_two_axes_by_hand() -> None:
    """Axis 0 cuts {0, 1, 2} from {3, 4, 5}; axis 1 then cuts either half at its own median."""
    embedding = np.array([[-3, 1], [-2, 5], [-1, 0], [1, 9], [2, 7], [3, 8]], dtype=np.float64)
    counts = np.array([10, 10, 20, 10, 20, 10])
    groups, splits = merit_groups(embedding, counts, named(6), 2)
    # lower half by axis 1: task 2 (20) | 0, 1 (20); upper: task 4 (20) | 5, 3 (20)
    assert_array_equal(groups, [1, 1, 0, 3, 2, 3])
    assert splits == [Split("", 0, 0.0), Split("0", 1, 0.5), Split("1", 1, 7.5)]


def test_ties_go_by_name() -> None:
    groups, _ = merit_groups(np.zeros((4, 1)), np.ones(4, dtype=int), ["d", "a", "c", "b"], 1)
    assert_array_equal(groups, [1, 0, 1, 0])


def test_equally_close_cuts_take_the_lower() -> None:
    assert weighted_median_cut(np.array([1, 1, 1])) == 1


def test_one_huge_task_leaves_no_group_empty() -> None:
    groups, _ = merit_groups(
        np.arange(8.0)[:, None] * np.ones(3), np.r_[10**6, [1] * 7], named(8), 3
    )
    assert_array_equal(groups, range(8))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, num_tasks=st.integers(8, 24), num_axes=st.integers(1, 3))
def test_merit_groups_cover_and_balance(seed: int, num_tasks: int, num_axes: int) -> None:
    embedding, counts, _, names = world(seed, num_tasks)
    groups, splits = merit_groups(embedding, counts, names, num_axes)
    assert_array_equal(np.unique(groups), range(2**num_axes))
    assert [s.axis for s in splits] == [len(s.path) for s in splits]
    assert len(splits) == 2**num_axes - 1
    for split in splits:
        shift = num_axes - len(split.path)
        inside = groups >> shift == int(split.path or "0", 2)
        upper = inside & ((groups >> (shift - 1)) & 1 == 1)
        lower = inside & ~upper
        scores = embedding[:, split.axis]
        assert scores[lower].max() <= split.threshold <= scores[upper].min()
        reserve = 2 ** (shift - 1)  # where a half has no more tasks than it needs, it may be light
        gap = abs(int(counts[lower].sum()) - int(counts[upper].sum()))
        forced = 1 < reserve == min(lower.sum(), upper.sum())
        assert gap <= counts[inside].max() or forced


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.integers(1, 1000), min_size=2, max_size=40))
def test_halves_differ_by_at_most_the_largest_weight(weights: list[int]) -> None:
    cut = weighted_median_cut(np.array(weights))
    gap = abs(sum(weights[:cut]) - sum(weights[cut:]))
    assert gap <= max(weights)
    assert gap == min(abs(sum(weights[:c]) - sum(weights[c:])) for c in range(1, len(weights)))


Grouping = Callable[[np.ndarray, np.ndarray, np.ndarray, list[str]], np.ndarray]
GROUPINGS: dict[str, Grouping] = {
    "merit": lambda e, n, c, names: merit_groups(e, n, names, 3)[0],
    "random": lambda e, n, c, names: random_groups(n, names, 5, seed=7),
    "kmeans": lambda e, n, c, names: kmeans_groups(e, names, 3, seed=7),
    "within": lambda e, n, c, names: conflict_groups(c, names),
    "between": lambda e, n, c, names: conflict_groups(c, names, reading="between"),
    "joint": lambda e, n, c, names: joint_group(names),
}


@pytest.mark.parametrize("method", GROUPINGS)
@settings(max_examples=12, deadline=None)
@given(seed=seeds, num_tasks=st.integers(8, 16))
def test_the_order_of_tasks_changes_nothing(method: str, seed: int, num_tasks: int) -> None:
    embedding, counts, cosines, names = world(seed, num_tasks)
    embedding += 1e-3 * np.random.default_rng(seed).standard_normal(embedding.shape)
    order = np.random.default_rng(seed + 1).permutation(num_tasks)
    group = GROUPINGS[method]
    permuted = group(
        embedding[order], counts[order], cosines[np.ix_(order, order)], [names[i] for i in order]
    )
    assert_array_equal(permuted, group(embedding, counts, cosines, names)[order])


@settings(max_examples=40, deadline=None)
@given(seed=seeds, num_tasks=st.integers(8, 30), num_groups=st.integers(2, 8))
def test_random_groups_cover_and_balance(seed: int, num_tasks: int, num_groups: int) -> None:
    groups = random_groups(np.full(num_tasks, 10), named(num_tasks), num_groups, seed)
    sizes = np.bincount(groups, minlength=num_groups)
    assert len(sizes) == num_groups
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 2


def test_random_groups_depend_on_the_seed_alone() -> None:
    draws = [tuple(random_groups(np.ones(20), named(20), 2, seed)) for seed in range(5)]
    assert len(set(draws)) == 5
    assert draws[3] == tuple(random_groups(np.ones(20), named(20), 2, 3))


def test_kmeans_finds_separate_bundles() -> None:
    features = np.array([[0.0, 1], [1, 0], [0.1, 1], [1, 0.1], [-1, -1]])
    assert_array_equal(kmeans_groups(features, named(5), 3, seed=0), [0, 1, 0, 1, 2])


def test_kmeans_refuses_too_few_distinct_tasks() -> None:
    with pytest.raises(MeritError, match="found 1"):
        kmeans_groups(np.ones((5, 2)), named(5), 2, seed=0)


def test_conflict_readings_by_hand() -> None:
    """Pair (0, 3) conflicts most. Task 1 sides with 0 (0.8), task 2 with 3 (0.6)."""
    cosines = np.array(
        [[1, 0.8, 0.1, -0.9], [0.8, 1, 0.0, -0.5], [0.1, 0.0, 1, 0.6], [-0.9, -0.5, 0.6, 1]]
    )
    # between: 1 joins 0 (0.8 is the highest), then 2 joins 3
    assert_array_equal(conflict_groups(cosines, named(4), reading="between"), [0, 0, 1, 1])
    # within: 1 joins 3 (-0.5 is the lowest); 2 then prefers 0 (0.1) to {3, 1} (0.3)
    assert_array_equal(conflict_groups(cosines, named(4), reading="within"), [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merit_groups(np.zeros((3, 2)), np.ones(3), named(3), 2), "4 tasks, found 3"),
        (lambda: random_groups(np.ones(3), named(3), 8, 0), "8 tasks, found 3"),
        (lambda: conflict_groups(np.ones((1, 1)), named(1)), "2 tasks, found 1"),
        (
            lambda: merit_groups(np.zeros((2, 1)), np.array([3, 0]), named(2), 1),
            "'task_01' has 0 samples",
        ),
    ],
)
def test_too_few_tasks_and_empty_tasks_are_refused(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(MeritError, match=message):
        call()
