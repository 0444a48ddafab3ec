"""The claims ledger: what the paper claims, what decides it, and what was found here.

A claim's words and its statistic stand in claims.yaml, written before any data are seen; value,
interval and verdict follow from the links that its rule returns. The paper's claims are conditional
on a merge-ready base: where the study `readiness` has been run, all pages begin with what it found,
and the claim that readiness itself asks for is a precondition.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merit.eval.report import claims_scores as scores
from merit.eval.report import claims_studies as studies
from merit.eval.report.claims_file import Case, Claim, load_claims
from merit.eval.report.intervals import resampled
from merit.eval.report.render import render
from merit.eval.report.tables import DASH
from merit.eval.statistics import LEVEL
from merit.eval.verdict import OUTSIDE, VERDICTS, Evidence, Link, NotTestable
from merit.io.artifacts import atomic_write, write_json

Record = dict[str, Any]

RULES: dict[str, Callable[[Claim, Case], Evidence]] = {
    rule.__name__: rule
    for rule in (
        *(scores.beats_joint, scores.random_no_worse, scores.more_axes_better),
        *(scores.beats_random, scores.beats_kmeans, scores.cosine_or_raw),
        *(scores.open_ended_kept, scores.transfers_to_text, scores.beats_shrunk),
        *(studies.measured, studies.measured_and_beats_joint, studies.largest),
        *(studies.above_and_growing, studies.falling_to_under),
    )
}

# what fails where the readiness study's condition of this letter does
CONDITIONS = {
    "a": "a loss barrier",
    "b": "a random split's branch that is worse than the base on the whole mixture",
    "c": "joint training that ends too far from the base",
    "d": "random splits that are worse than joint training",
}


@functools.cache
def claims() -> dict[str, Claim]:
    """All claims by id, in order."""
    return {claim.id: claim for claim in load_claims(RULES)}


def evidence(name: str, case: Case) -> Evidence:
    """What decides the claim of this id here. Raises NotTestable where something is missing."""
    return RULES[claims()[name].rule](claims()[name], case)


def ledger(case: Case) -> list[Record]:
    """One record a claim, in order: what claims.json holds."""
    return [record(claim, case) for claim in claims().values()]


def record(claim: Claim, case: Case) -> Record:
    """The claim with its verdict; `value`, `low`, `high` and `n` are the deciding link's.

    `role` is "claim", or "precondition" where the readiness study asks for the same.
    """
    is_precondition = claim.role == "precondition" and "readiness" in case.studies
    stated: Record = {
        "id": claim.id,
        "role": "precondition" if is_precondition else "claim",
        "claim": claim.sentence,
        "statistic": claim.statistic,
        "verdict": OUTSIDE if claim.role == "outside" else "not testable here",
        **dict.fromkeys(("value", "low", "high", "n", "table")),
        **{"text": DASH, "label": "", "unit": "", "links": []},
    }
    try:
        found = evidence(claim.id, case)
    except NotTestable as reason:
        return stated | {"note": f"{reason}"}
    caveats = {case.studies[name].caveat(case.base_hash) for name in found.studies} - {""}
    notes = [found.note, *sorted(caveats), _precondition_note(case) if is_precondition else ""]
    stated |= {"note": "; ".join(note for note in notes if note), "table": found.table}
    if claim.role == "outside":
        return stated
    shown = _link_record(found.deciding)
    del shown["claimed"]
    links = [_link_record(link) for link in found.links]
    return stated | shown | {"verdict": found.verdict, "links": links}


def _link_record(link: Link) -> Record:
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


def _precondition_note(case: Case) -> str:
    note = "merge-readiness asks for it (condition d), so that it is no evidence"
    if case.studies["readiness"].summary.get("decided_by_d"):
        note += "; here the other conditions hold, and readiness hinges on it"
    return note


# --- pages --------------------------------------------------------------------------------------


def readiness(case: Case) -> str:
    """One line on whether the base is merge-ready; "" where the study has not been run."""
    if "readiness" not in case.studies:
        return ""
    study = case.studies["readiness"]
    return render(
        "claims_readiness.md.j2",
        path=study.path,
        merge_ready=study.summary.get("merge_ready"),
        failed=[f"{a}: {CONDITIONS.get(a, DASH)}" for a in study.summary.get("failed", ())],
    )


def shown_verdict(found: Record) -> str:
    """The verdict as pages show it."""
    is_precondition = found.get("role") == "precondition"  # records of before have no role
    return f"precondition: {found['verdict']}" if is_precondition else str(found["verdict"])


def counted(records: Sequence[Record]) -> list[Record]:
    """The claims that the tally counts: with a verdict, and no precondition of the others."""
    return [r for r in records if r["role"] == "claim" and r["verdict"] != OUTSIDE]


def tally(records: Sequence[Record]) -> str:
    """ "3 hold, 1 does not hold, ..." over all verdicts of the counted claims."""
    counts = Counter(record["verdict"] for record in counted(records))
    one = ("holds", "does not hold", "is inconclusive", "is not testable here")
    several = ("hold", "do not hold", "are inconclusive", "are not testable here")
    numbers = [counts[verdict] for verdict in VERDICTS]
    words = [a if n == 1 else b for n, a, b in zip(numbers, one, several, strict=True)]
    return ", ".join(f"{n} {word}" for n, word in zip(numbers, words, strict=True))


def tally_sentence(records: Sequence[Record], case: Case, where: str = "the ledger") -> str:
    """The tally with its scale, and what stands outside of it. Args: where: the ledger's name."""
    asked = [f"{r['id']} is a precondition" for r in records if r["role"] == "precondition"]
    timed = [f"{r['id']} is wall-clock time" for r in records if r["verdict"] == OUTSIDE]
    return render(
        "claims_tally.md.j2",
        mini=case.experiment.data.source.startswith("mini_"),
        where=where,
        num_counted=len(counted(records)),
        tally=tally(records),
        apart=asked + timed,
    ).strip()


def claims_line(records: Sequence[Record], case: Case) -> str:
    """For the summary: merge-readiness where it was measured, and the tally."""
    found = tally_sentence(records, case, "the [ledger](claims.md)")
    return render("claims_line.md.j2", readiness=readiness(case), tally=found)


def short_part(records: Sequence[Record], case: Case) -> str:
    """Markdown for the experiment's page: claim, verdict, what decided it."""
    return _page("claims_short.md.j2", records, case)


def ledger_page(records: Sequence[Record], case: Case) -> str:
    """claims.md: every claim with its statistic, all of its links, notes and table."""
    return _page("claims.md.j2", records, case)


def _page(template: str, records: Sequence[Record], case: Case) -> str:
    return render(
        template,
        records=records,
        title=case.experiment.report.title,
        readiness=readiness(case),
        tally=tally_sentence(records, case),
        level=f"{100 * LEVEL:g} %",
        resampled=resampled(case.results),
        shown=shown_verdict,
        cell=lambda text: text.replace("|", r"\|"),
    )


def write_ledger(records: Sequence[Record], case: Case, out: Path) -> None:
    """claims.json and claims.md."""
    write_json(out / "claims.json", list(records))
    atomic_write(out / "claims.md", ledger_page(records, case))
