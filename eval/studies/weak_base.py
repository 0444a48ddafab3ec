"""A second, weaker theta0 for the regime study: the same phases, the last one cut short."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from merit.config import Experiment
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    file_hash,
    read_json,
    value_hash,
    write_json,
)
from merit.progress import Progress

NAME = "weak_base"


def weakened(experiment: Experiment, num_steps: int) -> Experiment:
    """The experiment whose base ends after `num_steps` of its last phase.

    Raises MeritError where the base is not built here or its last phase is no longer than that.
    """
    phases = experiment.base.phases
    if not phases:
        raise MeritError(
            "studies.regime.weak_base_steps: this base is loaded, not built by phases; leave it out"
        )
    if num_steps >= phases[-1].num_steps:
        raise MeritError(
            f"studies.regime.weak_base_steps: found {num_steps}; the last phase "
            f"({phases[-1].name}) has {phases[-1].num_steps} steps, and the cut must be shorter"
        )
    last = phases[-1].model_copy(update={"num_steps": num_steps})
    base = experiment.base.model_copy(update={"phases": [*phases[:-1], last]})
    return experiment.model_copy(update={"base": base})


def prepare(experiment: Experiment, paths: Artifacts, folder: Path, num_steps: int) -> Artifacts:
    """Base, encoded mixture and cosine matrix of the weak base under `folder`, kept if up to date.

    `data` is a link to the experiment's own: only what depends on the base is made again.
    """
    from merit.stages.base import build
    from merit.stages.encode import write_encoded

    weak, ours = weakened(experiment, num_steps), Artifacts(NAME, folder)
    ours.folder.mkdir(parents=True, exist_ok=True)
    if not ours.data.is_symlink():
        ours.data.symlink_to(os.path.relpath(paths.data, ours.folder), target_is_directory=True)
    key = _base_key(weak, paths.data)
    if not _holds(ours.base / "base.json", key):
        with atomic_folder(ours.base) as target:
            records = build(weak, paths.data, target)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (target / "records.jsonl").write_text(lines, encoding="utf-8")
            base_hash = file_hash(target / "model.safetensors")
            write_json(
                target / "base.json", {"base_hash": base_hash, "key": key, "seed": weak.base.seed}
            )
    tasks = [entry["task"] for entry in read_json(paths.data / "tasks.json")]
    key = value_hash(
        [
            file_hash(ours.base / "model.safetensors"),
            [file_hash(paths.data / "mixture" / f"{task}.jsonl") for task in tasks],
            experiment.gradients.model_dump(mode="json"),
            experiment.training.trainable,
        ]
    )
    done = ours.folder / "prepared.json"
    if not _holds(done, key):
        write_encoded(ours)
        with atomic_folder(ours.partition) as target:
            np.save(target / "similarity.npy", _similarity(experiment, ours))
        write_json(done, {"key": key})
    return ours


def _similarity(experiment: Experiment, paths: Artifacts) -> np.ndarray:
    """Cosines of the tasks' gradients at this base, float64 (T, T); what MERIT partitions by."""
    from merit.core.similarity import cosine_matrix
    from merit.stages.gradients import AtBase

    settings, base = experiment.gradients, AtBase.load(experiment, paths)
    rows = []
    with Progress(f"{NAME}, gradients", len(base.tasks)) as progress:
        for i in range(len(base.tasks)):
            gradient = base.task_gradient(i, settings.num_examples, settings.seed, settings.stride)
            rows.append(gradient.numpy())
            progress.advance()
    return cosine_matrix(np.stack(rows))


def _base_key(experiment: Experiment, data: Path) -> str:
    texts = sorted({phase.data for phase in experiment.base.phases} - {"labels"})
    files = [file_hash(data / f"{name}.jsonl") for name in texts]
    return value_hash([experiment.base.model_dump(mode="json"), files])


def _holds(path: Path, key: str) -> bool:
    return path.is_file() and read_json(path).get("key") == key
