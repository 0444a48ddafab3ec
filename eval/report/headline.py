"""Five lines for a reader who opens the repository: what holds here, by how much, and what is open.

Every number comes from the claims' own functions and from the readiness and control studies; where
one of them has not been run its line says so.
"""

from __future__ import annotations

from typing import Any

from merit.eval.report.claims import Case, evidence
from merit.eval.report.render import points, render
from merit.eval.verdict import NotTestable, verdict


def headline(case: Case) -> str:
    """Markdown: a list of four; on a generated world with a fifth, what it cannot tell."""
    return render(
        "headline.md.j2",
        mini=case.experiment.data.source.startswith("mini_"),
        readiness=case.studies["readiness"].summary if "readiness" in case.studies else None,
        random=_decided(case, "C4"),
        joint=_decided(case, "C1"),
        axes=_decided(case, "C3"),
        shrunk=_decided(case, "C21"),
        control=_best_distances(case) if "control" in case.studies else None,
    )


def _decided(case: Case, claim: str) -> dict[str, Any]:
    """A claim's verdict and links; of a chain over K also what it says of growth with K.

    `reason`, where it cannot be tested, is the only key.
    """
    try:
        found = evidence(claim, case)
    except NotTestable as reason:
        return {"reason": f"{reason}"}
    growth = [link for link in found.links if link.label.startswith("(")]
    level = [link for link in found.links if link not in growth]
    return {
        "reason": "",
        "verdict": found.verdict,
        "links": [f"{link.label} {link.text()}" for link in level],
        "ahead": sum(link.verdict == "holds" for link in level),
        "grows": verdict(growth),
    }


def _best_distances(case: Case) -> dict[str, Any]:
    """What is left at every method's own best distance from the base."""
    found = case.studies["control"].summary
    method, joint, random = (found[key] for key in ("method", "joint", "random"))
    ends = (f"{method} minus {joint}", f"{method} minus {random}")
    return {
        "factors": [f"{name} {found['best'][name]:g}" for name in (joint, random, method)],
        "differences": [
            f"{name} {points(*values)}"
            for name, values in found["differences"].items()
            if name.endswith(ends)
        ],
    }


def regime_map(case: Case) -> str:
    """The figure of where splitting helps, where the experiment has it; else ""."""
    study = case.studies.get("regime")
    drawn = study is not None and "regime" in study.figures
    return f"{study.drawn}/regime.png" if study and drawn else ""
