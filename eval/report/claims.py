"""The claims ledger: what the paper claims, what decides it, and what was found here.

A claim's words and its statistic stand in `CLAIMS`, in code, before any data are seen; value,
interval and verdict follow from the links that its function returns (`claims_evidence`). The
paper's claims are conditional on a merge-ready base: where the study `readiness` has been run, all
pages begin with what it found, and the claim that readiness itself asks for is a precondition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report import claims_scores as scores
from eval.report import claims_studies as studies
from eval.report.claims_evidence import OUTSIDE, VERDICTS, Case, Evidence, NotTestable, link_record
from eval.report.intervals import resampled
from eval.report.tables import DASH, markdown_table
from merit.io.artifacts import atomic_write, write_json

Record = dict[str, Any]

# what every statistic on scores has in common
PAIRED = "paired bootstrap over seeds and the questions of all benchmarks, 95 %"

# what fails where the readiness study's condition of this letter does
CONDITIONS = {
    "a": "a loss barrier",
    "b": "a random split's branch that is worse than the base on the whole mixture",
    "c": "joint training that ends too far from the base",
    "d": "random splits that are worse than joint training",
}


@dataclass(frozen=True)
class Claim:
    """One claim: `text` in our own words, `statistic` = what decides it, `decide` = how.

    Without `tally` it gets no verdict and no number here. A `precondition` is what a merge-ready
    base has by definition: no evidence where readiness was measured.
    """

    id: str
    text: str
    statistic: str
    decide: Callable[[Case], Evidence]
    tally: bool = True
    precondition: bool = False


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "MERIT beats joint training on the average over all benchmarks (in the paper with all five "
        "seeds).",
        f"Main method − joint training > 0; {PAIRED}. Seeds: Wilcoxon in the note.",
        scores.beats_joint,
    ),
    Claim(
        "C2",
        "Splitting at random and merging is already no worse than joint training.",
        f"Every random-K − joint training > −{scores.MARGIN:g} point; {PAIRED}. Refuted where an "
        "interval lies wholly below 0 and reaches below the margin.",
        scores.random_no_worse,
        precondition=True,
    ),
    Claim(
        "C3",
        "More axes are better: 1d < 2d < 3d.",
        f"merit-2d − merit-1d > 0 and merit-3d − merit-2d > 0; {PAIRED}.",
        scores.more_axes_better,
    ),
    Claim(
        "C4",
        "Splitting along PCA axes beats random splits of equal K, the more so the larger K.",
        f"merit − random > 0 at every K, and each doubling of K enlarges it; {PAIRED}.",
        scores.beats_random,
    ),
    Claim(
        "C5",
        "PCA splits beat K-means groups of equal K.",
        f"merit − kmeans > 0 at every K; {PAIRED}.",
        scores.beats_kmeans,
    ),
    Claim(
        "C6",
        "PCA of cosines is no worse than PCA of raw gradients, and clearly better with three axes.",
        f"merit − rawpca > −{scores.MARGIN:g} point with one and two axes, > 0 with three; "
        f"{PAIRED}.",
        scores.cosine_or_raw,
    ),
    Claim(
        "C7",
        "No loss barrier lies between branches, nor between a branch and the merged model.",
        f"Largest barrier of all paths < {studies.MAX_BARRIER_SHARE:.0%} of the mean loss at the "
        "path's ends.",
        studies.no_barriers,
    ),
    Claim(
        "C8",
        "The merged model stays closer to the base than the joint one (in the paper 2.4 to 2.9 "
        "times), the more so the longer the training.",
        "Distance of joint / distance of merged > 1 at every epoch count, and growing with it.",
        studies.stays_closer,
    ),
    Claim(
        "C9",
        "The merged model has the higher training loss and yet the better held-out score.",
        f"Training loss, merged − joint > 0 at every epoch count; main method − joint training > 0 "
        f"on the average; {PAIRED}.",
        studies.loss_and_score,
    ),
    Claim(
        "C10",
        "The merged model is flatter: Gaussian noise on its weights raises the loss less.",
        "Area under the loss increase, joint − merged > 0 at every epoch count.",
        studies.flatter,
    ),
    Claim(
        "C11",
        "200 calibration examples give a task gradient close to the one from 1000 (cosine about "
        "0.85).",
        f"Mean cosine over tasks > {studies.MIN_COSINE:.2f}.",
        studies.calibration_enough,
    ),
    Claim(
        "C12",
        "Every fifth gradient entry gives nearly the same cosine matrix.",
        f"Pearson and Spearman correlation of the cosines > {studies.MIN_CORRELATION:g}.",
        studies.stride_keeps,
    ),
    Claim(
        "C13",
        "The norms of task gradients are concentrated once the extremes are trimmed.",
        "The coefficient of variation falls with each trimming, to under "
        f"{studies.MAX_TRIMMED_CV:g}.",
        studies.norms_concentrate,
    ),
    Claim(
        "C14",
        "Conflict directions align with the top Hessian eigenvectors far above chance.",
        f"z-score against Gaussian directions > {studies.MIN_Z_SCORE:g}, raw and double-centred.",
        studies.directions_align,
    ),
    Claim(
        "C15",
        "Token-weighted averaging beats TIES, STAR, TSV-M and Iso-CTS on MERIT's branches.",
        "Token-weighted − each merger at its default settings > 0, in points of the average.",
        studies.averaging_beats_mergers,
    ),
    Claim(
        "C16",
        "Under SGD merging helps at large learning rates, and many axes collapse first at small "
        "ones.",
        "Best MERIT − joint > 0 at the largest rate of the sweep; most − fewest axes < 0 at the "
        "smallest.",
        studies.sgd_pattern,
    ),
    Claim(
        "C17",
        "Joint training collapses open-ended answers; MERIT keeps them.",
        "On the open-ended benchmarks, base − joint > 0, main method − joint > 0, and the main "
        "method lies nearer to the base than to joint training: (main − joint) − (base − main) > "
        "0; paired bootstrap over seeds and their questions, 95 %.",
        scores.open_ended_kept,
    ),
    Claim(
        "C18",
        "The recurring cost beyond joint training is small.",
        "The study `cost`: compute of branches and merge over joint-1ep's, seed by seed.",
        studies.wall_clock,
        tally=False,
    ),
    Claim(
        "C19",
        "The recipe transfers to text.",
        f"In the text experiment, main method − joint training > 0; {PAIRED}.",
        scores.transfers_to_text,
    ),
    Claim(
        "C21",
        "Ours: MERIT beats the joint model shrunk to MERIT's distance from the base.",
        f"Main method − distance-matched joint-shrunk > 0 on the average; {PAIRED}.",
        scores.beats_shrunk,
    ),
)


def ledger(case: Case) -> list[Record]:
    """One record a claim, in order: what claims.json holds."""
    return [record(claim, case) for claim in CLAIMS]


def record(claim: Claim, case: Case) -> Record:
    """The claim with its verdict; `value`, `low`, `high` and `n` are the deciding link's.

    `role` is "claim", or "precondition" where the readiness study asks for the same.
    """
    is_precondition = claim.precondition and "readiness" in case.studies
    stated: Record = {
        "id": claim.id,
        "role": "precondition" if is_precondition else "claim",
        "claim": claim.text,
        "statistic": claim.statistic,
    }
    without = dict.fromkeys(("value", "low", "high", "n", "table"))
    without |= {"text": DASH, "label": "", "unit": "", "links": []}
    try:
        found = claim.decide(case)
    except NotTestable as reason:
        verdict = "not testable here" if claim.tally else OUTSIDE
        return stated | without | {"verdict": verdict, "note": f"{reason}"}
    caveats = {case.studies[name].caveat(case.base_hash) for name in found.studies} - {""}
    notes = [found.note, *sorted(caveats)]
    if is_precondition:
        notes.append(_precondition_note(case))
    stated["note"] = "; ".join(note for note in notes if note)
    if not claim.tally:
        return stated | without | {"verdict": OUTSIDE, "table": found.table}
    link = found.deciding
    return stated | {
        "verdict": found.verdict,
        "value": link.value,
        "low": link.low,
        "high": link.high,
        "n": link.n,
        "unit": link.unit,
        "label": link.label,
        "text": link.text(),
        "table": found.table,
        "links": [link_record(link) for link in found.links],
    }


def _precondition_note(case: Case) -> str:
    note = "merge-readiness asks for it (condition d), so that it is no evidence"
    if case.studies["readiness"].summary.get("decided_by_d"):
        note += "; here the other conditions hold, and readiness hinges on it"
    return note


def readiness(case: Case) -> str:
    """One line on whether the base is merge-ready; "" where the study has not been run."""
    if "readiness" not in case.studies:
        return ""
    study = case.studies["readiness"]
    link = f"[readiness]({study.path}/result.json)"
    if study.summary.get("merge_ready"):
        return f"Merge-ready: the conditions that the paper's claims rest on hold here ({link}).\n"
    failed = list(study.summary.get("failed", ()))
    reasons = [f"{letter}: {CONDITIONS.get(letter, DASH)}" for letter in failed]
    verb = "conditions that fail" if len(failed) > 1 else "condition that fails"
    return (
        f"**Not merge-ready** ({verb}: {'; '.join(reasons)}; see {link}): the paper's claims are "
        "conditional on a merge-ready base, so what follows is no evidence for or against them.\n"
    )


def _listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


# --- pages --------------------------------------------------------------------------------------


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
    at = "At mini scale, of" if case.experiment.data.source.startswith("mini_") else "Of"
    sentence = f"{at} the {len(counted(records))} claims counted in {where}, {tally(records)}."
    asked = [record["id"] for record in records if record["role"] == "precondition"]
    timed = [record["id"] for record in records if record["verdict"] == OUTSIDE]
    apart = [f"{name} is a precondition" for name in asked]
    apart += [f"{name} is wall-clock time" for name in timed]
    return f"{sentence} Not counted: {_listed(apart)}." if apart else sentence


def claims_line(records: Sequence[Record], case: Case) -> str:
    """For the summary: merge-readiness where it was measured, and the tally."""
    found = tally_sentence(records, case, "the [ledger](claims.md)")
    return "\n".join(part for part in (readiness(case), f"{found}\n") if part)


def short_part(records: Sequence[Record], case: Case) -> str:
    """Markdown for the experiment's page: claim, verdict, what decided it."""
    rows = [["claim", "", "verdict", "decided by"]]
    for found in records:
        decided = f"{found['label']}: {found['text']}" if found["links"] else found["note"]
        rows.append([found["id"], found["claim"], f"**{shown_verdict(found)}**", decided])
    parts = [
        "### Claims\n",
        readiness(case),
        f"{tally_sentence(records, case)} What decides each one was written down before: "
        "[claims.md](claims.md), [claims.json](claims.json).\n",
        _left_aligned(rows),
    ]
    return "\n".join(part for part in parts if part)


def ledger_page(records: Sequence[Record], case: Case) -> str:
    """claims.md: every claim with its statistic, all of its links, notes and table."""
    parts = [
        f"# Claims: {case.experiment.report.title}\n",
        readiness(case),
        "Generated by the report stage; no verdict is typed by hand. "
        f"{tally_sentence(records, case)} A claim holds where the interval lies wholly on its "
        "side, does not hold where it lies wholly on the other side, and is inconclusive in "
        "between; a claim with several parts holds if all of them hold. Intervals are 95 % each, "
        "not adjusted for the number of "
        f"claims; those of scores are by bootstrap {resampled(case.results)}.\n",
    ]
    for found in records:
        parts.append(f"## {found['id']}: {shown_verdict(found)}\n\n{found['claim']}\n")
        parts.append(f"Decided by: {found['statistic']}\n")
        if found["links"]:
            rows = [["part", "found", "claimed", "n", "verdict"]]
            for link in found["links"]:
                keys = ("label", "text", "claimed", "n", "verdict")
                rows.append([str(link[key]) for key in keys])
            parts.append(_left_aligned(rows))
            parts.append(f"Numbers: [{Path(found['table']).name}]({found['table']})\n")
        if found["note"]:
            note = str(found["note"])
            parts.append(f"{note[0].upper()}{note[1:]}.\n")
    return "\n".join(part for part in parts if part)


def write_ledger(records: Sequence[Record], case: Case, out: Path) -> None:
    """claims.json and claims.md."""
    write_json(out / "claims.json", list(records))
    atomic_write(out / "claims.md", ledger_page(records, case))


def _left_aligned(rows: list[list[str]]) -> str:
    return markdown_table(rows).replace("---:|", "---|")
