"""Methods: how tasks are assigned to branches; and sweeps over their settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from merit.config.settings import PositiveFloat, PositiveInt, Seed, Settings, nearest
from merit.config.training import Algorithm, Optimizer
from merit.method.partition import Reading
from merit.method.rules import RULES

# `partition` of a method -> the keys that it needs: the rules, and what assigns no tasks by itself
PARAMETERS: dict[str, tuple[str, ...]] = {
    "base": (),
    "soup": ("members",),
    "shrunk": ("source", "match"),
    **{name: rule.needs for name, rule in RULES.items()},
}
NOT_TRAINED = ("base", "shrunk")
Seeds = Annotated[list[Seed], Field(min_length=1)]


def _known(partition: str) -> str:
    if partition not in PARAMETERS:
        raise ValueError(f"found {partition!r}.{nearest(partition, sorted(PARAMETERS))}")
    return partition


class Method(Settings):
    """How tasks are assigned to branches (`partition`), and how the branches are trained.

    `partition` is a rule (merit.method.rules); or base: theta0 itself; soup: `members` joint runs
    that differ in data order, averaged uniformly; shrunk: theta0 + alpha (source - theta0), alpha
    such that the distance from theta0 is that of `match`, seed by seed (the control; it trains
    nothing).

    `optimizer` overrides keys of `training.optimizer`. A training that `may_diverge` leaves a
    result without a model if its loss is not finite.
    """

    partition: Annotated[str, AfterValidator(_known)]
    seeds: Seeds = [1]
    epochs: PositiveFloat = 1.0
    groups: Annotated[int, Field(ge=2)] | None = None
    members: Annotated[int, Field(ge=2)] | None = None
    axes: Annotated[int, Field(ge=1, le=10)] | None = None
    reading: Reading = "within"
    source: str | None = None
    match: str | None = None
    optimizer: dict[str, Any] = {}
    may_diverge: bool = False

    @model_validator(mode="after")
    def _has_its_parameters(self) -> Method:
        needed, known = PARAMETERS[self.partition], self._known_keys()
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

    def _known_keys(self) -> set[str]:
        known = {"partition", *PARAMETERS[self.partition]}
        if self.partition != "base":
            known |= {"seeds"}
        if self.trained:
            known |= {"epochs", "optimizer", "may_diverge"}
        return known | set(RULES[self.partition].options if self.partition in RULES else ())

    @property
    def trained(self) -> bool:
        return self.partition not in NOT_TRAINED

    @property
    def rule(self) -> str:
        """The rule that assigns the tasks: of a soup, whose members are joint runs, `joint`."""
        return "joint" if self.partition == "soup" else self.partition

    @property
    def parameters(self) -> dict[str, Any]:
        """What the rule is told; {} if the method assigns no tasks."""
        rule = RULES.get(self.rule)
        return {key: getattr(self, key) for key in (*rule.needs, *rule.options)} if rule else {}

    @property
    def num_groups(self) -> int:
        """K: how many groups the tasks are split into; 1 if they are not."""
        return RULES[self.rule].count(**self.parameters) if self.rule in RULES else 1


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
