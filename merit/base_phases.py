"""Building theta0: the phases that end in a merge-ready base.

`labels` pre-trains the vision encoder (in place of a public one), `captions` aligns the projector
(stage 1), `conversations` tunes projector and decoder on instructions (stage 2). A phase says in
the YAML which components learn, so the paper's stages 1, 1.5 and 2 are phases, too.

What starts from nothing belongs to the miniature worlds and is loaded by name: a real base starts
from a public checkpoint and needs neither.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

from merit.config import Architecture, Phase, Training
from merit.training.encoded import Encoded
from merit.training.loop import Record, train
from merit.training.models import decoder, project, set_trainable
from merit.training.order import data_order, grouped_by_length

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


def run_phase(model: Any, data: Encoded, phase: Phase, seed: int, log: Log) -> None:
    """One language phase on `data`: pixels, or features, the vision encoder's hidden states."""
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
    )
