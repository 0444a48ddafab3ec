"""The claims as they stand in claims.yaml, and what a claim may look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from merit.config import Experiment
from merit.config.settings import Settings
from merit.errors import MeritError
from merit.eval.report.study_sections import StudyResult
from merit.eval.results import Results
from merit.eval.statistics import LEVEL
from merit.eval.verdict import Side

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")


@dataclass(frozen=True)
class Case:
    """All that a claim may look at. `base_hash` is the base of this report's branches.

    `bases` has the scores on every base of the family by experiment, this one's first; `best` the
    same with every method at its own best distance from the base.
    """

    experiment: Experiment
    bases: Mapping[str, Results]
    studies: Mapping[str, StudyResult]
    base_hash: str
    best: Mapping[str, Results] = field(default_factory=dict)

    @property
    def results(self) -> Results:
        """The scores on this report's own base."""
        return next(iter(self.bases.values()))

    def on(self, name: str) -> Case:
        """The case on only its own base."""
        best = {name: self.best[name]} if name in self.best else {}
        return replace(self, bases={name: self.bases[name]}, best=best)


class Reading(Settings):
    """Where a study's result has the value of an inequality, its interval and its n."""

    label: str
    value: str
    rows: list[dict[str, str]] = Field(default_factory=list)
    absent: str = ""
    limits: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    error: str = ""
    deviation: str = ""
    n: str = ""
    factor: float = 1.0
    side: Side = "above"
    unit: str = ""


class Claim(Settings):
    """One claim; claims.yaml says what its fields mean."""

    id: str
    sentence: str
    statistic: str
    rule: str
    opponent: Literal["joint", "base", "random", "shrunk"] = "joint"
    benchmarks: Literal["all", "closed"] = "all"
    distance: Literal["trained", "best"] = "trained"
    shown: str = ""
    bound: float = 0.0
    margin: float = 0.0
    role: Literal["claim", "precondition", "outside"] = "claim"
    study: str = ""
    table: str = ""
    source: Literal["table", "summary"] = "table"
    readings: list[Reading] = Field(default_factory=list)
    note: str = ""

    @model_validator(mode="after")
    def _study_has_table(self) -> Claim:
        if bool(self.study) != bool(self.table) or (self.readings and not self.study):
            raise ValueError("`study`, `table` and `readings` belong together")
        return self


class ClaimsFile(Settings):
    paired: str
    claims: list[Claim]


def load_claims(rules: Collection[str], path: Path = CLAIMS_FILE) -> tuple[Claim, ...]:
    """The claims in order, their statistics with the numbers that decide.

    Raises MeritError that names the file and the key (or the claim) where a value does not fit, a
    rule is none of `rules`, a statistic names an unknown number or an id stands twice.
    """
    try:
        stated = ClaimsFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise MeritError(f"{path}: not valid YAML: {error}") from None
    except ValidationError as error:
        where = [".".join(map(str, e["loc"])) or "(top level)" for e in error.errors()]
        found = zip(where, error.errors(), strict=True)
        lines = [f"{path}: key `{key}`: {e['msg']}" for key, e in found]
        raise MeritError("\n".join(lines)) from None
    level = f"{100 * LEVEL:g} %"
    words = {"level": level, "paired": stated.paired.format(level=level)}
    claims: dict[str, Claim] = {}
    for claim in stated.claims:
        if claim.id in claims:
            raise MeritError(f"{path}: {claim.id} stands there twice; give every claim its own id")
        if claim.rule not in rules:
            known = ", ".join(sorted(rules))
            raise MeritError(f"{path}: {claim.id}: no rule {claim.rule!r}; there are {known}")
        numbers = {"bound": claim.bound, "margin": claim.margin, **words}
        try:
            statistic = claim.statistic.format(**numbers)
        except KeyError as name:
            raise MeritError(
                f"{path}: {claim.id}: `statistic` names {name}; there are {', '.join(numbers)}"
            ) from None
        claims[claim.id] = claim.model_copy(update={"statistic": statistic})
    return tuple(claims.values())
