"""The training loop of one branch (and of a base phase): next-token loss on encoded examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from merit.config import Optimizer
from merit.errors import MeritError
from merit.training.encoded import IGNORED, Encoded
from merit.training.models import has_vision

Record = dict[str, float]
Project = Callable[[torch.Tensor], torch.Tensor]


def forward_loss(
    model: Any, batch: dict[str, torch.Tensor], project: Project | None
) -> torch.Tensor:
    """Mean next-token loss over the batch's loss-bearing tokens (scalar).

    `project` turns cached vision hidden states into image embeddings, where the projector learns;
    without it the batch's images are image embeddings already. A text model takes neither images
    nor positions.
    """
    if not has_vision(model):
        return model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss

    from transformers.modeling_outputs import BaseModelOutputWithPooling

    encoder = None
    if len(batch["images"]):
        embeddings = batch["images"] if project is None else project(batch["images"])
        # a sequence of one tensor a picture, as the vision encoder itself returns it
        encoder = {"image": BaseModelOutputWithPooling(pooler_output=tuple(embeddings))}  # type: ignore[arg-type]
    output = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        labels=batch["labels"],
        mm_encoder_outputs=encoder,
        use_cache=False,
    )
    return output.loss


def data_order(num_examples: int, epochs: float, seed: int) -> np.ndarray:
    """int64 indices: a fresh permutation an epoch, the last one cut short; from the seed alone."""
    rng = np.random.default_rng(seed)
    total = round(num_examples * epochs)
    passes = [rng.permutation(num_examples) for _ in range(math.ceil(epochs))]
    return np.concatenate(passes)[:total]


def grouped_by_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, seed: int, window: int = 16
) -> np.ndarray:
    """`order` with examples of like length in one batch, as LLaVA trains its base: less padding.

    Within every `window` batches of the order, examples are sorted by `lengths` (one for each
    example of the data) and the batches are then shuffled; a last, smaller batch stays last.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, len(order), window * batch_size):
        part = order[start : start + window * batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        full = len(part) // batch_size * batch_size
        rows = part[:full].reshape(-1, batch_size)
        parts += [rows[rng.permutation(len(rows))].ravel(), part[full:]]
    return np.concatenate(parts)


def batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Slices of the data order; the last one may be smaller, so that every example is seen."""
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def learning_rate_at(step: int, num_steps: int, optimizer: Optimizer) -> float:
    """Linear warm-up over warmup_ratio of the steps, then the schedule's decay to zero."""
    warmup = int(optimizer.warmup_ratio * num_steps)
    if step < warmup:
        return optimizer.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[optimizer.schedule]
    return optimizer.learning_rate * factor


def build_optimizers(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: Optimizer
) -> list[torch.optim.Optimizer]:
    """AdamW, SGD without momentum, or Muon with AdamW, at the peak learning rate.

    Muon (Jordan et al., 2024) is for the matrices inside the model: embeddings, norms, biases and
    convolutions take AdamW, whose step length its own is scaled to.
    """
    rate, decay = optimizer.learning_rate, optimizer.weight_decay
    if optimizer.algorithm == "sgd":
        return [torch.optim.SGD(parameters.values(), lr=rate, weight_decay=decay)]
    matrices = [
        parameter
        for name, parameter in parameters.items()
        if optimizer.algorithm == "muon" and parameter.ndim == 2 and "embed" not in name
    ]
    chosen = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in parameters.values() if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        scaled = "match_rms_adamw"
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn=scaled)
        optimizers.append(muon)
    if rest:
        betas = optimizer.betas
        adamw = torch.optim.AdamW(rest, lr=rate, betas=betas, weight_decay=decay, fused=True)
        optimizers.append(adamw)
    return optimizers


def step_all(optimizers: Sequence[torch.optim.Optimizer], learning_rate: float) -> None:
    """One step of every optimiser at this learning rate; the gradients are gone afterwards."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def train(
    model: Any,
    parameters: dict[str, torch.nn.Parameter],
    data: Encoded,
    order: np.ndarray,
    optimizer: Optimizer,
    *,
    what: str,
    batch_size: int | None = None,
    num_examples: int | None = None,
    project: Project | None = None,
    log: Callable[[Record, Record], None] = lambda record, timing: None,
    num_records: int = 200,
) -> None:
    """The optimiser's steps over `order`, in place.

    `log` gets (record, timing) about `num_records` times: the record (step, epoch, mean loss since
    the last one, learning_rate, gradient_norm, num_tokens and num_loss_tokens so far) is a function
    of inputs and seed alone; the timing (step, seconds, tokens_per_second: all tokens) is
    wall-clock.

    Args: num_examples: examples in one epoch, where `order` draws on a part of `data` (a branch's
    group).

    Raises MeritError, naming `what` and the step, where the loss, or at the end a parameter, is not
    finite.
    """
    size = batch_size or optimizer.batch_size
    num_steps = math.ceil(len(order) / size)
    per_epoch = num_examples or len(data)
    every = max(1, num_steps // num_records)
    tensors = list(parameters.values())
    optimizers = build_optimizers(parameters, optimizer)
    model.train()
    lengths = data.num_tokens()
    num_tokens, num_loss_tokens, tokens_since, loss_since, count_since = 0, 0, 0, 0.0, 0
    started = last = time.monotonic()
    for step, indices in enumerate(batches(order, size)):
        rate = learning_rate_at(step, num_steps, optimizer)
        batch = data.batch(indices)
        loss = forward_loss(model, batch, project)
        value = loss.item()
        if not math.isfinite(value):
            raise MeritError(
                f"{what}: the loss is {value} at step {step + 1} of {num_steps}; lower "
                f"`learning_rate` (now {optimizer.learning_rate:g}) or look at the data"
            )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tensors, optimizer.max_grad_norm)
        step_all(optimizers, rate)
        num_loss_tokens += int((batch["labels"][:, 1:] != IGNORED).sum())
        seen = int(lengths[indices].sum())
        num_tokens, tokens_since = num_tokens + seen, tokens_since + seen
        loss_since, count_since = loss_since + value, count_since + 1
        if (step + 1) % every == 0 or step + 1 == num_steps:
            now = time.monotonic()
            log(
                {
                    "step": step + 1,
                    "epoch": round(min((step + 1) * size, len(order)) / per_epoch, 6),
                    "loss": loss_since / count_since,
                    "learning_rate": rate,
                    "gradient_norm": float(norm),
                    "num_tokens": num_tokens,
                    "num_loss_tokens": num_loss_tokens,
                },
                {
                    "step": step + 1,
                    "seconds": now - started,
                    "tokens_per_second": tokens_since / max(now - last, 1e-9),
                },
            )
            last, tokens_since, loss_since, count_since = now, 0, 0.0, 0
    # the last step has no loss after it that would show what it did
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise MeritError(
            f"{what}: the parameters are not finite after step {num_steps} of {num_steps}; lower "
            f"`learning_rate` (now {optimizer.learning_rate:g}) or look at the data"
        )
    model.eval()
