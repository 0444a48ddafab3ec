"""Building theta0: the phases that end in a merge-ready base.

`labels` pre-trains the vision encoder (in place of a public one), `captions` aligns the projector
(stage 1), `conversations` tunes projector and decoder on instructions (stage 2). A phase says in
the YAML which components learn, so the paper's stages 1, 1.5 and 2 are phases, too.

What starts from nothing belongs to the miniature worlds and is loaded by name: a real base starts
from a public checkpoint and needs neither.
"""

from __future__ import annotations

import json
import os
import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merit.config import Architecture, Phase, Training
from merit.errors import MeritError
from merit.io.disk import writing
from merit.train.checkpoint import Checkpoints
from merit.train.dataset import TokenizedDataset
from merit.train.loop import Record, train
from merit.train.model import decoder, project, set_trainable
from merit.train.order import data_order, grouped_by_length

KEPT = "phases.safetensors"  # the parameters after the phases that are finished
Log = Callable[[Record, Record], None]

# module:function of (architecture, seed) -> (model, processor), weights random
INITIALISERS = {
    "mini_vision": "merit.mini.nets:vision_model",
    "mini_text": "merit.mini.nets:text_model",
}
# `data` of a phase that makes its own examples -> module:function of
# (model, processor, phase, seed, log)
PRETRAINING = {"labels": "merit.mini.world.vision:pretrain_vision"}


def initialise(architecture: Architecture, seed: int) -> tuple[Any, Any]:
    """(model, processor) with random weights; a text model's processor is its tokenizer."""
    name = "mini_vision" if architecture.has_vision else "mini_text"
    return pkgutil.resolve_name(INITIALISERS[name])(architecture, seed)


def pretrain(model: Any, processor: Any, phase: Phase, seed: int, log: Log) -> None:
    """One phase that makes its own examples; `phase.data` is a key of `PRETRAINING`."""
    pkgutil.resolve_name(PRETRAINING[phase.data])(model, processor, phase, seed, log)


def save_phases(model: Any, finished: int, records: list[Record], folder: Path) -> None:
    """The model after `finished` phases, and their records, in place of what was kept before."""
    tensors = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    path = folder / KEPT
    temporary = path.with_suffix(".new")
    state = {"finished": finished, "records": records}
    with writing(temporary):
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})
    os.replace(temporary, path)


def restore_phases(model: Any, folder: Path) -> tuple[int, list[Record]]:
    """How many phases `save_phases` kept, in the model from now on, and their records.

    Raises MeritError where the file cannot be read.
    """
    path = folder / KEPT
    if not path.is_file():
        return 0, []
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            for name, parameter in model.named_parameters():
                parameter.data = file.get_tensor(name).to(parameter.device)
    except (SafetensorError, OSError, ValueError) as error:
        raise MeritError(f"{path}: no phases to go on from ({error}); delete it") from None
    return state["finished"], state["records"]


def run_phase(
    model: Any,
    data: TokenizedDataset,
    phase: Phase,
    seed: int,
    log: Log,
    checkpoints: Checkpoints | None = None,
) -> None:
    """One language phase on `data`: pixels, or features, the vision encoder's hidden states.

    Raises as `merit.train.loop.train`.
    """
    parameters = set_trainable(model, phase.trainable)
    if phase.gradient_checkpointing:
        decoder(model).activation_checkpointing_enable()
    needed = phase.num_steps * phase.optimizer.batch_size
    order = data_order(len(data), needed / len(data), seed)
    order = grouped_by_length(order, data.num_tokens(), phase.optimizer.batch_size, seed)
    train(
        model,
        parameters,
        data,
        order,
        phase.optimizer,
        what=f"base phase {phase.name!r}",
        settings=Training(
            trainable=phase.trainable,
            optimizer=phase.optimizer,
            precision=phase.precision,
            pack_tokens=phase.pack_tokens,
            workers=phase.workers,
        ),
        project=partial(project, model) if len(data.features) else None,
        log=log,
        num_records=50,
        checkpoints=checkpoints,
    )
