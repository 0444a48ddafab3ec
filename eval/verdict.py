"""How a claim is decided: inequalities between a measured value and a bound, and the one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["above", "below"]
Verdict = Literal["holds", "does not hold", "inconclusive", "not testable here"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "inconclusive", "not testable here")
OUTSIDE = "outside of the tally"  # in place of a verdict, where numbers differ from run to run


class NotTestable(Exception):
    """Raised where methods, studies or the setting that a claim speaks of are missing."""


@dataclass(frozen=True)
class Link:
    """One inequality: the claim says `value` lies on `side` of `bound`.

    `low` and `high` are None where the value was not sampled. `refuted` is the bound that decides
    against the claim: `bound` itself unless a margin is allowed.
    """

    label: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None
    bound: float = 0.0
    side: Side = "above"
    refuted: float | None = None
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        return verdict([self])

    @property
    def sign(self) -> int:
        return 1 if self.side == "above" else -1

    @property
    def margin(self) -> float:
        """How far the value lies on the claim's side; negative on the other one."""
        return (self.value - self.bound) * self.sign

    def text(self) -> str:
        """The value with its interval and unit."""
        shown = _number(self.value, self.unit)
        if self.low is not None and self.high is not None:
            shown += f" [{_number(self.low, self.unit)}, {_number(self.high, self.unit)}]"
        return shown


def verdict(links: Sequence[Link]) -> Verdict:
    """The rule: a chain holds if all its links do, and one that does not hold breaks it.

    A link holds where its interval lies wholly on its side of `bound`, does not hold where it lies
    wholly on the other side of `refuted`, and is inconclusive otherwise. Without an interval the
    point decides, strictly.
    """
    found: set[Verdict] = set()
    for link in links:
        if link.low is None or link.high is None:
            found.add("holds" if link.margin > 0 else "does not hold")
            continue
        near, far = (link.low, link.high) if link.sign > 0 else (link.high, link.low)
        refuted = link.bound if link.refuted is None else link.refuted
        if link.sign * (near - link.bound) > 0:
            found.add("holds")
        else:
            found.add("does not hold" if link.sign * (far - refuted) < 0 else "inconclusive")
    if "does not hold" in found:
        return "does not hold"
    return "holds" if found == {"holds"} else "inconclusive"


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
        return verdict(self.links)

    @property
    def deciding(self) -> Link:
        """The weakest of the links that have the chain's verdict."""
        same = [link for link in self.links if link.verdict == self.verdict]
        return min(same, key=lambda link: link.margin)


def _number(value: float, unit: str) -> str:
    match unit:
        case "points":
            return f"{value:+.1f}"
        case "%":
            return f"{value:.1f} %"
        case _:
            return f"{value:.4g}"
