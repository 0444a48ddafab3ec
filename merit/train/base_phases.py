"""The phases that train theta0, and how they resume.

`labels` pre-trains the vision encoder (in place of a public one), `captions` aligns the projector
(stage 1), `conversations` tunes projector and decoder on instructions (stage 2). A phase says in
the YAML which components learn, so the paper's stages 1, 1.5 and 2 are phases, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merit.config import Encoding, Experiment, Phase, Training
from merit.data.examples import Example, read_examples
from merit.errors import MeritError
from merit.io.artifacts import file_hash, open_partial, value_hash
from merit.io.checkpoint_files import checkpoint_hash
from merit.io.disk import writing
from merit.io.locks import exclusive
from merit.io.progress import Progress
from merit.train.batches import data_order, grouped_by_length
from merit.train.checkpoint import Checkpoints, Log, Record, Stopped, stop_on_signal
from merit.train.dataset import TokenizedDataset
from merit.train.distributed import ProcessGroup
from merit.train.images import image_reader, vision_features
from merit.train.loop import train
from merit.train.model import (
    load_model,
    load_processor,
    project,
    recompute_layers,
    set_trainable,
    use_one_thread,
    vision_hidden_states,
)
from merit.train.registry import PRETRAINING, initialise, pretrain
from merit.train.tokenize import encode_examples

KEPT = "phases.safetensors"  # the parameters after the finished phases


def train_phases(
    experiment: Experiment, data: Path, folder: Path, group: ProcessGroup | None = None
) -> list[Record]:
    """Train theta0 by its phases, from scratch or from the model in `folder`; return all records.

    Finished phases, and the checkpoints of one that is stopped (status 75) or killed, are kept in a
    hidden folder beside `folder` until all are done: the same command resumes from there. The first
    process of `group` writes.
    """
    settings, group = experiment.base, group or ProcessGroup()
    # read all data before the first step: a missing file should not cost the phases before it
    examples = {
        phase.data: read_examples(data / f"{phase.data}.jsonl")
        for phase in settings.phases
        if phase.data not in PRETRAINING
    }
    use_one_thread()
    key = phases_key(experiment, [data / f"{name}.jsonl" for name in examples], folder)
    model, processor = starting_model(experiment, folder)
    dtype = torch.float16 if settings.release else model.dtype
    minutes = experiment.training.checkpoint_minutes
    tokenized: dict[str, TokenizedDataset] = {}
    total = sum(phase.num_steps for phase in settings.phases)
    work = folder.parent / "base-phases"
    with (
        nullcontext() if group.rank else exclusive(work, "the base is being built"),
        Progress(f"{experiment.name}, base", total) as progress,
        stop_on_signal() as stop,
    ):
        kept = open_partial(work, key)
        num_finished, records = restore_phases(model, kept)
        first = sum(phase.num_steps for phase in settings.phases[:num_finished])
        progress.advance(first)
        for i, phase in list(enumerate(settings.phases))[num_finished:]:
            if stop.is_set():
                raise Stopped(f"base phase {phase.name!r}: stopped before its first step")
            log, seed = Log(progress, first, phase.name), settings.seed * 100 + i
            if phase.data in PRETRAINING:
                pretrain(model, processor, phase, seed, log)
                tokenized.clear()  # the encoder has changed
            else:
                tokenized = tokenized or tokenize_phases(
                    model, processor, data, examples, experiment.encoding
                )
                (kept / str(i)).mkdir(exist_ok=True)
                from merit.train.attention import choose_attention  # imports transformers

                low = phase.precision == "bfloat16"
                choose_attention(model, experiment.model.attention, low)
                logs = log.records, log.timings
                checkpoints = Checkpoints(kept / str(i), minutes, *logs, stop, group)
                train_phase(model, tokenized[phase.data], phase, seed, log, checkpoints, group)
            records += log.records
            first += phase.num_steps
            parameters = group.gathered(dict(model.named_parameters()))
            if group.rank == 0:
                save_phases(parameters, i + 1, records, kept)
                shutil.rmtree(kept / str(i), ignore_errors=True)
            group.any(False)  # until it is written
            last = i + 1 == len(settings.phases)  # then only the first process still needs it
            if group.started and not (group.rank and last):
                # what was cut over the processes is no start of the next phase
                model, _ = starting_model(experiment, folder)
                restore_phases(model, kept)
        if group.rank == 0:
            with writing(folder):
                model.to(dtype).save_pretrained(folder)  # what learnt is float32
                processor.save_pretrained(folder)
            shutil.rmtree(kept)
    return records


def starting_model(experiment: Experiment, folder: Path) -> tuple[Any, Any]:
    """(model, processor) before the first phase: random weights, or those in `folder`."""
    settings = experiment.base
    if settings.architecture is not None:
        return initialise(settings.architecture, settings.seed)
    return load_model(folder, experiment.model), load_processor(folder)


def train_phase(
    model: Any,
    data: TokenizedDataset,
    phase: Phase,
    seed: int,
    log: Log,
    checkpoints: Checkpoints,
    group: ProcessGroup,
) -> None:
    """One language phase on `data`: pixels, or features, the vision encoder's hidden states.

    Raises as `merit.train.loop.train`.
    """
    parameters = set_trainable(model, phase.trainable)
    if phase.gradient_checkpointing:
        recompute_layers(model, phase.gradient_checkpointing)
    batch_size = phase.optimizer.batch_size
    order = data_order(len(data), phase.num_steps * batch_size / len(data), seed)
    train(
        model,
        parameters,
        data,
        grouped_by_length(order, data.num_tokens(), batch_size, seed),
        phase.optimizer,
        what=f"base phase {phase.name!r}",
        settings=Training(
            trainable=phase.trainable,
            optimizer=phase.optimizer,
            precision=phase.precision,
            pack_tokens=phase.pack_tokens,
            kernels=phase.kernels,
            workers=phase.workers,
        ),
        project=partial(project, model) if len(data.features) else None,
        log=log,
        num_records=50,
        checkpoints=checkpoints,
        group=group,
    )


def phases_key(experiment: Experiment, data: Sequence[Path], start: Path) -> str:
    """A hash of all that decides what the phases make of `start`, a checkpoint or nothing yet."""
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


def save_phases(
    parameters: Mapping[str, torch.nn.Parameter],
    num_finished: int,
    records: list[Record],
    folder: Path,
) -> None:
    """Keep the model after `num_finished` phases, and their records, in place of what was kept."""
    tensors = {name: p.detach().contiguous() for name, p in parameters.items()}
    state = json.dumps({"num_finished": num_finished, "records": records})
    new = folder / f"{KEPT}.new"
    with writing(new):
        save_file(tensors, new, metadata={"state": state})
    os.replace(new, folder / KEPT)


def restore_phases(model: Any, folder: Path) -> tuple[int, list[Record]]:
    """How many phases `save_phases` kept, now in the model, and their records.

    Raises MeritError if the file cannot be read.
    """
    path = folder / KEPT
    if not path.is_file():
        return 0, []
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            for name, parameter in model.named_parameters():
                parameter.data = file.get_tensor(name).to(parameter.device)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise MeritError(
            f"{path}: cannot resume from it ({error}); delete it to start again"
        ) from None
    return state["num_finished"], state["records"]


def tokenize_phases(
    model: Any,
    processor: Any,
    data: Path,
    examples: Mapping[str, list[Example]],
    settings: Encoding,
) -> dict[str, TokenizedDataset]:
    """The phases' data. With cached images: the vision encoder's hidden states, every image once;
    the projector still learns.
    """
    images = sorted({i for phase in examples.values() for e in phase for i in e.images})
    rows = {path: i for i, path in enumerate(images)}
    read = image_reader(data, processor, settings)
    grids = read.grids(images) if read else np.zeros((0, 3), dtype=np.int32)
    seen: dict[str, Any] = {}
    if read and images:
        seen = {"read_images": read}
        if settings.cache_images:
            parts = vision_features(read, images, partial(vision_hidden_states, model))
            seen["features"] = np.concatenate(list(parts))
            seen["feature_offsets"] = np.concatenate([[0], np.cumsum(grids.prod(axis=1))])
    return {
        name: replace(encode_examples(phase, processor, rows, grids, settings), **seen)
        for name, phase in examples.items()
    }
