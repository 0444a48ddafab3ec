"""data: write the mixture, the base's data and the benchmarks of one experiment."""

from __future__ import annotations

from merit.config import load_experiment
from merit.data.sources import writer
from merit.io.artifacts import Artifacts, atomic_folder


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/data."""
    settings = load_experiment(name).data
    with atomic_folder(Artifacts(name).data) as folder:
        writer(settings.source)(settings, folder)
