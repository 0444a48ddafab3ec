"""Methods: how tasks are assigned to branches; and sweeps over their settings."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from merit.config.base import MAIN
from merit.config.settings import Level, PositiveFloat, PositiveInt, Seed, Settings, nearest
from merit.config.training import Algorithm

Rule = Literal["base", "joint", "random", "soup", "merit", "rawpca", "kmeans", "conflict", "shrunk"]
Reading = Literal["within", "between"]  # of conflict-2; see merit.method.partition.conflict_groups
Axes = Annotated[int, Field(ge=1, le=10)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
# tagged, so that a mistake is told of the one that was meant; the tags are no keys of the file
SeedsByLevel = Annotated[
    Annotated[Seeds, Tag("(list)")] | Annotated[dict[Level, Seeds], Tag("(by level)")],
    Discriminator(lambda value: "(by level)" if isinstance(value, dict) else "(list)"),
]
# rule -> the keys that it needs, besides those that it may have
PARAMETERS: dict[Rule, tuple[str, ...]] = {
    "base": (),
    "joint": (),
    "random": ("groups",),
    "soup": ("members",),
    "merit": ("axes",),
    "rawpca": ("axes",),
    "kmeans": ("groups",),
    "conflict": (),
    "shrunk": ("source", "match"),
}


def optional_keys(rule: Rule) -> tuple[str, ...]:
    """What a method of this rule may have; only trained ones take epochs and an optimiser."""
    if rule == "base":
        return ()
    trained = () if rule == "shrunk" else ("epochs", "optimizer", "may_diverge")
    return ("seeds", "base", *trained, *(("reading",) if rule == "conflict" else ()))


class Method(Settings):
    """How tasks are assigned to branches (`partition`), and how the branches are trained.

    base: theta0 itself. joint: one group of all tasks. random: `groups` balanced groups, drawn by
    the seed. soup: `members` joint runs that differ in data order, averaged uniformly. merit:
    2^axes groups from median splits along the PCA axes of the cosine matrix. rawpca: the same along
    those of the raw gradients' Gram matrix (table 20). kmeans: on the gradients' directions, its
    starts drawn by the seed (table 10). conflict: two groups, greedily from the most conflicting
    pair of tasks, in one of two readings. shrunk: theta0 + alpha (source - theta0), alpha such that
    the distance from theta0 is `match`'s, seed by seed (the control; it trains nothing).

    `seeds` of a list are run at every level; `{default: [...], full: [...]}` says what the full
    level adds. `optimizer` overrides keys of `training.optimizer`; `base` names one of `bases`. A
    training that `may_diverge` leaves a result without a model where its loss is not finite.
    """

    partition: Rule
    seeds: SeedsByLevel = [1]
    epochs: PositiveFloat = 1.0
    groups: Annotated[int, Field(ge=2)] | None = None
    members: Annotated[int, Field(ge=2)] | None = None
    axes: Axes | None = None
    reading: Reading = "within"
    source: str | None = None
    match: str | None = None
    optimizer: dict[str, Any] = {}
    base: str = MAIN
    may_diverge: bool = False

    @model_validator(mode="after")
    def _rule_has_its_parameters(self) -> Method:
        needed = PARAMETERS[self.partition]
        known = ("partition", *needed, *optional_keys(self.partition))
        for name, field in type(self).model_fields.items():
            if name not in known and getattr(self, name) != field.default:
                raise ValueError(
                    f"`{name}` is no key of `partition: {self.partition}`."
                    f"{nearest(name, sorted(known))}"
                )
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is missing; `partition: {self.partition}` needs it")
        for level in get_args(Level):
            twice = sorted(seed for seed, n in Counter(self.seeds_at(level)).items() if n > 1)
            if twice:
                raise ValueError(
                    f"`seeds`: {twice} are listed twice; every level but `default` says what it "
                    "adds to that one"
                )
        return self

    @property
    def trained(self) -> bool:
        return self.partition not in ("base", "shrunk")

    @property
    def num_groups(self) -> int:
        """K: how many groups the tasks are split into; 1 of joint training and soups."""
        if self.partition == "conflict":
            return 2
        return 2**self.axes if self.axes else self.groups or 1

    def seeds_at(self, level: Level) -> list[int]:
        """The seeds that are run at this level, in the order of the YAML."""
        if isinstance(self.seeds, list):
            return self.seeds
        return [seed for name in included(level) for seed in self.seeds.get(name, [])]


class Sweep(Settings):
    """Methods again at other settings: every combination of what is listed, as further methods.

    A list that is left out stands for the experiment's own value. Such a method is called
    `<method>-<what differs>` (`joint-1ep-lr0.00025`), is no row of the main tables, and may
    diverge: finding out where is what a sweep is for.
    """

    level: Level = "default"
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds = [1]
    learning_rate: list[PositiveFloat] = []
    batch_size: list[PositiveInt] = []
    algorithm: Algorithm | None = None
    bases: Annotated[list[str], Field(min_length=1)] = [MAIN]


def included(level: Level) -> tuple[Level, ...]:
    """The levels that are run at `level`."""
    return ("default",) if level == "default" else ("default", level)


def runs_at(method: Method, level: Level) -> bool:
    return method.partition == "base" or bool(method.seeds_at(level))
