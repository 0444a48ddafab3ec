"""Random weights, and base phases that make their own examples: only the miniature worlds have
them.

They are loaded by name: a real base starts from a public checkpoint and needs neither.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from merit.config import Architecture, Phase

if TYPE_CHECKING:
    from merit.train.checkpoint import Log

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
    """Train one phase that makes its own examples; `phase.data` is a key of `PRETRAINING`."""
    pkgutil.resolve_name(PRETRAINING[phase.data])(model, processor, phase, seed, log)
