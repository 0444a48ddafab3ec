"""`merit check NAME`: sizes, disk, downloads and hours; then what is missing, one line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict

from merit.check.access import set_access, uses_hub
from merit.check.estimate import Amount, Part, disk, downloads, gpu_hours, mixture
from merit.check.missing import (
    hub_off,
    missing_benchmarks,
    missing_data,
    missing_machine,
    missing_space,
)
from merit.config import Experiment, load_experiment, load_params
from merit.io.artifacts import Artifacts
from merit.train.sizes import Sizes, base_sizes

ASSUMED = """\
  6 N tokens / (peak x MFU): N parameters of the decoder; 2 per parameter and patch of the frozen \
vision part.
  Assumed: peak {:g} TFLOP/s (--gpu-tflops), MFU {:g} (--mfu), phases of the base read examples as \
long as the mixture's.
  Not in it: answers, merges, studies."""


def check(name: str, gpu_tflops: float, mfu: float, as_json: bool = False) -> None:
    """Print what the experiment takes and lacks; exit status 1 if something is missing.

    Raises MeritError for an unknown experiment or base.
    """
    experiment, params, paths = load_experiment(name), load_params(), Artifacts(name)
    set_access(uses_hub(experiment))
    off = hub_off()  # before anything imports the hub's client
    sizes, amount = base_sizes(experiment.base, paths.base), mixture(experiment, paths)
    parts = disk(experiment, paths, sizes, amount, params)
    fetched = downloads(experiment, paths)
    hours = gpu_hours(experiment, sizes, amount, gpu_tflops * mfu)
    lacking = [
        *missing_data(experiment, paths, amount, off),
        *missing_benchmarks(experiment, paths, off),
        *missing_machine(experiment, sizes, params.launch),
        *missing_space(parts, fetched),
    ]
    if as_json:
        facts = {
            "experiment": name,
            "parameters": {"decoder": sizes.decoder, "vision": sizes.vision},
            "mixture": asdict(amount),
            "disk_bytes": {p.name: [p.number, p.size, p.there] for p in parts},
            "download_gb": fetched,
            "gpu_hours": hours,
            "missing": lacking,
        }
        print(json.dumps(facts, indent=1))
    else:
        print(page(experiment, sizes, amount, parts, fetched))
        named = ", ".join(f"{part} {value:.3g}" for part, value in hours.items())
        print(f"GPU-hours: {named}; {sum(hours.values()):.3g} together.")
        print(ASSUMED.format(gpu_tflops, mfu))
        print(f"\nMissing ({len(lacking)}):" if lacking else "\nNothing is missing.")
        print(*(f"- {line}\n" for line in lacking), sep="", end="")
    if lacking:
        sys.exit(1)


def page(
    experiment: Experiment,
    sizes: Sizes,
    amount: Amount,
    parts: list[Part],
    fetched: Mapping[str, float | None],
) -> str:
    """Sizes, disk by parts and downloads."""
    rows = [(part.name, str(part.number), part.size, part.there) for part in parts]
    rows.append(("total", "", sum(row[2] for row in rows), sum(row[3] for row in rows)))
    named = [f"{n} {'unknown' if gb is None else f'{gb:.3g} GB'}" for n, gb in fetched.items()]
    return "\n".join(
        [
            f"{experiment.name}: {sizes.decoder:,} parameters in the decoder, {sizes.vision:,} in "
            f"the vision part; {amount.tasks} tasks, {amount.examples:,.0f} examples, "
            f"{amount.text + amount.image:,.0f} tokens ({amount.basis})",
            f"\n{'disk':<12}{'number':>8}{'GB':>12}{'there':>12}",
            *(f"{n:<12}{k:>8}{gb / 1e9:>12.3f}{there / 1e9:>12.3f}" for n, k, gb, there in rows),
            f"\nDownloads: {', '.join(named) or 'none'}; "
            f"{sum(gb or 0 for gb in fetched.values()):.3g} GB without the unknown.",
        ]
    )
