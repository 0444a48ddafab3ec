"""One recommendation: which checkpoint to ship, and whether the held-out examples decide it.

Chosen by the loss on the validation half; what it is ahead by is measured on the other half, so
that the choice does not flatter itself. Of candidates that are not told apart the simplest is
taken: the base, then fewer branches, then a model as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merit.eval.measuring.held_out import Array
from merit.eval.measuring.scores import Interval, Row, columns, interval, verdict
from merit.eval.statistics import LARGEST, paired_bootstrap

LEAST = 5  # examples of a task, with which they are drawn within it
Losses = Mapping[str, Array]  # task -> every example's loss, (num_seeds, num_examples)


@dataclass(frozen=True)
class Candidate:
    """A method at c times its models' distance from the base; `validation` is its mean loss.

    The base has no branches and c = 1.
    """

    method: str
    c: float
    num_branches: int
    validation: float
    test: Losses

    @property
    def name(self) -> str:
        """ "joint-1ep", or "joint-1ep at 0.5 times its distance"."""
        return self.method if self.c == 1 else f"{self.method} at {self.c:g} times its distance"

    @property
    def effort(self) -> tuple[int, bool]:
        return self.num_branches, self.c != 1


def recommend(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """What to ship, in names, numbers and `words`; and `rows`, one per candidate.

    `decided` if all other methods are behind it, else `undecided` names those that are not. A row
    has the candidate's loss minus that of what is shipped, on the test half, with the interval of a
    paired bootstrap over examples.
    """
    first = min(candidates, key=lambda one: (one.validation, one.effort))
    others = [one for one in candidates if one is not first]
    close = [one for one in others if verdict(behind(one, first)) != "ahead"]  # a higher loss
    ship = min([first, *close], key=lambda one: one.effort)
    rows: list[Row] = [
        {
            "candidate": one.name,
            "method": one.method,
            "c": one.c,
            "loss_validation": one.validation,
            **columns("behind", (0.0, 0.0, 0.0) if one is ship else behind(one, ship)),
        }
        for one in candidates
    ]
    rivals = [row for row in rows if row["method"] != ship.method]
    found = {
        "ship": ship.name,
        "method": ship.method,
        "c": ship.c,
        "decided": all(row["behind_low"] > 0 for row in rivals),
        "undecided": [row["candidate"] for row in rivals if row["behind_low"] <= 0],
        "runner_up": min(rivals, key=lambda row: row["behind"], default=None),
    }
    return found | {"words": words(found), "rows": rows}


def words(found: Mapping[str, Any]) -> str:
    """The recommendation in one or two sentences."""
    ship, other = found["ship"], found["runner_up"]
    if not found["decided"]:
        return (
            f"Not decided: {', '.join([ship, *found['undecided']])} are not told apart by the "
            f"held-out examples. Ship {ship}, the simplest of them."
        )
    if other is None:
        return f"Ship {ship}: there is nothing else to compare."
    value, low, high = interval(other, "behind")
    return (
        f"Ship {ship}: its held-out loss per token is {value:.3f} [{low:.3f}, {high:.3f}] nats "
        f"lower than that of the next method, {other['candidate']}."
    )


def mean_loss(losses: Losses) -> float:
    """The mean over tasks of the mean over their examples (and seeds)."""
    return float(np.mean([values.mean() for values in losses.values()]))


def behind(one: Candidate, other: Candidate) -> Interval:
    """How much higher one's loss is than the other's: mean over tasks, with its interval."""
    _, found = paired_bootstrap(strata(one.test), strata(other.test))
    return found.difference, found.low, found.high


def strata(values: Losses) -> Losses:
    """What examples are drawn within: their tasks; all together if one has fewer than `LEAST`.

    One or two examples cannot tell how much their task's examples differ. Weighted by N / (T n),
    with n of N examples in an example's task and T tasks, the mean is still that over tasks.
    """
    counts = [found.shape[-1] for found in values.values()]
    if min(counts) >= LEAST:
        return values
    weights = [sum(counts) / (len(counts) * n) for n in counts]
    pooled = [w * found for w, found in zip(weights, values.values(), strict=True)]
    return {"all": np.minimum(np.concatenate(pooled, axis=-1), LARGEST)}
