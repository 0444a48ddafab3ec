"""How tasks are assigned to groups (docs/method.md 5 and 6).

Every function returns int64 groups (T,), 0-based, each group non-empty. Ties and random draws go
by the tasks' names, so that the order in which tasks are listed changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from merit.errors import MeritError

Reading = Literal["within", "between"]  # of conflict-2: see `conflict_groups`


@dataclass(frozen=True)
class Split:
    """One cut of the recursion: the group with binary path `path` is cut on `axis` at `threshold`.

    `threshold` lies halfway between the last task of the lower half and the first of the upper.
    """

    path: str
    axis: int
    threshold: float


def merit_groups(
    embedding: np.ndarray, sample_counts: np.ndarray, names: Sequence[str], num_axes: int
) -> tuple[np.ndarray, list[Split]]:
    """2^num_axes groups by recursive 50/50 splits at the sample-weighted median (docs/method.md 5).

    Axis j cuts every group of level j in two: tasks are sorted by their score on the axis (ties by
    name) and the cut falls where the lower half's share of the samples is closest to one half; of
    two equally close cuts the lower. Each half keeps at least one task for every group it must
    still be cut into. Group index = binary path, lower half 0, first axis most significant.

    Args: embedding (T, >= num_axes); sample_counts (T,), all positive.
    Raises MeritError for fewer tasks than groups or a task without samples.
    """
    num_tasks, num_groups = len(names), 2**num_axes
    check_counts(sample_counts, names, num_groups)
    groups = np.zeros(num_tasks, dtype=np.int64)
    splits: list[Split] = []
    members = {"": np.arange(num_tasks)}
    for axis in range(num_axes):
        halves: dict[str, np.ndarray] = {}
        for path, tasks in members.items():
            scores = embedding[tasks, axis]
            ordered = tasks[
                sorted(range(len(tasks)), key=lambda i: (scores[i], names[int(tasks[i])]))
            ]
            reserve = 2 ** (num_axes - axis - 1)
            cut = weighted_median_cut(sample_counts[ordered], reserve)
            low, high = embedding[ordered[cut - 1], axis], embedding[ordered[cut], axis]
            splits.append(Split(path, axis, float((low + high) / 2)))
            halves[f"{path}0"], halves[f"{path}1"] = ordered[:cut], ordered[cut:]
        members = halves
    for path, tasks in members.items():
        groups[tasks] = int(path, 2)
    return groups, splits


def weighted_median_cut(weights: np.ndarray, reserve: int = 1) -> int:
    """How many leading entries make the half that is closest to half of the total weight.

    At least `reserve` entries stay on either side. Of two equally close cuts the lower.
    The two halves then differ by at most the largest weight, unless `reserve` forbids it.
    """
    below = np.cumsum(weights)
    candidates = np.arange(reserve, len(weights) - reserve + 1)
    distance = np.abs(2 * below[candidates - 1] - below[-1])
    return int(candidates[np.argmin(distance)])


def random_groups(
    sample_counts: np.ndarray, names: Sequence[str], num_groups: int, seed: int
) -> np.ndarray:
    """Random groups of about equal sample counts, drawn from `seed`.

    A random order of the tasks (sorted by name first) is cut in two at the sample-weighted median,
    and each half again, as `merit_groups` cuts; for numbers of groups that are not a power of two
    the cut falls at the share of groups that each side still has to make.
    """
    check_counts(sample_counts, names, num_groups)
    shuffled = _order(names)[np.random.default_rng(seed).permutation(len(names))]
    groups = np.zeros(len(names), dtype=np.int64)
    queue = [(shuffled, 0, num_groups)]
    while queue:
        tasks, first, count = queue.pop()
        if count == 1:
            groups[tasks] = first
            continue
        left = count // 2
        below = np.cumsum(sample_counts[tasks])
        candidates = np.arange(left, len(tasks) - (count - left) + 1)
        distance = np.abs(below[candidates - 1] - below[-1] * left / count)
        cut = int(candidates[np.argmin(distance)])
        queue += [(tasks[:cut], first, left), (tasks[cut:], first + left, count - left)]
    return groups


def joint_group(names: Sequence[str]) -> np.ndarray:
    """Every task in group 0: joint training, and each member of a soup."""
    return np.zeros(len(names), dtype=np.int64)


def kmeans_groups(
    features: np.ndarray, names: Sequence[str], num_groups: int, seed: int
) -> np.ndarray:
    """K-means (scikit-learn, k-means++, best of 10 starts) on the gradients' directions (table 10).

    Args: features (T, F): normalised gradients, or their `gradient_coordinates`, which have the
    same distances and T columns. No PCA: all dimensions count. Groups are not balanced, and are
    numbered by the first name in each.
    Raises MeritError for fewer tasks, or fewer distinct features, than groups.
    """
    from sklearn.cluster import KMeans

    by_name = _order(names)
    distinct = len(np.unique(features, axis=0))
    if distinct < num_groups:
        raise MeritError(
            f"{num_groups} groups need at least {num_groups} tasks with gradients of their own, "
            f"found {distinct}; use a method with fewer groups"
        )
    model = KMeans(num_groups, n_init=10, random_state=seed)
    labels = model.fit_predict(np.asarray(features, dtype=np.float64)[by_name])
    first_seen = list(dict.fromkeys(labels.tolist()))
    groups = np.zeros(len(names), dtype=np.int64)
    groups[by_name] = [first_seen.index(label) for label in labels]
    return groups


def conflict_groups(
    similarity: np.ndarray,
    names: Sequence[str],
    reading: Reading = "within",
) -> np.ndarray:
    """The two groups of conflict-2, greedily from the most conflicting pair (docs/method.md 6).

    The pair of lowest cosine founds the two groups, one task each. Then, until none is left, the
    task and group of most extreme mean cosine (over the group's tasks) are joined. The paper words
    the aim in two ways, which ask for opposite extremes:
    - "within": minimise the average cosine inside each group: lowest mean cosine first, so that
      conflicting tasks meet in one branch;
    - "between": maximise the disagreement of the two groups: highest mean cosine first, so that
      each group agrees with itself and conflicts with the other.
    Ties go to the first name, then to group 0; group 0 is the founder's whose name comes first.

    Args: similarity (T, T). Raises MeritError for fewer than 2 tasks.
    """
    if reading not in ("within", "between"):
        raise ValueError(f"reading must be 'within' or 'between', found {reading!r}")
    if len(names) < 2:
        raise MeritError(f"2 groups need at least 2 tasks, found {len(names)}")
    by_name = _order(names)
    cosines = np.asarray(similarity, dtype=np.float64)[np.ix_(by_name, by_name)]
    upper = np.where(np.triu(np.ones_like(cosines, dtype=bool), k=1), cosines, np.inf)
    founders = np.unravel_index(np.argmin(upper), upper.shape)
    labels = np.full(len(names), -1, dtype=np.int64)
    sums, sizes = np.zeros((len(names), 2)), np.zeros(2)
    joining = [(int(founders[0]), 0), (int(founders[1]), 1)]
    for step in range(len(names)):
        if step < 2:
            task, group = joining[step]
        else:
            cost = sums / sizes if reading == "within" else -sums / sizes
            cost[labels >= 0] = np.inf
            task, group = divmod(int(np.argmin(cost)), 2)
        labels[task] = group
        sums[:, group] += cosines[:, task]
        sizes[group] += 1
    groups = np.zeros(len(names), dtype=np.int64)
    groups[by_name] = labels
    return groups


def _order(names: Sequence[str]) -> np.ndarray:
    """Indices of the tasks by name."""
    return np.array(sorted(range(len(names)), key=lambda i: names[i]), dtype=np.int64)


def check_counts(sample_counts: np.ndarray, names: Sequence[str], num_groups: int) -> None:
    """Raise MeritError for a task without samples or for fewer tasks than groups."""
    for name, count in zip(names, sample_counts, strict=True):
        if count <= 0:
            raise MeritError(
                f"task {name!r} has {int(count)} samples; remove it or give it at least one"
            )
    if len(names) < num_groups:
        raise MeritError(
            f"{num_groups} groups need at least {num_groups} tasks, found {len(names)}; "
            "use a method with fewer groups"
        )
