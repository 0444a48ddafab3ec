"""Methods: how tasks are assigned to branches; and sweeps over their settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from merit.config.settings import PositiveFloat, PositiveInt, Seed, Settings, nearest
from merit.config.training import Algorithm, Optimizer

Rule = Literal["base", "joint", "random", "soup", "merit", "rawpca", "kmeans", "conflict", "shrunk"]
Reading = Literal["within", "between"]  # of conflict-2; see merit.method.partition.conflict_groups
Axes = Annotated[int, Field(ge=1, le=10)]
Seeds = Annotated[list[Seed], Field(min_length=1)]
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
    return ("seeds", *trained, *(("reading",) if rule == "conflict" else ()))


class Method(Settings):
    """How tasks are assigned to branches (`partition`), and how the branches are trained.

    base: theta0 itself. joint: one group of all tasks. random: `groups` balanced groups, drawn by
    the seed. soup: `members` joint runs that differ in data order, averaged uniformly. merit:
    2^axes groups from median splits along the PCA axes of the cosine matrix. rawpca: the same along
    those of the raw gradients' Gram matrix (table 20). kmeans: on the gradients' directions, its
    starts drawn by the seed (table 10). conflict: two groups, greedily from the most conflicting
    pair of tasks, in one of two readings. shrunk: theta0 + alpha (source - theta0), alpha such that
    the distance from theta0 is `match`'s, seed by seed (the control; it trains nothing).

    `optimizer` overrides keys of `training.optimizer`. A training that `may_diverge` leaves a
    result without a model if its loss is not finite.
    """

    partition: Rule
    seeds: Seeds = [1]
    epochs: PositiveFloat = 1.0
    groups: Annotated[int, Field(ge=2)] | None = None
    members: Annotated[int, Field(ge=2)] | None = None
    axes: Axes | None = None
    reading: Reading = "within"
    source: str | None = None
    match: str | None = None
    optimizer: dict[str, Any] = {}
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
        if twice := sorted(seed for seed, n in Counter(self.seeds).items() if n > 1):
            raise ValueError(f"`seeds`: {twice} are listed twice")
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


class Sweep(Settings):
    """Methods again at other settings: every combination of what is listed, as further methods.

    A list that is left out stands for the experiment's own value. Such a method is called
    `<method>-<what differs>` (`joint-1ep-lr0.00025`), is no row of the main tables, and may
    diverge: finding out where is what a sweep is for.
    """

    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds = [1]
    learning_rate: list[PositiveFloat] = []
    batch_size: list[PositiveInt] = []
    algorithm: Algorithm | None = None


def overridden(optimizer: Optimizer, changes: Mapping[str, Any], key: str) -> Optimizer:
    """`optimizer` with some of its keys changed. Raises ValueError that names `key`."""
    try:
        return Optimizer.model_validate(optimizer.model_dump() | dict(changes))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        hint = nearest(field, list(Optimizer.model_fields))
        raise ValueError(f"{key}.{field}: {first['msg'].lower()}.{hint}") from None


def combinations(sweep: Sweep, own: Optimizer) -> Iterator[dict[str, Any]]:
    """Every point of the sweep as the keys in which it differs from the experiment's optimiser."""
    for rate in sweep.learning_rate or [own.learning_rate]:
        for size in sweep.batch_size or [own.batch_size]:
            point: dict[str, Any] = {"algorithm": sweep.algorithm or own.algorithm}
            point |= {"learning_rate": rate, "batch_size": size}
            yield {key: value for key, value in point.items() if value != getattr(own, key)}


def suffix(changes: Mapping[str, Any]) -> str:
    """What the name of a sweep's method ends in: "" if nothing differs, else "-sgd-lr0.1-b4"."""
    form = {"algorithm": "-{}", "learning_rate": "-lr{:g}", "batch_size": "-b{}"}
    return "".join(form.get(key, f"-{key}{{}}").format(value) for key, value in changes.items())
