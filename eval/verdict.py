"""The one rule of every verdict: where an interval lies. Of differences, and of claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Direction = Literal["ahead", "behind", "undecided"]  # of a difference
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Side = Literal["above", "below"]
Verdict = Literal["holds", "fails", "undecided", "not tested"]  # of a claim
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
OUTSIDE = "outside of the tally"  # in place of a verdict, where numbers differ from run to run


class NotTestable(Exception):
    """Raised where methods, studies or the setting that a claim speaks of are missing."""


def direction(low: float, high: float, bound: float = 0.0) -> Direction:
    """Where the interval lies wholly: "ahead" above `bound`, "behind" below it."""
    if low > bound:
        return "ahead"
    return "behind" if high < bound else "undecided"


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
    num_bases: int = 1

    @property
    def verdict(self) -> Verdict:
        """Holds where the interval lies wholly on the claim's side of `bound`, fails where wholly
        on the other side of `refuted`. Without an interval the point decides, strictly."""
        if self.low is None or self.high is None:
            return "holds" if self.margin > 0 else "fails"
        right, wrong = ("ahead", "behind") if self.sign > 0 else ("behind", "ahead")
        if direction(self.low, self.high, self.bound) == right:
            return "holds"
        refuted = self.bound if self.refuted is None else self.refuted
        return "fails" if direction(self.low, self.high, refuted) == wrong else "undecided"

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
    """The verdict of a chain, which holds if all of its links do; one that fails breaks it."""
    found = {link.verdict for link in links}
    if "fails" in found:
        return "fails"
    return "holds" if found == {"holds"} else "undecided"


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
