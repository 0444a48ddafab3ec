"""other_base: a second theta0 for the regime map, which must still learn many of the skills.

Built like the experiment's own from conversations that leave more skills out. A stage of its own,
so that it trains beside the first one.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from merit.config import Experiment, MiniWorldData, load_experiment
from merit.config_studies import OtherBase
from merit.data.world.conversations import NEW_SKILLS
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, file_hash, write_json, write_jsonl
from merit.progress import Progress
from merit.stages.base import build
from merit.stages.data import write_conversations
from merit.stages.encode import write_encoded

WRITTEN = ("conversations.jsonl", "captions.jsonl")  # anew, with images/c*.png; all else is linked


def with_other_base(experiment: Experiment, settings: OtherBase) -> Experiment:
    """The experiment with the other base's conversations and its last phase's steps.

    Raises MeritError where the base does not learn its skills from a mini world's conversations, or
    would not have more to learn than the experiment's own.
    """
    data, phases, key = experiment.data, experiment.base.phases, "studies.regime.other_base"
    if not isinstance(data, MiniWorldData):
        raise MeritError(
            f"{key}: {experiment.name} has `data.source: {data.source}`, and only mini_world's "
            "conversations can leave skills out; leave the key out"
        )
    if not phases:
        raise MeritError(
            f"{key}: the base of {experiment.name} is loaded, not built by phases; leave the key "
            "out"
        )
    if phases[-1].data != "conversations":
        raise MeritError(
            f"{key}: the last phase of `base.phases` ({phases[-1].name}) reads "
            f"{phases[-1].data!r}, not 'conversations'; leave the key out"
        )
    if not data.num_new_skills < settings.num_new_skills <= len(NEW_SKILLS):
        raise MeritError(
            f"{key}.num_new_skills: found {settings.num_new_skills}; give more than "
            f"`data.num_new_skills`, {data.num_new_skills}, and at most {len(NEW_SKILLS)}"
        )
    last = phases[-1].model_copy(update={"num_steps": settings.num_steps})
    base = experiment.base.model_copy(update={"phases": [*phases[:-1], last]})
    changes = {
        "num_new_skills": settings.num_new_skills,
        "num_conversations": settings.num_conversations,
    }
    return experiment.model_copy(update={"data": data.model_copy(update=changes), "base": base})


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/other_base: base, encoded mixture, cosine matrix."""
    experiment, paths = load_experiment(name), Artifacts(name)
    regime = experiment.studies.regime
    settings = regime.other_base if regime is not None else None
    if settings is None:
        raise MeritError(
            f"experiments/{name}.yaml: key `studies.regime.other_base` is missing; add it"
        )
    other = with_other_base(experiment, settings)
    with atomic_folder(paths.other.folder) as target, tempfile.TemporaryDirectory() as scratch:
        ours = Artifacts(target.name, target.parent)
        data = Path(scratch)
        write_data(other, paths.data, data)
        ours.base.mkdir()
        records = build(other, data, ours.base)
        write_jsonl(ours.base / "records.jsonl", [dict(record) for record in records])
        base_hash = file_hash(ours.base / "model.safetensors")
        write_json(ours.base / "base.json", {"base_hash": base_hash, "seed": other.base.seed})
        write_encoded(ours, paths.data)
        ours.partition.mkdir()
        np.save(ours.partition / "similarity.npy", _similarity(experiment, ours))


def write_data(other: Experiment, source: Path, target: Path) -> None:
    """New conversations and captions with their images; links to everything else of `source`."""
    assert isinstance(other.data, MiniWorldData)
    (target / "images").mkdir()
    write_conversations(other.data, target)
    shared = [path for path in source.iterdir() if path.name not in (*WRITTEN, "images")]
    for path in [*shared, *_shared_images(source)]:
        link = target / path.relative_to(source)
        link.symlink_to(os.path.abspath(path), target_is_directory=path.is_dir())


def _shared_images(source: Path) -> list[Path]:
    """All but the conversations' own, which are called c*.png."""
    return [path for path in sorted((source / "images").iterdir()) if path.name[0] != "c"]


def _similarity(experiment: Experiment, paths: Artifacts) -> np.ndarray:
    """Cosines of the tasks' gradients at this base, float64 (T, T); what MERIT partitions by."""
    from merit.core.similarity import cosine_matrix
    from merit.stages.gradients import AtBase

    settings, base = experiment.gradients, AtBase.load(experiment, paths)
    rows = []
    with Progress("other base, gradients", len(base.tasks)) as progress:
        for i in range(len(base.tasks)):
            gradient = base.task_gradient(i, settings.num_examples, settings.seed, settings.stride)
            rows.append(gradient.numpy())
            progress.advance()
    return cosine_matrix(np.stack(rows))
