"""`merit preflight EXPERIMENT`: gather, estimate, print; the only file here that prints."""

from __future__ import annotations

import configparser
import os
import pkgutil
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from merit.check.after import comparison
from merit.check.amounts import mixture, phases, questions
from merit.check.estimate import Row, Work
from merit.check.facts import machine
from merit.check.judging import judge_line
from merit.check.missing import Surroundings, missing
from merit.check.shapes import base_shapes, known_config, origins, shapes_from_config
from merit.check.stages import rows, training_parts
from merit.config import load_experiment, load_params
from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts


def preflight(
    name: str, gpu: str | None, after: bool = False, price: list[float] | None = None
) -> None:
    """Print the table of stages; exit status 1 where something is missing.

    With `after`, what was predicted beside what it took. Raises MeritError for an unknown
    experiment, card or base.
    """
    work, unknown = gather(name, gpu)
    if after:
        print(comparison(work, Artifacts(name)))
        return
    found = rows(work)
    lacking = missing(work, found, surroundings(work), gpu is not None)
    print(page(work, found, unknown, price))
    if not lacking:
        print("\nNothing is missing.")
        return
    print(f"\nMissing ({len(lacking)}):\n" + "\n".join(f"- {line}" for line in lacking))
    sys.exit(1)


def gather(name: str, gpu: str | None) -> tuple[Work, list[str]]:
    """(all that the estimate follows from, benchmarks of unknown size)."""
    experiment, params, paths = load_experiment(name), load_params(), Artifacts(name)
    known, unknown = questions(experiment)
    find = pkgutil.resolve_name("merit.eval.benchmarks:benchmark")
    checkpointing = experiment.training.gradient_checkpointing
    work = Work(
        experiment=experiment,
        plan=plan(experiment),
        shapes=base_shapes(experiment.base, paths.base),
        machine=machine(gpu, params.workers, checkpointing),
        launch=params.launch,
        mixture=mixture(experiment, paths),
        phases=phases(experiment),
        origins={
            origin.hub: part.stored_bytes * part.total / 1e9
            for origin in origins(experiment.base)
            if origin.hub and not (paths.base / "config.json").is_file()
            for part in [shapes_from_config(known_config(origin))]
        },
        questions=known,
        records={name: find(name) for name in experiment.evaluation.benchmarks},
    )
    return work, unknown


def surroundings(work: Work) -> Surroundings:
    """Of this machine, at the folder that artifacts go to."""
    import psutil
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode

    return Surroundings(
        free_gb=shutil.disk_usage(Path.cwd()).free / 1e9,
        host_gb=psutil.virtual_memory().total / 1e9,
        has_token=get_token() is not None,
        offline=is_offline_mode(),
        variables=dict(os.environ),
        kit=Path(os.environ.get("LMUData", Path.home() / "LMUData")),  # noqa: SIM112
        copies=1 if _links() else 2,
        isolation=_isolation() if any(r.runs_code for r in work.records.values()) else "",
        judgements=Artifacts(work.experiment.name).judgements,
    )


def _isolation() -> str:
    """Why the sandbox of what models write does not hold here; "" where it does."""
    try:
        pkgutil.resolve_name("merit.eval.answering.lm_public:check_isolation")(Path())
    except MeritError as error:
        return str(error)
    return ""


def _links() -> bool:
    """Whether DVC's cache shares files by hard or symbolic links, as its settings say."""
    settings = configparser.ConfigParser()
    settings.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
    first = settings.get("cache", "type", fallback="").strip('"').replace("reflink,", "")
    return first.startswith(("hardlink", "symlink"))


def page(
    work: Work, found: Sequence[Row], unknown: Sequence[str], price: list[float] | None
) -> str:
    """The table, its sources, the judge, and what training takes on 1 to 8 GPUs."""
    device, machine = work.machine.card.name, work.machine
    notes = list(dict.fromkeys(note for row in found for note in row.basis if note))
    table = pd.DataFrame([line(row, notes) for row in [*found, summed(found)]])
    lines = [
        f"{work.experiment.name} on {machine.count} x {device}; "
        f"{work.shapes.decoder:,} parameters of the decoder, {work.shapes.vision:,} of the vision "
        "part",
        "",
        table.to_markdown(index=False, disable_numparse=True),
        "",
        *(f"[{i}] {note}" for i, note in enumerate(notes, start=1)),
        "",
        "A device is a GPU, or a core where there is none; `hours` are by the clock, with all of "
        "them busy.",
    ]
    if machine.is_gpu:
        takes = (f"{sum(training_parts(work, n).values()) / 1e9:.1f}" for n in (1, 2, 4, 8))
        lines.append(f"A branch on 1, 2, 4, 8 GPUs: {', '.join(takes)} GB each.")
    if unsized := summed(found).unsized:
        lines.append(f"Downloads of unknown size: {', '.join(unsized)}.")
    if unknown:
        lines.append(f"Benchmarks whose questions nobody has counted: {', '.join(unknown)}.")
    return "\n".join([*lines, judge_line(work, price)])


def line(row: Row, notes: Sequence[str]) -> dict[str, Any]:
    """A row as it is printed."""
    fetched = [number(row.download_gb)] * bool(row.download_gb or not row.unsized)
    return {
        "stage": row.stage,
        "runs": row.runs,
        "device-hours": number(row.hours),
        "hours": number(row.wall),
        "GPU GB": number(row.gpu_gb),
        "host GB": number(row.host_gb),
        "disk GB": number(row.disk_gb),
        "download GB": " + ".join([*fetched, *["unknown"] * bool(row.unsized)]),
        "from": " ".join(f"[{notes.index(note) + 1}]" for note in row.basis if note),
    }


def summed(found: Sequence[Row]) -> Row:
    """The last line: sums of time and disk, peaks of memory; what is unknown counts nothing."""

    def values(name: str) -> list[float]:
        return [getattr(row, name) or 0.0 for row in found]

    hours = sum(values("hours"))
    return Row(
        "total",
        sum(row.runs for row in found),
        hours,
        max(values("gpu_gb")),
        max(values("host_gb")),
        sum(values("disk_gb")),
        sum(values("download_gb")),
        devices=hours / max(sum(values("wall")), 1e-9),
        unsized=tuple(name for row in found for name in row.unsized),
    )


def number(value: float | None) -> str:
    """Three digits; nothing is "-"."""
    if value is None:
        return "unknown"
    return "-" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
