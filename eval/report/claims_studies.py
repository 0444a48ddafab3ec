"""Claims that the studies decide, from the tables and the summary of their result.json.

`READS` is all that is read. What is absent is "not testable here".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from eval.report.claims_evidence import Case, Evidence, Link, NotTestable
from eval.report.claims_scores import difference, joint_method, main_method, seeds_note
from eval.report.studies import StudyResult

# study -> table stem (or "summary") -> columns (or keys)
READS: dict[str, dict[str, tuple[str, ...]]] = {
    "connectivity": {"table05_linear_mode_connectivity": ("path", "barrier_share")},
    "epochs": {
        "table01_merge_readiness": (
            *("epoch", "displacement_ratio", "train_loss_gap", "train_loss_gap_se"),
            *("flatness_auc_gap", "flatness_auc_gap_std"),  # joint - merged, std over draws
        ),
        "summary": ("num_draws",),
    },
    "calibration": {
        "summary": ("n", "mean_cosine", "low", "high", "num_units", "unit", "reference"),
    },
    "fidelity": {
        "table16_stride5_fidelity": ("metric", "value", "std_error"),
        "table19_gradient_norms": ("metric", "raw", "trimmed_5pct", "trimmed_10pct"),
        "summary": ("stride", "num_tasks"),
    },
    "hessian": {"summary": ("raw_z_score", "centered_z_score")},
    "sgd": {"summary": ("gain_at_largest_rate", "collapse_at_smallest_rate")},  # with _low, _high
    "mergers": {
        # difference = merger - token-weighted, in points; tuning "default" or "best"
        "table12_posthoc_merging_7b": (
            *("merge", "tuning", "difference", "difference_low", "difference_high"),
            "num_questions",
        )
    },
    "readiness": {"summary": ("merge_ready", "failed", "decided_by_d")},
}

MAX_BARRIER_SHARE = 0.01  # of the mean loss at a path's ends: what counts as zero
MIN_COSINE = 0.80  # "about 0.85": table 11 has 0.847 at 200 and 0.814 at 150 examples
MIN_CORRELATION = 0.98
MAX_TRIMMED_CV = 0.25  # table 19: 0.39 raw, 0.23 and 0.17 trimmed
MIN_Z_SCORE = 5.0
MERGERS = ("ties", "star", "tsv", "iso-cts")  # those of table 12


# --- reading ------------------------------------------------------------------------------------


def _study(case: Case, name: str) -> StudyResult:
    if name not in case.studies:
        raise NotTestable(f"the study `{name}` has not been run for this experiment")
    return case.studies[name]


def _rows(study: StudyResult, stem: str) -> Sequence[Mapping[str, Any]]:
    rows = study.tables.get(stem)
    if not rows:
        raise NotTestable(f"the study `{study.name}` has no table `{stem}`")
    return rows


def _number(study: StudyResult, row: Mapping[str, Any], key: str) -> float:
    if row.get(key) is None:
        raise NotTestable(f"the study `{study.name}` has no `{key}`")
    return float(row[key])


def _limits(value: float, error: float | None) -> tuple[float | None, float | None]:
    """value -+ 1.96 standard errors, where there is one."""
    return (None, None) if error is None else (value - 1.96 * error, value + 1.96 * error)


def _metric(study: StudyResult, stem: str, name: str) -> Mapping[str, Any]:
    """The row of a table of metrics."""
    for row in _rows(study, stem):
        if row.get("metric") == name:
            return row
    raise NotTestable(f"the study `{study.name}` has no metric `{name}` in `{stem}`")


def _from_summary(study: StudyResult, key: str, link: Link) -> Link:
    """`link` with the summary's number `key`, and `key_low` and `key_high` where there are any."""
    summary = study.summary
    return replace(
        link,
        value=_number(study, summary, key),
        low=summary.get(f"{key}_low"),
        high=summary.get(f"{key}_high"),
        n=int(summary.get(f"{key}_n", summary.get("num_questions", 1))),
    )


def _evidence(study: StudyResult, stem: str, links: Sequence[Link], note: str = "") -> Evidence:
    file = f"{stem}.csv" if stem in study.tables else "result.json"
    return Evidence(links, f"{study.path}/{file}", note, (study.name,))


# --- the claims ---------------------------------------------------------------------------------


def no_barriers(case: Case) -> Evidence:
    """C7."""
    study, stem = _study(case, "connectivity"), "table05_linear_mode_connectivity"
    rows = _rows(study, stem)
    worst = max(_number(study, row, "barrier_share") for row in rows)
    link = Link(
        f"largest barrier of {len(rows)} paths",
        100 * worst,
        len(rows),
        bound=100 * MAX_BARRIER_SHARE,
        side="below",
        unit="%",
    )
    return _evidence(study, stem, [link], "in percent of the mean loss at the path's ends")


def stays_closer(case: Case) -> Evidence:
    """C8: the ratio of distances above 1 at each epoch count, and growing."""
    study, stem = _study(case, "epochs"), "table01_merge_readiness"
    rows = _rows(study, stem)
    if len(rows) < 2:
        raise NotTestable("the study `epochs` has only one number of epochs")
    ratios = [_number(study, row, "displacement_ratio") for row in rows]
    links = [
        Link(f"ratio at epoch {row['epoch']:g}", ratio, 1, bound=1.0)
        for row, ratio in zip(rows, ratios, strict=True)
    ]
    links += [
        Link(f"growth of the ratio, epoch {a['epoch']:g} to {b['epoch']:g}", after - before, 1)
        for (a, b), (before, after) in zip(
            itertools.pairwise(rows), itertools.pairwise(ratios), strict=True
        )
    ]
    note = f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}; the paper's 2.43 to 2.92"
    return _evidence(study, stem, links, note)


def loss_and_score(case: Case) -> Evidence:
    """C9: higher training loss at each epoch count, and the better score."""
    study, stem = _study(case, "epochs"), "table01_merge_readiness"
    links = []
    for row in _rows(study, stem):
        gap = _number(study, row, "train_loss_gap")
        low, high = _limits(gap, row.get("train_loss_gap_se"))
        n = int(study.summary.get("num_examples", 1))
        label = f"training loss, merged − joint, epoch {row['epoch']:g}"
        links.append(Link(label, gap, n, low, high))
    link, found = difference(case, main_method(case), joint_method(case))
    return _evidence(study, stem, [*links, link], f"score {seeds_note(found)}")


def flatter(case: Case) -> Evidence:
    """C10: a smaller area under the loss increase at each epoch count."""
    study, stem = _study(case, "epochs"), "table01_merge_readiness"
    n = int(study.summary.get("num_draws", 1))
    links = []
    for row in _rows(study, stem):
        gap, deviation = _number(study, row, "flatness_auc_gap"), row.get("flatness_auc_gap_std")
        low, high = _limits(gap, None if deviation is None else deviation / math.sqrt(n))
        links.append(Link(f"AUC, joint − merged, epoch {row['epoch']:g}", gap, n, low, high))
    return _evidence(study, stem, links, "interval over random directions")


def calibration_enough(case: Case) -> Evidence:
    """C11: at the size nearest to the paper's 200."""
    study = _study(case, "calibration")
    found = study.summary
    link = Link(
        f"cosine at {found.get('n')} examples",
        _number(study, found, "mean_cosine"),
        int(found.get("num_units", 1)),
        found.get("low"),
        found.get("high"),
        bound=MIN_COSINE,
    )
    unit = {"family": "families"}.get(str(found.get("unit")), "tasks")
    note = f"interval over {unit}; reference {found.get('reference')} examples, the paper's 1000"
    return _evidence(study, "table11_calibration", [link], note)


def stride_keeps(case: Case) -> Evidence:
    """C12."""
    study, stem = _study(case, "fidelity"), "table16_stride5_fidelity"
    links = []
    for metric in ("pearson", "spearman"):
        row = _metric(study, stem, metric)
        value = _number(study, row, "value")
        low, high = _limits(value, row.get("std_error"))
        n = int(study.summary.get("num_tasks", 1))
        links.append(Link(f"{metric} correlation", value, n, low, high, bound=MIN_CORRELATION))
    return _evidence(study, stem, links, f"stride {study.summary.get('stride')}; n = tasks")


def norms_concentrate(case: Case) -> Evidence:
    """C13: each trimming lowers the coefficient of variation, to under a quarter at last."""
    study, stem = _study(case, "fidelity"), "table19_gradient_norms"
    row = _metric(study, stem, "coefficient_of_variation")
    columns = ("raw", "trimmed_5pct", "trimmed_10pct")
    values = [_number(study, row, column) for column in columns]
    n = int(study.summary.get("num_tasks", 1))
    links = [
        Link(f"CV, {before} − {after}", a - b, n)
        for (before, after), (a, b) in zip(
            itertools.pairwise(columns), itertools.pairwise(values), strict=True
        )
    ]
    links.append(Link("CV, trimmed_10pct", values[-1], n, bound=MAX_TRIMMED_CV, side="below"))
    note = f"CV {', '.join(f'{value:.2f}' for value in values)}; the paper's 0.39, 0.23, 0.17"
    return _evidence(study, stem, links, note)


def directions_align(case: Case) -> Evidence:
    """C14."""
    study = _study(case, "hessian")
    links = [
        _from_summary(study, key, Link(key.replace("_", " "), math.nan, 1, bound=MIN_Z_SCORE))
        for key in READS["hessian"]["summary"]
    ]
    return _evidence(study, "table21_hessian_pca_alignment", links)


def averaging_beats_mergers(case: Case) -> Evidence:
    """C15: all four of table 12 at their published default settings."""
    study, stem = _study(case, "mergers"), "table12_posthoc_merging_7b"
    found = {row["merge"]: row for row in _rows(study, stem) if row.get("tuning") == "default"}
    links = []
    for name in MERGERS:
        if name not in found:
            raise NotTestable(f"the study `mergers` has no {name} at its defaults")
        keys = ("difference", "difference_high", "difference_low")
        value, low, high = (-_number(study, found[name], key) for key in keys)
        n = int(found[name].get("num_questions", 1))
        links.append(Link(f"token-weighted − {name}", value, n, low, high, unit="points"))
    return _evidence(study, stem, links, "with the mergers' scales tuned: see the table")


def sgd_pattern(case: Case) -> Evidence:
    """C16."""
    study = _study(case, "sgd")
    gain = Link("best MERIT − joint, largest rate", math.nan, 1, unit="points")
    fall = Link("most − fewest axes, smallest rate", math.nan, 1, side="below", unit="points")
    links = [
        _from_summary(study, "gain_at_largest_rate", gain),
        _from_summary(study, "collapse_at_smallest_rate", fall),
    ]
    return _evidence(study, "table18_sgd_lr_sweep", links)


def wall_clock(case: Case) -> Evidence:
    """C18: where its numbers stand; seconds differ from run to run and are not read."""
    study = _study(case, "cost")
    note = (
        "wall-clock times differ from run to run, so they stand, with their interval and what "
        f"follows from it, in the study's own folder alone: [cost]({study.path}/result.json)"
    )
    return _evidence(study, "table15_wall_clock", [], note)
