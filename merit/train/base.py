"""base: theta0 as a Hugging Face folder: where it comes from, the phases that train it, its hash.

It starts from random weights (`architecture`), a finished model (`checkpoint`, `hub`) or two of
them (`assemble`); `phases` (merit.train.base_phases) may train it further, and `release` keeps
what they built as files of the repository.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from merit.config import Base, Origin, load_experiment
from merit.data.hub import fetch
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, read_json, write_json, write_jsonl
from merit.io.checkpoint_files import checkpoint_hash
from merit.io.checkpoints import Checkpoint
from merit.train.assembly import assemble
from merit.train.base_phases import train_phases
from merit.train.distributed import process_group
from merit.train.gguf import SUFFIX, checkpoint_place, unpack
from merit.train.model import check_architecture

FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja")  # of a model's folder


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/base; phases run in the processes that torchrun started, if any."""
    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.base
    with process_group() as group:
        if group.rank:
            train_phases(experiment, paths.data / "pretraining", group.agreed(None), group)
            return
        with atomic_folder(paths.base) as folder:
            if settings.architecture is None:
                write_origin(settings, folder, name)
                check_architecture(folder)
            group.agreed(folder)
            if settings.phases:
                records = train_phases(experiment, paths.data / "pretraining", folder, group)
                write_jsonl(folder / "records.jsonl", records)
            check_finite(folder, f"the base of {name}")
            about = {"base_hash": checkpoint_hash(folder), "seed": settings.seed}
            write_json(folder / "base.json", about)
            if settings.release:
                release(folder, Path(settings.release), name)


def release(folder: Path, place: Path, name: str) -> None:
    """Copy the built base to its `place` in the repository.

    Raises MeritError if another one is there; it is not overwritten.
    """
    files = [path for pattern in FILES for path in sorted(folder.glob(pattern))]
    if not place.exists():
        with atomic_folder(place) as copy:
            for path in files:
                shutil.copyfile(path, copy / path.name)
        return
    for path in files:
        kept = place / path.name
        if not kept.is_file() or kept.read_bytes() != path.read_bytes():
            raise MeritError(
                f"{kept}: differs from what {name} builds on this machine, and is kept; delete "
                f"{place} to take the new base, and run what starts from it again"
            )


def write_origin(settings: Base, folder: Path, name: str) -> None:
    """Write the model that the base starts from into `folder`.

    A folder's weights that are not safetensors are not copied.
    """
    if settings.assemble is not None:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".parts.") as parts:
            vision, decoder = (
                model_folder(origin, Path(parts) / key, f"base.assemble.{key}", name)
                for key, origin in settings.assemble
            )
            assemble(vision, decoder, folder, settings.seed)
        return
    origin = Origin(checkpoint=settings.checkpoint, hub=settings.hub, revision=settings.revision)
    source = model_folder(origin, folder, "base", name)
    if source != folder:
        for path in sorted(source.iterdir()):
            if path.is_file() and any(path.match(pattern) for pattern in FILES):
                shutil.copyfile(path, folder / path.name)


def model_folder(origin: Origin, folder: Path, key: str, name: str) -> Path:
    """The folder of a finished model: its own, or `folder`, into which it was fetched or unpacked.

    Raises MeritError, naming `key`, if no model is there.
    """
    if origin.hub is not None:
        missing = f"{origin.hub} is not here: set `{key}.checkpoint` to its folder"
        # refuse a model that cannot be trained before its weights are fetched
        for patterns in (("config.json",), FILES):
            fetch(folder, patterns, origin.hub, origin.revision, missing, kind="model")
            check_architecture(folder)
        return folder
    place = checkpoint_place(origin.checkpoint or "", f"{key}.checkpoint")
    if place.suffix == SUFFIX:
        unpack(place, folder, f"{key}.checkpoint")
        return folder
    if not (place / "config.json").is_file():
        raise MeritError(f"experiments/{name}.yaml: key `{key}.checkpoint`: no model in {place}")
    check_architecture(place)
    Checkpoint(place)
    about = place / "base.json"
    if about.is_file() and read_json(about)["base_hash"] != checkpoint_hash(place):
        raise MeritError(
            f"{place}: the weights are not those that base.json names: the folder was changed; "
            f"restore it (git checkout {place}), or delete base.json to take it as it is"
        )
    return place


def check_finite(folder: Path, what: str) -> None:
    """Raises MeritError, naming the tensor, if the checkpoint holds a NaN or an infinity."""
    for name, tensor in Checkpoint(folder).items():
        if not bool(tensor.isfinite().all()):
            raise MeritError(
                f"{what}: tensor {name!r} is not finite; build or fetch it again "
                "(a smaller `learning_rate` in `base.phases`, if it was trained here)"
            )
