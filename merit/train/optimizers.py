"""AdamW, SGD, Muon and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from merit.config import Optimizer
from merit.errors import MeritError


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


def by_kind(parameters: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters that are sharded over processes and whole ones apart: one operation takes either.

    A list only for each kind that occurs.
    """
    kinds: dict[bool, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(hasattr(parameter, "full_tensor"), []).append(parameter)
    return list(kinds.values())


def build_optimizers(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: Optimizer
) -> list[torch.optim.Optimizer]:
    """AdamW, SGD without momentum, or Muon with AdamW, at the peak learning rate.

    Muon (Jordan et al., 2024) steps the matrices inside the model, scaled to AdamW's step length;
    AdamW steps embeddings, norms, biases and convolutions.
    """
    rate, decay = optimizer.learning_rate, optimizer.weight_decay

    def groups(chosen: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": kind} for kind in by_kind(chosen)]

    if optimizer.algorithm == "sgd":
        return [torch.optim.SGD(groups(parameters.values()), lr=rate, weight_decay=decay)]
    matrices = [
        parameter
        for name, parameter in parameters.items()
        if optimizer.algorithm == "muon" and parameter.ndim == 2 and "embed" not in name
    ]
    chosen = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in parameters.values() if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if optimizer.algorithm == "adamw_8bit":
        adamw_8bit = _eight_bits()(groups(rest), lr=rate, betas=optimizer.betas, weight_decay=decay)
        return [adamw_8bit]
    if matrices:
        scaled = "match_rms_adamw"
        muon = torch.optim.Muon(groups(matrices), lr=rate, weight_decay=decay, adjust_lr_fn=scaled)
        optimizers.append(muon)
    if rest:
        betas = optimizer.betas
        adamw = torch.optim.AdamW(
            groups(rest), lr=rate, betas=betas, weight_decay=decay, fused=True
        )
        optimizers.append(adamw)
    return optimizers


def _eight_bits() -> Any:
    """torchao's AdamW, which FSDP2 can cut. Raises MeritError where torchao is missing."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise MeritError(
            f"key `optimizer.algorithm`: 'adamw_8bit' needs torchao ({error}); `pip install "
            "'merit[gpu]'`, or set `adamw`"
        ) from None
    return AdamW8bit


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all groups, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def step_all(optimizers: Sequence[torch.optim.Optimizer], learning_rate: float) -> None:
    """Step every optimiser at this learning rate and drop the gradients."""
    for optimizer in optimizers:
        set_rate(optimizer, learning_rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
