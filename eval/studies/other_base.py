"""A second theta0 for the regime study: built alike, but with fewer skills in its conversations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Experiment, MiniWorldData
from merit.config_studies import OtherBase
from merit.data.world.conversations import NEW_SKILLS
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

NAME = "other_base"
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


def prepare(
    experiment: Experiment, paths: Artifacts, folder: Path, settings: OtherBase
) -> Artifacts:
    """Data, base, encoded mixture and cosine matrix of the other base under `folder`.

    Whatever is up to date is kept.
    """
    from merit.stages.base import build
    from merit.stages.encode import write_encoded

    other, ours = with_other_base(experiment, settings), Artifacts(NAME, folder)
    data_key = _data_key(other, paths.data)
    if not _holds(ours.data / "key.json", data_key):
        with atomic_folder(ours.data) as target:
            write_data(other, paths.data, target)
            write_json(target / "key.json", {"key": data_key})
    key = value_hash([data_key, other.base.model_dump(mode="json")])
    if not _holds(ours.base / "base.json", key):
        with atomic_folder(ours.base) as target:
            records = build(other, ours.data, target)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (target / "records.jsonl").write_text(lines, encoding="utf-8")
            base_hash = file_hash(target / "model.safetensors")
            write_json(
                target / "base.json", {"base_hash": base_hash, "key": key, "seed": other.base.seed}
            )
    key = value_hash(
        [
            data_key,
            file_hash(ours.base / "model.safetensors"),
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


def write_data(other: Experiment, source: Path, target: Path) -> None:
    """New conversations and captions with their images; links to everything else of `source`."""
    from merit.stages.data import write_conversations

    assert isinstance(other.data, MiniWorldData)
    (target / "images").mkdir()
    write_conversations(other.data, target)
    shared = [path for path in source.iterdir() if path.name not in (*WRITTEN, "images")]
    for path in [*shared, *_shared_images(source)]:
        link = target / path.relative_to(source)
        link.symlink_to(os.path.relpath(path, link.parent), target_is_directory=path.is_dir())


def _shared_images(source: Path) -> list[Path]:
    """All but the conversations' own, which are called c*.png."""
    return [path for path in sorted((source / "images").iterdir()) if path.name[0] != "c"]


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


def _data_key(other: Experiment, source: Path) -> str:
    """Hash of what decides the data: the changed settings and the experiment's own files.

    Its own conversations are among these although they are not read: they tell when the code that
    writes them has changed.
    """
    settings: dict[str, Any] = other.data.model_dump(mode="json")
    kept = [settings[name] for name in ("seed", "num_new_skills", "num_conversations")]
    texts = [*source.glob("*.json*"), *(source / "mixture").glob("*.jsonl")]
    files = [*sorted(texts), *_shared_images(source)]
    return value_hash([kept, [[str(f.relative_to(source)), file_hash(f)] for f in files]])


def _holds(path: Path, key: str) -> bool:
    return path.is_file() and read_json(path).get("key") == key
