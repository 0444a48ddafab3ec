"""Claims that the studies decide: what their records name in a result.json, as inequalities.

`measured` reads; the other rules take what it read further. What is absent is "not tested".
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from merit.eval.measuring.scores import Row
from merit.eval.report.claims import Case, Claim, Reading
from merit.eval.report.rules import difference, joint_method, main_method, seeds_note
from merit.eval.report.study_sections import StudyResult
from merit.eval.verdict import Evidence, Link, NotTestable


def measured(claim: Claim, case: Case) -> Evidence:
    """One link per row of each reading.

    The note may name the summary's keys, `path` (the study's folder), `values` (of the links) and
    `units` (what was sampled).
    """
    if claim.study not in case.studies:
        raise NotTestable(f"the study `{claim.study}` has not been run for this experiment")
    study = case.studies[claim.study]
    links = [
        _link(claim, study, reading, row)
        for reading in claim.readings
        for row in _rows(claim, study, reading)
    ]
    words = {
        "path": study.path,
        "values": ", ".join(f"{link.value:.2f}" for link in links),
        "units": "families" if study.summary.get("unit") == "family" else "tasks",
    }
    file = f"{claim.table}.csv" if claim.table in study.tables else "result.json"
    note = _filled(claim.note, {**study.summary, **words})
    return Evidence(links, f"{study.path}/{file}", note, (study.name,))


def measured_and_beats_joint(claim: Claim, case: Case) -> Evidence:
    """`measured`, and the main method's score above joint training's."""
    found, pair = measured(claim, case), (main_method(case), joint_method(case))
    links = [*found.links, difference(case, *pair)]
    return replace(found, links=links, note=f"score {seeds_note(case, *pair)}")


def largest(claim: Claim, case: Case) -> Evidence:
    """Only the largest of all paths."""
    found = measured(claim, case)
    worst = max(found.links, key=lambda link: link.value)
    n = len(found.links)
    return replace(found, links=[replace(worst, label=f"largest {worst.label} of {n} paths", n=n)])


def above_and_growing(claim: Claim, case: Case) -> Evidence:
    """`measured` at every epoch count, and the growth from each to the next."""
    found = measured(claim, case)
    if len(found.links) < 2:
        raise NotTestable(f"the study `{claim.study}` has only one number of epochs")
    rows = case.studies[claim.study].tables[claim.table]
    named = [(f"{row['epoch']:g}", link) for row, link in zip(rows, found.links, strict=True)]
    links = [replace(link, label=f"{link.label} at epoch {epoch}") for epoch, link in named]
    for (a, before), (b, after) in itertools.pairwise(named):
        label = f"growth of the {after.label}, epoch {a} to {b}"
        links.append(Link(label, after.value - before.value, after.n))
    return replace(found, links=links)


def falling_to_under(claim: Claim, case: Case) -> Evidence:
    """Each of the values below the one before, and the last one below the bound."""
    found = measured(claim, case)
    links = [
        Link(f"CV, {before.label} − {after.label}", before.value - after.value, after.n)
        for before, after in itertools.pairwise(found.links)
    ]
    last = found.links[-1]
    return replace(found, links=[*links, replace(last, label=f"CV, {last.label}", side="below")])


def _rows(claim: Claim, study: StudyResult, reading: Reading) -> Iterator[Row]:
    """The summary, or the table's rows: all of them, or the first one that has `rows`' values."""
    if claim.source == "summary":
        yield study.summary
        return
    rows = study.tables.get(claim.table)
    if not rows:
        raise NotTestable(f"the study `{study.name}` has no table `{claim.table}`")
    if not reading.rows:
        yield from rows
    for wanted in reading.rows:
        match = next((row for row in rows if wanted.items() <= row.items()), None)
        if match is None:
            column, value = next(iter(wanted.items()))
            absent = reading.absent.format(**wanted) or f"{column} `{value}` in `{claim.table}`"
            raise NotTestable(f"the study `{study.name}` has no {absent}")
        yield match


def _link(claim: Claim, study: StudyResult, reading: Reading, row: Row) -> Link:
    value = reading.factor * _number(study, row, reading.value)
    n = int(row.get(reading.n) or study.summary.get(reading.n) or 1)
    low = high = None
    if reading.limits and claim.source == "summary":  # a single unit has none
        low, high = (row.get(key) for key in reading.limits)
    elif reading.limits:
        low, high = sorted(reading.factor * _number(study, row, key) for key in reading.limits)
    elif (error := row.get(reading.error or reading.deviation)) is not None:
        error = error / math.sqrt(n) if reading.deviation else error
        low, high = value - 1.96 * error, value + 1.96 * error
    label = _filled(reading.label, row)
    return Link(label, value, n, low, high, claim.bound, reading.side, unit=reading.unit)


def _number(study: StudyResult, row: Row, key: str) -> float:
    if row.get(key) is None:
        raise NotTestable(f"the study `{study.name}` has no `{key}`")
    return float(row[key])


def _filled(text: str, values: Row) -> str:
    """`text` with the values that it names, "None" for those that there are none of."""
    return text.format_map(defaultdict(lambda: None, values))
