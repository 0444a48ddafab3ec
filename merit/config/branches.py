"""From an experiment's methods to the branches that are trained and the models that are compared.

Everything is *partition, train branches, merge*. A method only says how tasks are assigned to
groups; runs that two methods share (a soup's members and joint-1ep) are one branch, trained once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from merit.config.experiment import Experiment, variants
from merit.config.methods import Method, overridden, suffix
from merit.config.training import Optimizer
from merit.method.rules import RULES


@dataclass(frozen=True)
class Partition:
    """One assignment of all tasks to groups: a rule, what it is told, and a seed if it draws."""

    rule: str  # of merit.method.rules
    label: str  # "joint", "random-<groups>", "merit-<axes>d", ...: what branches are called after
    num_groups: int
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None

    @property
    def key(self) -> str:
        """What the partition stage files the groups under: the label, "-s<seed>" if drawn."""
        return self.label if self.seed is None else f"{self.label}-s{self.seed}"


@dataclass(frozen=True)
class Branch:
    """One training run: group `group` of a partition, for `epochs` epochs, data order `seed`.

    `partition` is the key of one of the plan's partitions. The branches of one model share the name
    `run` (of joint training: all seeds). `optimizer` is what a method changes in
    `training.optimizer`; a sweep's branch `may_diverge`.
    """

    id: str
    run: str
    partition: str
    group: int
    num_groups: int
    epochs: float
    seed: int
    optimizer: dict[str, Any] = field(default_factory=dict)
    may_diverge: bool = False


@dataclass(frozen=True)
class Model:
    """One row and seed of the results: `branches` merged, or a model derived from others.

    `rule` is "base", "merge" (weighted average of `branches`) or "shrunk" (`source` shrunk to the
    displacement of `match`, both model ids).
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


def partition_of(method: Method, seed: int) -> Partition:
    """How a method that trains, run with this seed, assigns tasks.

    The seed draws the groups of some rules; for the others it is a data order only.
    """
    rule, parameters = RULES[method.rule], method.parameters
    label = rule.label.format(**parameters)
    drawn = seed if rule.draws else None
    return Partition(method.rule, label, method.num_groups, parameters, drawn)


def plan(experiment: Experiment) -> Plan:
    """The branches, models and partitions that the experiment's methods and sweeps ask for."""
    branches: dict[str, Branch] = {}
    models: dict[str, Model] = {}
    partitions: dict[str, Partition] = {}

    def train(method: Method, seed: int, order: int) -> tuple[str, ...]:
        """The branches of one run, new or already asked for; their ids."""
        partition = partition_of(method, seed)
        partitions.setdefault(partition.key, partition)
        found = _branches(experiment.training.optimizer, partition, method, order)
        for branch in found:
            branches.setdefault(branch.id, branch)
        return tuple(branch.id for branch in found)

    for name, method in (*experiment.methods.items(), *variants(experiment)):
        if method.partition == "base":
            models[name] = Model(name, name, None, "base")
            continue
        for seed in method.seeds:
            model_id = f"{name}-s{seed}"
            if method.partition == "shrunk":
                source, match = f"{method.source}-s{seed}", f"{method.match}-s{seed}"
                models[model_id] = Model(model_id, name, seed, "shrunk", source=source, match=match)
                continue
            # seed s of an n-soup takes the n data orders from s on, so that its members are
            # joint runs that other methods (or other seeds) have in any case
            orders = range(seed, seed + (method.members or 1))
            trained = [b for order in orders for b in train(method, seed, order)]
            models[model_id] = Model(model_id, name, seed, "merge", branches=tuple(trained))
    return Plan(branches, models, partitions)


def _branches(own: Optimizer, partition: Partition, method: Method, seed: int) -> list[Branch]:
    """joint-<epochs>ep-s<seed>, or <label>[-<epochs>ep]-s<seed>-g<group> for every group.

    What the method changes in the optimiser stands before the seed.
    """
    changes = {k: v for k, v in method.optimizer.items() if v != getattr(own, k)}
    tag = suffix(changes)
    if partition.rule == "joint":
        run = f"joint-{method.epochs:g}ep{tag}"
        names = [f"{run}-s{seed}"]
    else:
        epochs = "" if method.epochs == 1 else f"-{method.epochs:g}ep"
        run = f"{partition.label}{epochs}{tag}-s{seed}"
        names = [f"{run}-g{k}" for k in range(partition.num_groups)]
    return [
        Branch(
            id=name,
            run=run,
            partition=partition.key,
            group=k,
            num_groups=partition.num_groups,
            epochs=method.epochs,
            seed=seed,
            optimizer=changes,
            may_diverge=method.may_diverge,
        )
        for k, name in enumerate(names)
    ]


def optimizer_of(experiment: Experiment, branch: Branch) -> Optimizer:
    """The optimiser that the branch is trained with, every key of it."""
    return overridden(experiment.training.optimizer, branch.optimizer, f"branch {branch.id}")
