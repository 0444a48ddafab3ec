"""Five lines for a reader who opens the repository: what holds here, by how much, and what is open.

Every number comes from the claims' own functions and from the readiness and control studies; where
one of them has not been run its line says so.
"""

from __future__ import annotations

from collections.abc import Callable

from eval.report import claims_scores as scores
from eval.report.claims_evidence import Case, Evidence, NotTestable

OPEN = (
    "**What nobody knows before the 3B run**: the paper's fine-tuning moves its weights by 1 to "
    "2 % of their norm and its mixture is real; whether conflict-aware splitting is worth more "
    "there than the best shrinkage of a joint run has not been measured by anyone."
)


def headline(case: Case) -> str:
    """Markdown: a list of five."""
    lines = (_precondition(case), _against_random(case), _against_joint(case), _control(case), OPEN)
    return "".join(f"- {line}\n" for line in lines)


def _precondition(case: Case) -> str:
    if "readiness" not in case.studies:
        return "**Precondition**: merge-readiness was not measured here."
    found = case.studies["readiness"].summary
    share = found["relative_displacement"]["joint"]
    value, low, high = found["random_minus_joint"]
    state = "merge-ready" if found["merge_ready"] else "not merge-ready"
    failed = "" if found["merge_ready"] else f" (fails: {', '.join(found['failed'])})"
    return (
        f"**Precondition, measured first: {state}**{failed}. Joint training moves the weights by "
        f"{share:.1%} of their norm, the largest barrier between branches is "
        f"{found['max_barrier_share']:.1%} of their loss, and {found['random']} minus "
        f"{found['joint']} on validation is {_points(value, low, high)}."
    )


def _against_random(case: Case) -> str:
    title = "Splitting by conflict against splitting at random, K equal"
    try:
        found = scores.beats_random(case)
    except NotTestable as reason:
        return f"**{title}**: not testable here ({reason})."
    growth = [link for link in found.links if link.label.startswith("(")]
    level = [link for link in found.links if link not in growth]
    shown = "; ".join(f"{link.label} {link.text()}" for link in level)
    ahead = sum(link.verdict == "holds" for link in level)
    grows = Evidence(growth, found.table).verdict
    return (
        f"**{title}**: ahead at {ahead} of {len(level)} K ({shown}); that the advantage grows "
        f"with K, as the paper has it: {grows}."
    )


def _against_joint(case: Case) -> str:
    line = _claim(case, scores.beats_joint, "Against joint training", 1)
    try:
        more = scores.more_axes_better(case)
    except NotTestable:
        return line
    return f"{line} More axes are better (1d < 2d < 3d): {more.verdict} ({_links(more, 2)})."


def _control(case: Case) -> str:
    """The control as a claim (C21), and what is left at every method's own best distance."""
    line = _claim(
        case, scores.beats_shrunk, "The control: joint training shrunk towards the base", 1
    )
    if "control" not in case.studies:
        return line
    found = case.studies["control"].summary
    method, joint, random = (found[key] for key in ("method", "joint", "random"))
    parts = [
        f"{name} {_points(*found['differences'][name])}"
        for name in found["differences"]
        if name.endswith((f"{method} minus {joint}", f"{method} minus {random}"))
    ]
    scales = ", ".join(f"{name} {found['best'][name]:g}" for name in (joint, random, method))
    return (
        f"{line} With every method at its own best distance, chosen on validation (factors: "
        f"{scales}): {'; '.join(parts)}."
    )


def _claim(case: Case, decide: Callable[[Case], Evidence], title: str, count: int) -> str:
    try:
        found = decide(case)
    except NotTestable as reason:
        return f"**{title}**: not testable here ({reason})."
    where = " at mini scale" if case.experiment.data.source.startswith("mini_") else ""
    return f"**{title}**: {found.verdict}{where} ({_links(found, count)})."


def _links(found: Evidence, count: int) -> str:
    shown = [f"{link.label} {link.text()}" for link in found.links[:count]]
    return "; ".join(shown)


def _points(value: float, low: float, high: float) -> str:
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def regime_figure(case: Case) -> str:
    """The regime map, where the experiment has one."""
    if "regime" not in case.studies or "regime" not in case.studies["regime"].figures:
        return ""
    path = f"{case.studies['regime'].path}/figures/regime.png"
    words = (
        "When does splitting help? Average over the benchmarks against the learning rate, on a "
        "base that has most of the mixture's skills and on one that must still learn half of "
        "them; below, how far fine-tuning moves the weights."
    )
    return f"![{words}]({path})\n\n{words}\n"
