"""The claims ledger: what the paper claims, what decides it, and what was found here.

A claim's words and its statistic stand in claims.yaml, written before any data are seen; value,
interval and verdict follow from the links that its rule returns. The paper's claims are conditional
on a merge-ready base: if the study `readiness` has been run, all pages begin with what it found,
and the claim that readiness itself asks for is a precondition.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merit.eval.report import rules, study_rules
from merit.eval.report.cells import resampled
from merit.eval.report.claims import Case, Claim, load_claims
from merit.eval.report.render import render
from merit.eval.statistics import LEVEL
from merit.eval.verdict import OUTSIDE, VERDICTS, Evidence, Link, NotTestable
from merit.io.artifacts import atomic_write, write_json

Record = dict[str, Any]

RULES: dict[str, Callable[[Claim, Case], Evidence]] = {
    rule.__name__: rule
    for rule in (
        *(rules.beats, rules.random_no_worse, rules.more_axes_better, rules.beats_random),
        *(rules.beats_kmeans, rules.cosine_or_raw, rules.open_ended_kept, rules.transfers_to_text),
        *(study_rules.measured, study_rules.measured_and_beats_joint, study_rules.largest),
        *(study_rules.above_and_growing, study_rules.falling_to_under),
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


def ledger(case: Case) -> list[Record]:
    """One record per claim, in order: what claims.json holds."""
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
        "verdict": OUTSIDE if claim.role == "outside" else "not tested",
        **{key: getattr(claim, key) for key in ("shown", "distance", "benchmarks")},
        **dict.fromkeys(("value", "low", "high", "n", "num_bases", "table")),
        **{"text": "–", "label": "", "unit": "", "links": [], "by_base": {}},
    }
    if claim.role == "outside":
        return stated | {"note": claim.note}
    try:
        found = evidence(claim, case)
    except NotTestable as reason:
        return stated | {"note": f"{reason}"}
    caveats = {case.studies[name].caveat(case.base_hash) for name in found.studies} - {""}
    notes = [found.note, *sorted(caveats), _precondition_note(case) if is_precondition else ""]
    stated |= {"note": "; ".join(note for note in notes if note), "table": found.table}
    shown = _link_record(found.deciding)
    del shown["claimed"]
    links = [_link_record(link) for link in found.links]
    verdict = found.verdict
    by_base = {name: _on(claim, case, name) for name in case.bases} if claim.shown else {}
    by_base = {name: one for name, one in by_base.items() if one}
    return stated | shown | {"verdict": verdict, "links": links, "by_base": by_base}


def evidence(claim: Claim, case: Case) -> Evidence:
    """What decides the claim. Raises NotTestable where something that it speaks of is missing."""
    if claim.distance == "best":
        if not case.best:
            raise NotTestable("the study `control` has not been run for this experiment")
        case = replace(case, bases=case.best)
    return RULES[claim.rule](claim, case)


def _on(claim: Claim, case: Case, name: str) -> Record:
    """Verdict and links on one base; {} where the claim cannot be tested on it."""
    try:
        found = evidence(claim, case.on(name))
    except NotTestable:
        return {}
    keys = ("label", "value", "low", "high", "verdict")
    links = [{key: _link_record(link)[key] for key in keys} for link in found.links]
    return {"verdict": found.verdict, "links": links}


def _link_record(link: Link) -> Record:
    keys = ("label", "value", "low", "high", "n", "num_bases", "unit", "verdict")
    found = {key: getattr(link, key) for key in keys}
    return found | {"claimed": f"{link.side} {link.bound:g}", "text": link.text()}


def _precondition_note(case: Case) -> str:
    note = "merge-readiness asks for it (condition d), so that it is no evidence"
    if case.studies["readiness"].summary.get("decided_by_d"):
        note += "; here the other conditions hold, and readiness hinges on it"
    return note


def readiness(case: Case) -> str:
    """One line on whether the base is merge-ready; "" if the study has not been run."""
    if "readiness" not in case.studies:
        return ""
    study = case.studies["readiness"]
    link = f"[readiness]({study.path}/result.json)"
    if study.summary["merge_ready"]:
        return f"Merge-ready: the conditions that the paper's claims rest on hold here ({link})."
    failed = [f"{letter}: {CONDITIONS[letter]}" for letter in study.summary["failed"]]
    return (
        f"**Not merge-ready** (what fails: {'; '.join(failed)}; see {link}): the paper's claims "
        "are conditional on a merge-ready base, so what follows is no evidence for or against them."
    )


def counts(records: Sequence[Record]) -> dict[str, int]:
    """Verdict -> number of claims with it, without preconditions and wall-clock times."""
    counted = [r for r in records if r["role"] == "claim" and r["verdict"] != OUTSIDE]
    found = Counter(record["verdict"] for record in counted)
    return {verdict: found[verdict] for verdict in VERDICTS}


def tally(records: Sequence[Record], case: Case) -> str:
    """The counts in one sentence, and which claims they leave out."""
    found = counts(records)
    apart = [f"{r['id']}, a precondition" for r in records if r["role"] == "precondition"]
    apart += [f"{r['id']}, wall-clock time" for r in records if r["verdict"] == OUTSIDE]
    mini = case.experiment.data.source.startswith("mini_")
    words = ", ".join(f"{verdict}: {number}" for verdict, number in found.items())
    text = f"{'At mini scale, of' if mini else 'Of'} {sum(found.values())} claims, {words}."
    return text + (f" Not counted: {'; '.join(apart)}." if apart else "")


def write_ledger(records: Sequence[Record], case: Case, out: Path) -> None:
    """claims.json and claims.md: every claim with its statistic, all links, notes and table."""
    write_json(out / "claims.json", list(records))
    page = render(
        "claims.md.j2",
        records=records,
        title=case.experiment.report.title,
        readiness=readiness(case),
        tally=tally(records, case),
        level=f"{100 * LEVEL:g} %",
        resampled=resampled(case.results),
    )
    atomic_write(out / "claims.md", page)
