"""From an experiment's methods to the branches that are trained and the models that are compared.

Everything is *partition, train branches, merge*. A method only says how tasks are assigned to
groups; runs that two methods share (a soup's members and joint-1ep) are one branch, trained once.
"""

from __future__ import annotations

from dataclasses import dataclass

from merit.config import (
    AnyMethod,
    BaseMethod,
    ConflictMethod,
    Experiment,
    JointMethod,
    KmeansMethod,
    MeritMethod,
    RandomMethod,
    RawpcaMethod,
    Reading,
    ShrunkMethod,
    SoupMethod,
)


@dataclass(frozen=True)
class Partition:
    """One assignment of all tasks to groups: a rule (`kind`) and what the rule needs to know.

    `kind` is "joint", "random", "merit", "rawpca", "kmeans" or "conflict"; `seed` is given where
    the rule draws (random, kmeans), `reading` for conflict only.
    """

    kind: str
    label: str  # "joint", "random-<groups>", "merit-<axes>d", ...: what branches are called after
    num_groups: int
    seed: int | None = None
    reading: Reading | None = None

    @property
    def key(self) -> str:
        """What the partition stage files the groups under: the label, "-s<seed>" where drawn."""
        return self.label if self.seed is None else f"{self.label}-s{self.seed}"


@dataclass(frozen=True)
class Branch:
    """One training run: group `group` of a partition, for `epochs` epochs, data order `seed`.

    `partition` is the key of one of the plan's partitions.
    """

    id: str
    partition: str
    group: int
    num_groups: int
    epochs: float
    seed: int


@dataclass(frozen=True)
class Model:
    """One row-and-seed of the results: `branches` merged, or a model derived from others.

    `rule` is "base", "merge" (token-weighted average of `branches`) or "shrunk" (`source` shrunk to
    the displacement of `match`, both model ids).
    """

    id: str
    method: str
    seed: int | None
    rule: str
    branches: tuple[str, ...] = ()
    source: str | None = None
    match: str | None = None


@dataclass(frozen=True)
class Plan:
    """All branches, models and partitions of an experiment, in the order of its methods."""

    branches: dict[str, Branch]
    models: dict[str, Model]
    partitions: dict[str, Partition]  # by key


def partition_of(method: AnyMethod, seed: int) -> Partition:
    """How the method, run with this seed, assigns tasks. Raises ValueError where it trains nothing.

    Seeds draw the groups of random and kmeans; for the others they are data orders only.
    """
    match method:
        case JointMethod() | SoupMethod():
            return Partition("joint", "joint", 1)
        case RandomMethod(groups=groups):
            return Partition("random", f"random-{groups}", groups, seed=seed)
        case KmeansMethod(groups=groups):
            return Partition("kmeans", f"kmeans-{groups}", groups, seed=seed)
        case MeritMethod(axes=axes):
            return Partition("merit", f"merit-{axes}d", 2**axes)
        case RawpcaMethod(axes=axes):
            return Partition("rawpca", f"rawpca-{axes}d", 2**axes)
        case ConflictMethod(reading=reading):
            return Partition("conflict", f"conflict-2-{reading}", 2, reading=reading)
        case BaseMethod() | ShrunkMethod():
            raise ValueError(f"{method.partition} methods assign no tasks")


def plan(experiment: Experiment) -> Plan:
    """The branches, models and partitions that the experiment's methods ask for."""
    branches: dict[str, Branch] = {}
    models: dict[str, Model] = {}
    partitions: dict[str, Partition] = {}

    def train(partition: Partition, epochs: float, seed: int) -> tuple[str, ...]:
        """The partition's branches, new or already asked for; their ids."""
        partitions.setdefault(partition.key, partition)
        ids = _branch_ids(partition, epochs, seed)
        for k, name in enumerate(ids):
            branch = Branch(name, partition.key, k, partition.num_groups, epochs, seed)
            branches.setdefault(name, branch)
        return ids

    for name, method in experiment.methods.items():
        if isinstance(method, BaseMethod):
            models[name] = Model(name, name, None, "base")
            continue
        for seed in method.seeds:
            model_id = f"{name}-s{seed}"
            if isinstance(method, ShrunkMethod):
                source, match = f"{method.source}-s{seed}", f"{method.match}-s{seed}"
                models[model_id] = Model(model_id, name, seed, "shrunk", source=source, match=match)
                continue
            # seed s of an n-soup takes the n data orders from s on, so that its members are
            # joint runs that other methods (or other seeds) have already paid for
            members = method.members if isinstance(method, SoupMethod) else 1
            trained = [
                branch
                for order in range(seed, seed + members)
                for branch in train(partition_of(method, seed), method.epochs, order)
            ]
            models[model_id] = Model(model_id, name, seed, "merge", branches=tuple(trained))
    return Plan(branches, models, partitions)


def _branch_ids(partition: Partition, epochs: float, seed: int) -> tuple[str, ...]:
    """joint-<epochs>ep-s<seed>, or <label>[-<epochs>ep]-s<seed>-g<group> for every group."""
    if partition.kind == "joint":
        return (f"joint-{epochs:g}ep-s{seed}",)
    tag = "" if epochs == 1 else f"-{epochs:g}ep"
    return tuple(f"{partition.label}{tag}-s{seed}-g{k}" for k in range(partition.num_groups))
