"""What decides a claim: inequalities between a measured value and a bound, and the verdict rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eval.report.results import Results
from eval.report.studies import StudyResult
from merit.config import Experiment

Verdict = Literal["holds", "does not hold", "inconclusive", "not testable here"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "inconclusive", "not testable here")
OUTSIDE = "outside of the tally"  # in place of a verdict, where numbers differ from run to run


class NotTestable(Exception):
    """Raised where methods, studies or the setting that a claim speaks of are missing."""


@dataclass(frozen=True)
class Case:
    """All that a claim may look at. `base_hash` is the base of this report's branches."""

    experiment: Experiment
    results: Results
    studies: Mapping[str, StudyResult]
    base_hash: str


@dataclass(frozen=True)
class Link:
    """One inequality: the claim says `value` lies on `side` of `bound`.

    With an interval it holds where the interval lies wholly on that side of `bound`, does not hold
    where it lies wholly on the other side of `refuted` (`bound` itself unless a margin is allowed),
    and is inconclusive otherwise. Without an interval the value was not sampled and its point
    decides.
    """

    label: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    bound: float = 0.0
    side: Literal["above", "below"] = "above"
    refuted: float | None = None
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        sign = 1 if self.side == "above" else -1
        if self.low is None or self.high is None:
            return "holds" if sign * (self.value - self.bound) > 0 else "does not hold"
        near, far = (self.low, self.high) if sign > 0 else (self.high, self.low)
        if sign * (near - self.bound) > 0:
            return "holds"
        refuted = self.bound if self.refuted is None else self.refuted
        return "does not hold" if sign * (far - refuted) < 0 else "inconclusive"

    @property
    def margin(self) -> float:
        """How far the value lies on the claim's side; negative on the other one."""
        return (self.value - self.bound) * (1 if self.side == "above" else -1)

    def text(self) -> str:
        """The value with its interval and unit."""
        shown = _number(self.value, self.unit)
        if self.low is not None and self.high is not None:
            shown += f" [{_number(self.low, self.unit)}, {_number(self.high, self.unit)}]"
        return shown


def _number(value: float, unit: str) -> str:
    match unit:
        case "points":
            return f"{value:+.1f}"
        case "%":
            return f"{value:.1f} %"
        case _:
            return f"{value:.4g}"


@dataclass(frozen=True)
class Evidence:
    """The links that decide one claim together, and where their numbers stand.

    `table` is relative to reports/<experiment>/; `studies` are the ones that were read.
    """

    links: Sequence[Link]
    table: str
    note: str = ""
    studies: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """A chain holds if all its links do; one that does not hold breaks it."""
        found = {link.verdict for link in self.links}
        if "does not hold" in found:
            return "does not hold"
        return "holds" if found == {"holds"} else "inconclusive"

    @property
    def deciding(self) -> Link:
        """The weakest of the links that have the chain's verdict."""
        same = [link for link in self.links if link.verdict == self.verdict]
        return min(same, key=lambda link: link.margin)


def link_record(link: Link) -> dict[str, Any]:
    """A link as it is stored in claims.json."""
    return {
        "label": link.label,
        "value": link.value,
        "low": link.low,
        "high": link.high,
        "n": link.n,
        "claimed": f"{link.side} {link.bound:g}",
        "unit": link.unit,
        "verdict": link.verdict,
        "text": link.text(),
    }
