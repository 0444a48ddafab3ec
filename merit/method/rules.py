"""The rules that assign tasks to groups, by their names: what a method's `partition` may be.

To add a rule, write one function here and decorate it: its keyword-only parameters are the keys of
such a method in an experiment's YAML (needed, or optional with a default), `seed` says that the
groups are drawn. Settings, branches' names, the partition stage and the figures read `RULES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from merit.method.partition import (
    Reading,
    Split,
    conflict_groups,
    joint_group,
    kmeans_groups,
    merit_groups,
    random_groups,
)
from merit.method.similarity import gradient_coordinates, gram_pca

# the groups (T,), and the cuts if they lie on the axes of `Evidence.embedding`
Assignment = tuple[np.ndarray, list[Split]]


@dataclass(frozen=True)
class Evidence:
    """What is known of T tasks when they are assigned."""

    names: Sequence[str]
    counts: np.ndarray  # (T,) samples: what groups are balanced by
    gradients: np.ndarray  # (T, D) float32, memory-mapped; read only by the rules that need it
    similarity: np.ndarray  # (T, T) float64, cosines
    embedding: np.ndarray  # (T, num_axes) float64, of the cosine PCA

    @cached_property
    def raw_embedding(self) -> np.ndarray:
        """(T, T) scores on all axes of the raw-gradient PCA: one pass over the gradients."""
        return gram_pca(self.gradients, len(self.names)).embedding


@dataclass(frozen=True)
class Rule:
    """A way of assigning tasks to groups."""

    assign: Callable[..., Assignment]  # (evidence, **parameters)
    count: Callable[..., int]  # (**parameters) -> K, the number of groups
    label: str  # what branches are called after, with the parameters in braces
    color: str  # in figures
    evidence: str  # the field of Evidence that it goes by
    needs: tuple[str, ...]
    options: dict[str, object]  # with their defaults
    draws: bool  # whether the groups depend on the seed


RULES: dict[str, Rule] = {}


def rule(
    *, label: str, count: Callable[..., int], color: str, evidence: str
) -> Callable[[Callable[..., Assignment]], Callable[..., Assignment]]:
    """Register the decorated function as the rule of its name; see `Rule`."""

    def register(assign: Callable[..., Assignment]) -> Callable[..., Assignment]:
        keys = [
            p for p in inspect.signature(assign).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        needs = tuple(p.name for p in keys if p.default is p.empty and p.name != "seed")
        options = {p.name: p.default for p in keys if p.default is not p.empty}
        draws = any(p.name == "seed" for p in keys)
        RULES[assign.__name__] = Rule(assign, count, label, color, evidence, needs, options, draws)
        return assign

    return register


# --- the rules; colours are Okabe and Ito's -------------------------------------------------------


@rule(label="joint", count=lambda: 1, color="#D55E00", evidence="names")
def joint(known: Evidence) -> Assignment:
    return joint_group(known.names), []


@rule(
    label="random-{groups}",
    count=lambda groups: groups,
    color="#56B4E9",
    evidence="counts",
)
def random(known: Evidence, *, groups: int, seed: int) -> Assignment:
    return random_groups(known.counts, known.names, groups, seed), []


@rule(
    label="merit-{axes}d",
    count=lambda axes: 2**axes,
    color="#009E73",
    evidence="embedding",
)
def merit(known: Evidence, *, axes: int) -> Assignment:
    return merit_groups(known.embedding, known.counts, known.names, axes)


@rule(
    label="rawpca-{axes}d",
    count=lambda axes: 2**axes,
    color="#8A8A00",
    evidence="raw_embedding",
)
def rawpca(known: Evidence, *, axes: int) -> Assignment:
    groups, _ = merit_groups(known.raw_embedding, known.counts, known.names, axes)
    return groups, []


@rule(
    label="kmeans-{groups}",
    count=lambda groups: groups,
    color="#0072B2",
    evidence="similarity",
)
def kmeans(known: Evidence, *, groups: int, seed: int) -> Assignment:
    # as far from each other as the normalised gradients, with T columns instead of D
    features = gradient_coordinates(known.similarity)
    return kmeans_groups(features, known.names, groups, seed), []


@rule(
    label="conflict-2-{reading}",
    count=lambda reading: 2,
    color="#E69F00",
    evidence="similarity",
)
def conflict(known: Evidence, *, reading: Reading = "within") -> Assignment:
    return conflict_groups(known.similarity, known.names, reading), []
