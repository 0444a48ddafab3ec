"""The report of an experiment without benchmarks: what to ship, by the held-out examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merit.config import Experiment
from merit.config.branches import plan
from merit.eval.measuring.models import models_of
from merit.eval.measuring.scores import interval
from merit.eval.report.figures import write_figures
from merit.eval.report.figures_partition import load_partition
from merit.eval.report.ledger import CONDITIONS
from merit.eval.report.provenance import Provenance
from merit.eval.report.render import render
from merit.eval.report.study_sections import load_studies, studies_part
from merit.eval.table_files import markdown_table
from merit.io.artifacts import Artifacts, atomic_write, write_json

REPORT = "report.json"
HEADER = ["method", "loss per token", "behind what is shipped", "short answers right (%)"]


def write_held_out_report(
    experiment: Experiment,
    artifacts: Artifacts,
    reports_dir: Path,
    out: Path,
    provenance: Provenance,
    planned: list[str],
) -> None:
    """README.md with figures and report.json, to `out`, where the studies' figures lie already."""
    studies = load_studies(experiment.name, reports_dir, planned, out)
    figures = write_figures(experiment, artifacts, None, out)
    main = experiment.report.partition
    found: dict[str, Any] = {
        "experiment": experiment.name,
        "models": {m: str(artifacts.model(m)) for m in plan(experiment).models},
        "groups": groups(experiment, artifacts, main) if main else {},
        "parameter_hash": provenance.parameter_hash,
        "base_hash": provenance.base_hash,
        "studies": {name: study.summary for name, study in studies.items()},
    }
    told, command, rows = None, "", []
    if "held_out" in studies:
        told = found["recommendation"] = studies["held_out"].summary["recommendation"]
        rows = found["methods"] = list(studies["held_out"].tables["held_out"])
        command = found["command"] = shipping(experiment, artifacts, told)
    other = None  # the main method at its best distance, the last of its rows, if not shipped
    if told and main != told["method"]:
        other = next((row for row in reversed(rows) if row["method"] == main), None)
    ready = studies.get("readiness")
    conditions = {
        CONDITIONS[row["condition"]]: row["holds"]
        for row in (ready.tables["readiness"] if ready else ())
    }
    write_json(out / REPORT, found)
    page = render(
        "own.md.j2",
        name=experiment.name,
        title=experiment.report.title,
        told=told,
        command=command,
        other=other,
        branches=studies["held_out"].summary["branches"] if told else [],
        table=markdown_table([HEADER, *map(shown, rows)]) if rows else "",
        verdict=ready.summary["verdict"] if ready else "",
        conditions=conditions,
        groups=found["groups"],
        main=main,
        figures=figures,
        studies=studies_part(studies, provenance.base_hash),
        provenance=provenance,
    )
    atomic_write(out / "README.md", page)


def groups(experiment: Experiment, artifacts: Artifacts, method: str) -> dict[str, list[str]]:
    """{group: its tasks} of the method's first seed."""
    view = load_partition(experiment, artifacts, method)
    found: dict[str, list[str]] = {str(g): [] for g in range(experiment.methods[method].num_groups)}
    for task, group in zip(view.tasks, view.groups, strict=True):
        found[str(group)].append(task)
    return found


def shipping(experiment: Experiment, artifacts: Artifacts, told: Mapping[str, Any]) -> str:
    """Where the recommended checkpoint lies, or the command that writes it."""
    folder = artifacts.model(models_of(experiment)[told["method"]][0].id)
    if told["c"] == 1:
        return str(folder)
    dtype = "" if experiment.merge_dtype == "base" else f" --dtype {experiment.merge_dtype}"
    return (
        f"merit merge --base {artifacts.base} --branches {folder} --scale {told['c']:g}{dtype} "
        f"--out {experiment.name}_shipped"
    )


def shown(row: Mapping[str, Any]) -> list[str]:
    """A candidate's line of the page's table."""
    value, low, high = interval(row, "behind")
    cells = [row["candidate"], f"{row['loss']:.3f}", f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"]
    if row["matches"] is None:
        return [*cells, "–"]
    right, least, most = interval(row, "matches")
    return [*cells, f"{right:.1f} [{least:.1f}, {most:.1f}]"]
