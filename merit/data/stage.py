"""data: write the mixture, the base's data and the benchmarks of one experiment."""

from __future__ import annotations

from merit.config import load_experiment
from merit.data.sources import writer
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, read_json


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/data. Raises MeritError for fewer tasks than a method's groups."""
    experiment = load_experiment(name)
    with atomic_folder(Artifacts(name).data) as folder:
        writer(experiment.data.source)(experiment.data, folder)
        num_tasks = len(read_json(folder / "mixture" / "tasks.json"))
        for method, settings in experiment.methods.items():
            if settings.num_groups > num_tasks:
                raise MeritError(
                    f"experiments/{name}.yaml: key `methods.{method}`: {settings.num_groups} "
                    f"groups cannot be made of {num_tasks} task(s); leave it out"
                )
