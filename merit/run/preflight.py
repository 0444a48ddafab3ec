"""What is refused before anything is computed: what would fail only after hours of training."""

from __future__ import annotations

import os
from pathlib import Path

from merit.config import Experiment
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.io.checkpoint_files import checkpoint_files


def check_place(experiment: Experiment, paths: Artifacts) -> None:
    """Raises MeritError for a directory that cannot be written, or a base that cannot answer."""
    if not os.access(Path.cwd(), os.W_OK):
        raise MeritError(f"{Path.cwd()}: cannot be written; run in a directory of your own")
    folder = Path(experiment.base.checkpoint or "")
    if experiment.base.checkpoint and folder.is_dir() and not paths.base.exists():
        from merit.train.model import check_architecture

        check_architecture(folder)


def check_base(experiment: Experiment) -> None:
    """Raises MeritError if weights of a folder that the base begins with are missing."""
    base = experiment.base
    for origin in [base.assemble.vision, base.assemble.decoder] if base.assemble else [base]:
        if origin.checkpoint and Path(origin.checkpoint).is_dir():
            checkpoint_files(Path(origin.checkpoint))


def check_tasks(experiment: Experiment, paths: Artifacts) -> None:
    """Raises MeritError, after the mixture is read, for fewer tasks than groups, or tasks of which
    nothing is held out for the study that needs it.
    """
    tasks = {entry["task"] for entry in read_json(paths.mixture / "tasks.json")}
    for name, method in experiment.methods.items():
        if len(tasks) < method.num_groups:
            raise MeritError(
                f"experiments/{experiment.name}.yaml: key `methods.{name}`: {method.num_groups} "
                f"groups of {len(tasks)} task(s): give the mixture more tasks, or remove the method"
            )
    if experiment.studies.get("held_out") is None:
        return
    listed = paths.data / "held_out" / "tasks.json"
    held = {entry["task"] for entry in read_json(listed)} if listed.is_file() else set()
    if missing := sorted(tasks - held):
        raise MeritError(
            f"experiments/{experiment.name}.yaml: key `studies.held_out`: nothing is held out of "
            f"{', '.join(missing[:5])}{' and others' * (len(missing) > 5)}: set `data.held_out`, "
            "and give each task two examples or more"
        )
