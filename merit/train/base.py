"""base: build theta0 by its phases, or take a checkpoint; write it as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Encoding, Experiment, Origin, Phase, load_experiment
from merit.data.examples import Example, read_examples
from merit.data.hub import fetch
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    file_hash,
    open_partial,
    value_hash,
    write_json,
)
from merit.io.disk import writing
from merit.io.locks import exclusive
from merit.io.progress import Progress
from merit.train.dataset import TokenizedDataset
from merit.train.gguf import SUFFIX, checkpoint_place, unpack
from merit.train.loop import Record
from merit.train.model import check_architecture, vision_hidden_states
from merit.train.tokenize import encode_examples

FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja")  # of a model's folder


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/base."""
    from merit.io.checkpoints import checkpoint_hash

    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.base
    with atomic_folder(paths.base) as folder:
        if settings.checkpoint is not None:
            take_checkpoint(settings.checkpoint, folder, name)
        elif settings.hub is not None:
            missing = f"the base {settings.hub} is not here: set `base.checkpoint` to its folder"
            # a model that cannot be trained is told before its weights are fetched
            fetch(folder, ("config.json",), settings.hub, settings.revision, missing, kind="model")
            check_architecture(folder)
            fetch(folder, FILES, settings.hub, settings.revision, missing, kind="model")
        elif settings.assemble is not None:
            from merit.train.assembly import assemble

            with tempfile.TemporaryDirectory(dir=paths.folder, prefix=".parts.") as parts:
                vision, decoder = (
                    place_of(getattr(settings.assemble, key), Path(parts) / key, name, key)
                    for key in ("vision", "decoder")
                )
                assemble(vision, decoder, folder, settings.seed)
        if settings.architecture is None:
            check_architecture(folder)
        if settings.phases:
            records = build(experiment, paths.data / "pretraining", folder)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / "records.jsonl").write_text(lines, encoding="utf-8")
        check_finite(folder, f"the base of {name}")
        found = {"base_hash": checkpoint_hash(folder), "seed": settings.seed}
        write_json(folder / "base.json", found)


def place_of(origin: Origin, folder: Path, name: str, key: str) -> Path:
    """The folder of a finished model; one of the hub is fetched into `folder`."""
    if origin.hub is not None:
        missing = f"{origin.hub} is not here: set `base.assemble.{key}.checkpoint` to its folder"
        fetch(folder, FILES, origin.hub, origin.revision, missing, kind="model")
        return folder
    found = Path(origin.checkpoint or "")
    if not (found / "config.json").is_file():
        raise MeritError(
            f"experiments/{name}.yaml: key `base.assemble.{key}.checkpoint`: no model in {found}"
        )
    return found


def take_checkpoint(text: str, folder: Path, name: str) -> None:
    """Copy a Hugging Face folder's files, or unpack a GGUF file.

    Weights that are not safetensors stay behind.
    """
    source = checkpoint_place(text, "base.checkpoint")
    if source.suffix == SUFFIX:
        unpack(source, folder, "base.checkpoint")
        return
    if not (source / "config.json").is_file():
        raise MeritError(f"experiments/{name}.yaml: key `base.checkpoint`: no model in {source}")
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in FILES):
            shutil.copyfile(path, folder / path.name)


def check_finite(folder: Path, what: str) -> None:
    """Raises MeritError, naming the tensor, where the checkpoint holds a NaN or an infinity."""
    from merit.io.checkpoints import Checkpoint

    for name, tensor in Checkpoint(folder).items():
        if not bool(tensor.isfinite().all()):
            raise MeritError(
                f"{what}: tensor {name!r} is not finite; build or fetch it anew "
                "(a smaller `learning_rate` in `base.phases`, if it was trained here)"
            )


def build(experiment: Experiment, data: Path, folder: Path) -> list[Record]:
    """Train theta0 by its phases, from scratch or from what lies in `folder`; all their records.

    Finished phases, and the checkpoints of one that is stopped (status 75) or killed, are kept in a
    hidden folder beside `folder` until all are done: the same command goes on from there.
    """
    from merit.train.base_phases import (
        PRETRAINING,
        initialise,
        pretrain,
        restore_phases,
        run_phase,
        save_phases,
    )
    from merit.train.checkpoint import GO_ON, Checkpoints, stopping
    from merit.train.loop import Stopped
    from merit.train.model import load_model, load_processor, use_one_thread

    settings = experiment.base
    # all data before the first step: a missing file should not cost the phases before it
    examples = {
        phase.data: read_examples(data / f"{phase.data}.jsonl")
        for phase in settings.phases
        if phase.data not in PRETRAINING
    }
    use_one_thread()
    key = phases_key(experiment, [data / f"{name}.jsonl" for name in examples], folder)
    if settings.architecture is not None:
        model, processor = initialise(settings.architecture, settings.seed)
    else:
        model, processor = load_model(folder, experiment.model), load_processor(folder)
    stored, minutes = model.dtype, experiment.training.checkpoint_minutes
    encoded: dict[str, TokenizedDataset] = {}
    total = sum(phase.num_steps for phase in settings.phases)
    place, label = folder.parent / "base-phases", f"{experiment.name}, base"
    with exclusive(place, "the base is being built"), Progress(label, total) as progress:
        kept = open_partial(place, key)
        finished, records = restore_phases(model, kept)
        checkpoints = None
        for i, phase in enumerate(settings.phases):
            before = sum(earlier.num_steps for earlier in settings.phases[:i])
            if i < finished:
                progress.advance(phase.num_steps)
                continue
            own: list[Record] = []
            asked = checkpoints is not None and checkpoints.stop
            (kept / str(i)).mkdir(exist_ok=True)
            checkpoints = Checkpoints(kept / str(i), minutes, own, [])

            def log(
                record: Record,
                timing: Record,
                phase: Phase = phase,
                done: int = before,
                own: list[Record] = own,
            ) -> None:
                own.append({"phase": phase.name, **record, "step": done + record["step"]})  # type: ignore[dict-item]
                progress.advance(int(done + record["step"]) - progress.n)

            seed = settings.seed * 100 + i
            if phase.data in PRETRAINING:
                pretrain(model, processor, phase, seed, log)
                encoded.clear()  # the encoder has changed
            else:
                encoded = encoded or _encode(model, processor, data, examples, experiment.encoding)
                checkpoints.stop = asked  # between two phases
                stopping(checkpoints)
                try:
                    run_phase(model, encoded[phase.data], phase, seed, log, checkpoints)
                except Stopped as stopped:
                    print(f"{stopped}; the same command goes on from here", file=sys.stderr)
                    sys.exit(GO_ON)
            records += own
            save_phases(model, i + 1, records, kept)
            shutil.rmtree(kept / str(i))
        with writing(folder):
            model.to(stored).save_pretrained(folder)  # what learnt is float32
            processor.save_pretrained(folder)
        shutil.rmtree(kept)
    return records


def phases_key(experiment: Experiment, data: Sequence[Path], start: Path) -> str:
    """A hash of all that decides what the phases make of `start`, a checkpoint or nothing yet."""
    from merit.io.checkpoints import checkpoint_hash

    pace = {"phases": {"__all__": {"workers"}}}
    return value_hash(
        [
            experiment.base.model_dump(mode="json", exclude=pace),
            experiment.encoding.model_dump(mode="json", exclude={"workers"}),
            experiment.model.model_dump(mode="json"),
            [file_hash(path) for path in data],
            checkpoint_hash(start) if (start / "config.json").is_file() else None,
        ]
    )


def _encode(
    model: Any, processor: Any, data: Path, examples: dict[str, list[Example]], settings: Encoding
) -> dict[str, TokenizedDataset]:
    """The base's data. Where images are cached: the vision encoder's hidden states, every image
    once; the projector still learns.
    """
    from merit.train.images import ImageReader, vision_features

    images = sorted({image for some in examples.values() for e in some for image in e.images})
    ids = {path: i for i, path in enumerate(images)}
    if not images:
        none = np.zeros((0, 3), dtype=np.int32)
        return {k: encode_examples(e, processor, ids, none, settings) for k, e in examples.items()}
    limits = settings.min_pixels, settings.max_pixels
    read = ImageReader(data, processor.image_processor, *limits)
    grids = np.array([read.grid(path) for path in images], dtype=np.int32)
    cached: dict[str, Any] = {"read_images": read}
    if settings.cache_images:
        parts = vision_features(read, images, partial(vision_hidden_states, model))
        cached |= {
            "features": np.concatenate(list(parts)),
            "feature_offsets": np.concatenate([[0], np.cumsum(grids.prod(axis=1))]),
        }
    return {
        name: replace(encode_examples(some, processor, ids, grids, settings), **cached)
        for name, some in examples.items()
    }
