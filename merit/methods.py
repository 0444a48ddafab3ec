"""From an experiment's methods to the branches that are trained and the models that are compared.

Everything is *partition, train branches, merge*. A method only says how tasks are assigned to
groups; runs that two methods share (a soup's members and joint-1ep) are one branch, trained once.
"""

from __future__ import annotations

from dataclasses import dataclass

from merit.config import (
    BaseMethod,
    Experiment,
    JointMethod,
    MeritMethod,
    RandomMethod,
    ShrunkMethod,
    SoupMethod,
)


@dataclass(frozen=True)
class Branch:
    """One training run: group `group` of a partition, for `epochs` epochs, data order `seed`.

    `partition` is the key that the partition stage builds groups under: "joint", "merit-<axes>"
    or "random-<groups>-s<seed>".
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
    """All branches and all models of an experiment, in the order of its methods."""

    branches: dict[str, Branch]
    models: dict[str, Model]


def _epochs_tag(epochs: float) -> str:
    return f"{epochs:g}ep"


def plan(experiment: Experiment) -> Plan:
    """The branches and models that the experiment's methods ask for."""
    branches: dict[str, Branch] = {}
    models: dict[str, Model] = {}

    def branch(
        name: str, partition: str, group: int, num_groups: int, epochs: float, seed: int
    ) -> str:
        branches.setdefault(name, Branch(name, partition, group, num_groups, epochs, seed))
        return name

    def joint(epochs: float, seed: int) -> str:
        return branch(f"joint-{_epochs_tag(epochs)}-s{seed}", "joint", 0, 1, epochs, seed)

    def groups(
        partition: str, num_groups: int, epochs: float, seed: int, label: str
    ) -> tuple[str, ...]:
        tag = "" if epochs == 1 else f"-{_epochs_tag(epochs)}"
        return tuple(
            branch(f"{label}{tag}-s{seed}-g{k}", partition, k, num_groups, epochs, seed)
            for k in range(num_groups)
        )

    for name, method in experiment.methods.items():
        if isinstance(method, BaseMethod):
            models[name] = Model(name, name, None, "base")
            continue
        for seed in method.seeds:
            model_id = f"{name}-s{seed}"
            members: tuple[str, ...] = ()
            if isinstance(method, JointMethod):
                members = (joint(method.epochs, seed),)
            elif isinstance(method, SoupMethod):
                # seed s of an n-soup takes the n data orders from s on, so that its members are
                # joint runs that other methods (or other seeds) have already paid for
                members = tuple(joint(method.epochs, seed + i) for i in range(method.members))
            elif isinstance(method, RandomMethod):
                label = f"random-{method.groups}"
                members = groups(f"{label}-s{seed}", method.groups, method.epochs, seed, label)
            elif isinstance(method, MeritMethod):
                label = f"merit-{method.axes}d"
                members = groups(
                    f"merit-{method.axes}d", 2**method.axes, method.epochs, seed, label
                )
            elif isinstance(method, ShrunkMethod):
                models[model_id] = Model(
                    model_id,
                    name,
                    seed,
                    "shrunk",
                    source=f"{method.source}-s{seed}",
                    match=f"{method.match}-s{seed}",
                )
                continue
            models[model_id] = Model(model_id, name, seed, "merge", branches=members)
    return Plan(branches, models)
