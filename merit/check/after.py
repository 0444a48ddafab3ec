"""`merit preflight EXPERIMENT --after`: predicted beside actual, beside the paper's table 15."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pandas as pd

from merit.check.estimate import Work
from merit.check.stages import branch_hours, rows
from merit.config import Method
from merit.config.branches import Model
from merit.io.artifacts import REPORTS_DIR, Artifacts, read_json, read_jsonl

PAPER = REPORTS_DIR / "paper" / "table15_wall_clock.csv"
COLUMNS = {"table02": "v100x8_3b", "table03": "a100x8_7b"}  # of the paper's table that is compared
STAGES = {
    "base": "basin preparation",
    "gradients": "gradient extraction",
    "partition": "cosine similarity matrix",
}


def comparison(work: Work, paths: Artifacts) -> str:
    """A line a step: hours predicted, hours taken, tokens a second of both, the paper's words; then
    memory and disk, a line a stage.
    """
    column = COLUMNS.get(work.experiment.report.stem)
    paper = paper_times(PAPER, column) if column else {}
    predicted = {row.stage: row.hours for row in rows(work)}
    lines = [
        {
            "step": stage,
            "predicted hours": predicted.get(stage),
            "actual hours": hours(paths, stage),
            "paper": paper.get(name, ""),
        }
        for stage, name in STAGES.items()
    ]
    for name, method in work.experiment.methods.items():
        models = [m for m in work.plan.models.values() if m.method == name and m.branches]
        if models:
            said = paper.get(paper_name(method), "")
            lines.append({"step": name} | training(work, paths, models[0]) | {"paper": said})
    table = pd.DataFrame([{k: shown(v) for k, v in line.items()} for line in lines]).fillna("")
    peaks = pd.DataFrame(
        [{k: shown(v) for k, v in line.items()} for line in memory_and_disk(work, paths)]
    )
    head = (
        f"{work.experiment.name}, hours of one {work.machine.card.name}, or of a branch's "
        f"{work.gpus}; a method's are its branches' and its merge's of one seed, one after the "
        "other. Blank: not run here, or restored from the cache."
    )
    if column:
        head += f" The paper's: wall-clock time on 8 GPUs ({column})."
    columns = [c for c in table.columns if c != "paper"] + ["paper"] * bool(column)
    tables = [t.to_markdown(index=False, disable_numparse=True) for t in (table[columns], peaks)]
    below = (
        "Peak memory, actual: of the largest process; predicted: of all that run side by side. "
        "Disk: of the outputs."
    )
    return "\n\n".join([head, tables[0], below, tables[1]])


def memory_and_disk(work: Work, paths: Artifacts) -> list[dict[str, float | str | None]]:
    """A line a stage: peaks of memory and GB on the disk, predicted and found."""
    outputs = {
        **{"data": paths.data, "base": paths.base, "encode": paths.encoded},
        **{
            "gradients": paths.gradients,
            "partition": paths.partition,
            "merge": paths.folder / "models",
        },
        **{"train": paths.folder / "branches", "evaluate": paths.evaluation},
    }
    lines: list[dict[str, float | str | None]] = []
    for row in rows(work):
        if row.stage not in outputs:
            continue
        line: dict[str, float | str | None] = {"stage": row.stage}
        kinds = {"host": (row.host_gb, "peak_memory_mb")}
        if work.machine.is_gpu:
            kinds["GPU"] = (row.gpu_gb, "peak_gpu_memory_mb")
        for kind, (predicted, key) in kinds.items():
            line[f"predicted {kind} GB"] = predicted
            line[f"actual {kind} GB"] = peak(paths, row.stage, key)
        line["predicted disk GB"] = row.disk_gb
        line["actual disk GB"] = size(outputs[row.stage])
        lines.append(line)
    return lines


def peak(paths: Artifacts, stage: str, key: str) -> float | None:
    """GB of the stage's largest run here."""
    folder = paths.folder / "timings"
    files = [*folder.glob(f"{stage}.json"), *folder.glob(f"{stage}-*.json")]
    found = [values[key] for values in map(read_json, files) if key in values]
    return max(found) * 2**20 / 1e9 if found else None


def size(folder: Path) -> float | None:
    """GB of a folder's files, those that DVC links to its cache as well."""
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def training(work: Work, paths: Artifacts, model: Model) -> dict[str, float | None]:
    """Of one model's branches and merge."""
    expected = sum(branch_hours(work, work.plan.branches[b]) for b in model.branches) / work.gpus
    tokens = work.mixture.num_tokens * sum(
        work.plan.branches[b].epochs / work.plan.branches[b].num_groups for b in model.branches
    )
    taken = [hours(paths, f"train-{branch}") for branch in model.branches]
    known = [h for h in taken if h is not None]
    whole = sum(known) + (hours(paths, f"merge-{model.id}") or 0)
    rates = [
        row["tokens_per_second"]
        for branch in model.branches
        if paths.timing(branch).is_file()
        for row in read_jsonl(paths.timing(branch))
    ]
    return {
        "predicted hours": expected,
        "actual hours": whole if len(known) == len(taken) else None,
        "predicted tokens/s": tokens / expected / 3600,
        "actual tokens/s": statistics.median(rates) if rates else None,
    }


def shown(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.4g}"


def hours(paths: Artifacts, stage: str) -> float | None:
    """What the stage took when it last ran here."""
    path = paths.folder / "timings" / f"{stage}.json"
    return float(read_json(path)["seconds"]) / 3600 if path.is_file() else None


def paper_times(path: Path, column: str) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["stage"]: row[column] for row in csv.DictReader(file)}


def paper_name(method: Method) -> str:
    """The row of table 15 that the method is; of another method one that there is not."""
    if method.partition == "joint":
        return f"joint training {method.epochs:g} ep"
    return f"merit-{method.axes}d branches + merge" if method.epochs == 1 else ""
