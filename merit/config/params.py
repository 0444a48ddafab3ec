"""params.yaml: which experiments are run, where, and where their runs are tracked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from merit.config.experiment import EXPERIMENTS_DIR
from merit.config.settings import PositiveInt, Settings, load_yaml
from merit.errors import MeritError

PARAMS_FILE = Path("params.yaml")


class Tracking(Settings):
    """Where MLflow keeps its runs: a SQLite file, or the address of a server."""

    uri: str = "sqlite:///mlflow.db"


# what `merit run` tells sbatch itself, besides the keys of the block
OWN_SBATCH = ("array", "error", "job-name", "open-mode", "output", "partition", "signal", "time")


class Launch(Settings):
    """Where `merit run` trains branches (docs/machines.md); no result depends on it.

    `local`: processes on this host, one slot with its own GPUs per branch. `slurm`: one job per
    branch; the keys from `retries` on are for Slurm only.
    """

    backend: Literal["local", "slurm"] = "local"
    gpus_per_branch: Annotated[int, Field(ge=0)] = 1  # without GPUs, the CPU trains
    # branches side by side on this host; default: what its GPUs allow, else `workers`
    slots: PositiveInt | None = None
    retries: Annotated[int, Field(ge=0)] = 20  # how often a job is requeued at its time limit
    minutes: PositiveInt = 24 * 60  # a job's time limit; then it is requeued and resumes
    seconds_to_stop: PositiveInt = 300  # before the limit, for writing a checkpoint
    partition: str | None = None  # Slurm's partition, not one of tasks
    sbatch: dict[str, str | int | bool] = {}  # further options: {account: x, cpus-per-task: 16}
    setup: list[str] = []  # shell lines before the command: `module load cuda`

    @model_validator(mode="after")
    def _own_options(self) -> Launch:
        for key in self.sbatch:
            if key.replace("_", "-").lstrip("-") in OWN_SBATCH:
                raise ValueError(f"`sbatch`: `{key}` is set by `merit run`; remove it")
        if self.seconds_to_stop >= 60 * self.minutes:
            raise ValueError(
                f"`seconds_to_stop`: {self.seconds_to_stop} s before the end of {self.minutes} "
                "minutes is before the beginning; lower it or raise `minutes`"
            )
        return self


class Params(Settings):
    """params.yaml: what the pipeline as a whole runs."""

    experiments: Annotated[list[str], Field(min_length=1)]
    workers: PositiveInt = 2  # items computed side by side
    launch: Launch = Launch()
    tracking: Tracking = Tracking()


def load_params(path: Path = PARAMS_FILE) -> Params:
    """params.yaml, checked; without the file its defaults, for every experiment at hand.

    Raises MeritError that names the file and the key.
    """
    if path.is_file():
        return load_yaml(path, Params)
    names = sorted(file.stem for file in EXPERIMENTS_DIR.glob("*.yaml"))
    if not names:
        raise MeritError(
            f"{EXPERIMENTS_DIR}: no experiment here; `merit new NAME --data FOLDER --base MODEL` "
            "writes one"
        )
    return Params(experiments=names)
