"""The claims ledger: what the paper claims, what decides it, and what was found here.

A claim's words and its statistic stand in `CLAIMS`, in code, before any data are seen; value,
interval and verdict follow from the links that its function returns (`claims_evidence`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report import claims_scores as scores
from eval.report import claims_studies as studies
from eval.report.claims_evidence import VERDICTS, Case, Evidence, NotTestable, link_record
from eval.report.claims_theory import theory_holds
from eval.report.tables import DASH, markdown_table
from merit.io.artifacts import atomic_write, write_json

Record = dict[str, Any]

# what every statistic on scores has in common
PAIRED = "paired bootstrap over the questions of all benchmarks, 95 %"


@dataclass(frozen=True)
class Claim:
    """One claim: `text` in our own words, `statistic` = what decides it, `decide` = how."""

    id: str
    text: str
    statistic: str
    decide: Callable[[Case], Evidence]


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
        "0; paired bootstrap over their questions, 95 %.",
        scores.open_ended_kept,
    ),
    Claim(
        "C18",
        "The recurring cost beyond joint training is small.",
        f"Wall-clock overhead over joint-1ep < {studies.MAX_OVERHEAD:g} %.",
        studies.small_overhead,
    ),
    Claim(
        "C19",
        "The recipe transfers to text.",
        f"In the text experiment, main method − joint training > 0; {PAIRED}.",
        scores.transfers_to_text,
    ),
    Claim(
        "C20",
        "In its quadratic model the theory is exact.",
        "Largest relative deviation of every identity, and violation of every bound, on seeded "
        "random cases < 1e-8.",
        theory_holds,
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
    """The claim with its verdict; `value`, `low`, `high` and `n` are the deciding link's."""
    stated: Record = {"id": claim.id, "claim": claim.text, "statistic": claim.statistic}
    try:
        found = claim.decide(case)
    except NotTestable as reason:
        absent = dict.fromkeys(("value", "low", "high", "n", "table"))
        return (
            stated
            | absent
            | {
                "verdict": "not testable here",
                "text": DASH,
                "label": "",
                "unit": "",
                "note": f"{reason}",
                "links": [],
            }
        )
    link = found.deciding
    caveats = {case.studies[name].caveat(case.base_hash) for name in found.studies} - {""}
    return stated | {
        "verdict": found.verdict,
        "value": link.value,
        "low": link.low,
        "high": link.high,
        "n": link.n,
        "unit": link.unit,
        "label": link.label,
        "text": link.text(),
        "note": "; ".join(part for part in (found.note, *sorted(caveats)) if part),
        "table": found.table,
        "links": [link_record(link) for link in found.links],
    }


# --- pages --------------------------------------------------------------------------------------


def tally(records: Sequence[Record]) -> str:
    """ "3 hold, 1 does not hold, ..." over all verdicts."""
    counts = Counter(record["verdict"] for record in records)
    one = ("holds", "does not hold", "is inconclusive", "is not testable here")
    several = ("hold", "do not hold", "are inconclusive", "are not testable here")
    numbers = [counts[verdict] for verdict in VERDICTS]
    words = [a if n == 1 else b for n, a, b in zip(numbers, one, several, strict=True)]
    return ", ".join(f"{n} {word}" for n, word in zip(numbers, words, strict=True))


def claims_line(records: Sequence[Record]) -> str:
    """One sentence for the summary."""
    return f"Of the {len(records)} claims in the [ledger](claims.md), {tally(records)}.\n"


def short_part(records: Sequence[Record]) -> str:
    """Markdown for the experiment's page: claim, verdict, what decided it."""
    rows = [["claim", "", "verdict", "decided by"]]
    for found in records:
        decided = f"{found['label']}: {found['text']}" if found["links"] else found["note"]
        rows.append([found["id"], found["claim"], f"**{found['verdict']}**", decided])
    return (
        f"### Claims\n\nOf {len(records)} claims, {tally(records)}. What decides each one was "
        "written down before: [claims.md](claims.md), [claims.json](claims.json).\n\n"
        + _left_aligned(rows)
    )


def ledger_page(records: Sequence[Record], title: str) -> str:
    """claims.md: every claim with its statistic, all of its links, notes and table."""
    parts = [
        f"# Claims: {title}\n",
        f"Generated by the report stage; no verdict is typed by hand. Of {len(records)} claims, "
        f"{tally(records)}. A claim holds where the interval lies wholly on its side, does not "
        "hold where it lies wholly on the other side, and is inconclusive in between; a claim with "
        "several parts holds if all of them hold. Intervals are 95 % each, not adjusted for the "
        "number of claims.\n",
    ]
    for found in records:
        parts.append(f"## {found['id']}: {found['verdict']}\n\n{found['claim']}\n")
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
    return "\n".join(parts)


def write_ledger(records: Sequence[Record], title: str, out: Path) -> None:
    """claims.json and claims.md."""
    write_json(out / "claims.json", list(records))
    atomic_write(out / "claims.md", ledger_page(records, title))


def _left_aligned(rows: list[list[str]]) -> str:
    return markdown_table(rows).replace("---:|", "---|")
