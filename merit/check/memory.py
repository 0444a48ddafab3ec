"""Peak memory of what is run on a model, part by part, in bytes: arithmetic on exact counts.

The parts follow the code: merit.train.distributed (what is cut, gathered and reduced),
merit.train.loss (logits a chunk at a time), merit.method.gradients (one gradient at a time). Of
the activations what autograd keeps is counted (tests compare it with what autograd keeps); the
CUDA context and the allocator's gaps are `OVERHEAD`.
"""

from __future__ import annotations

import re

from merit.check.shapes import Shapes
from merit.config import Lora
from merit.train.loss import CHUNK, SMALL_VOCABULARY

Parts = dict[str, float]
OVERHEAD = 1.5e9  # bytes; a CUDA context is 0.5e9, the rest is for the allocator's gaps
STATES = {"adamw": 2, "muon": 2, "sgd": 0}  # float32 numbers a trained parameter; muon's: at most


def training_memory(
    shapes: Shapes,
    gpus: int,
    tokens: float,
    *,
    bfloat16: bool = True,
    checkpointing: bool = True,
    entries: int | None = None,
    states: int = 2,
    dense_mask: bool = False,
    sharded: bool = True,
) -> Parts:
    """A GPU's share of a branch whose decoder is trained on `gpus` of them.

    Args: tokens: of one forward pass, `pack_tokens` or a padded batch's, all of them an image's in
    the worst case; entries: of adapters, or of a part that is trained beside a frozen decoder;
    states: of the optimiser, a float32 each; dense_mask: packed rows under sdpa; sharded: False of
    a phase of the base, which computes under autocast.
    """
    width = 2 if bfloat16 else 4
    if entries is not None:
        # the model stays as it is stored, whole in every process
        parts = {
            "weights": float(shapes.stored_bytes * shapes.total),
            "trained, gradients, states": (8.0 + 4 * states) * entries,
        }
    else:
        parts = {
            "float32 weights": 4 * shapes.decoder / gpus,
            "gradients": 4 * shapes.decoder / gpus,
            "optimiser": 4 * states * shapes.decoder / gpus,
            "vision part": float(shapes.stored_bytes * shapes.vision),
        }
        if not sharded:
            parts["copies of autocast"] = 2.0 * shapes.decoder * bfloat16
        elif bfloat16 or gpus > 1:
            outside, layer = shapes.outside_layers, shapes.layer
            # the next layer is gathered while one computes; the root stays
            parts["gathered"] = width * (outside + 2.0 * layer)
            # gradients of the root and of a layer, and one of them in float32 to be summed up
            parts["gradients in flight"] = width * (outside + layer) + 4.0 * max(outside, layer)
    parts["activations"] = activations(shapes, tokens, width, checkpointing)
    if dense_mask:
        parts["attention mask"] = (1 + width) * tokens**2
    parts["vision part's pass"] = vision_pass(shapes, tokens)
    parts["logits"] = logits(shapes, tokens, width)
    return parts | {"overhead": OVERHEAD}


def gradients_memory(shapes: Shapes, tokens: float, kept: int, width: int) -> Parts:
    """Task gradients at theta0: no state, a gradient gone as soon as it is folded in."""
    return {
        "weights": float(width * shapes.total),
        "gradients": 2.0 * width * shapes.largest,
        "entries kept": 4.0 * kept,
        "activations": activations(shapes, tokens, width, False),
        "vision part's pass": vision_pass(shapes, tokens),
        "logits": logits(shapes, tokens, width),
        "overhead": OVERHEAD,
    }


def generation_memory(
    shapes: Shapes, batch_size: int, prompt_tokens: float, new_tokens: int, width: int
) -> Parts:
    """Batched generation with a KV cache."""
    read = batch_size * prompt_tokens
    return {
        "weights": float(width * shapes.total),
        "KV cache": 2.0 * width * shapes.kv * shapes.num_layers * (read + batch_size * new_tokens),
        "one layer's pass": width * read * (4.0 * shapes.hidden + 3.0 * shapes.intermediate),
        "vision part's pass": vision_pass(shapes, read),
        "logits": (width + 4.0) * batch_size * shapes.vocabulary,
        "overhead": OVERHEAD,
    }


def merging_memory(num_branches: int) -> Parts:
    """Host memory of a weighted average: pieces of 2^18 entries in float64, whatever the model.

    Checkpoints are read a piece at a time (merit.io.checkpoints): no file is held.
    """
    return {"pieces": 8 * 2.0**18 * (num_branches + 4), "overhead": 1e9}


def activations(shapes: Shapes, tokens: float, width: int, checkpointing: bool) -> float:
    """What the decoder's layers keep for the backward pass.

    A layer keeps, a token, about 10 hidden sizes (two of the four copies before each norm in
    float32), 4 intermediate ones, keys and values. With checkpointing: every layer's input, and one
    layer twice, computed again and its gradients.
    """
    layer = tokens * width * (10 * shapes.hidden + 4 * shapes.intermediate + 2 * shapes.kv)
    if not checkpointing:
        return float(shapes.num_layers * layer)
    return float(tokens * width * shapes.hidden * shapes.num_layers + 2 * layer)


def vision_pass(shapes: Shapes, tokens: float) -> float:
    """One block of the frozen vision part without gradients, all tokens an image's."""
    entries = 6 * shapes.vision_hidden + 3 * shapes.vision_intermediate
    return float(shapes.stored_bytes * shapes.patches * tokens * entries)


def logits(shapes: Shapes, tokens: float, width: int) -> float:
    """Logits, their logarithms in float32, and the gradient: of a chunk, where there are many."""
    rows = tokens if shapes.vocabulary <= SMALL_VOCABULARY else min(tokens, CHUNK)
    return float(rows * shapes.vocabulary * (width + 8))


def adapter_entries(shapes: Shapes, lora: Lora) -> int:
    """r (inputs + outputs) of every linear map that `targets` matches."""
    return lora.rank * sum(
        n for name, n in shapes.linears.items() if re.fullmatch(lora.targets, name)
    )
