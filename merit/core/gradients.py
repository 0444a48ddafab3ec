"""Mean task gradients at the base (docs/method.md 2, Algorithm 1 step 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch


def calibration_sample(num_examples: int, limit: int, seed: int) -> torch.Tensor:
    """int64 indices of at most `limit` of a task's examples, sorted; from the seed alone."""
    if num_examples <= limit:
        return torch.arange(num_examples)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_examples, generator=generator)[:limit].sort().values


def kept_entries(parameters: Mapping[str, torch.Tensor], stride: int) -> int:
    """How many entries `mean_gradient` keeps."""
    total = sum(p.numel() for p in parameters.values())
    return (total + stride - 1) // stride


def mean_gradient(
    losses: Iterable[Callable[[], tuple[torch.Tensor, int]]],
    parameters: Mapping[str, torch.nn.Parameter],
    stride: int,
) -> torch.Tensor:
    """The gradient of a task's mean loss, one entry in `stride` kept.

        g = sum_b m_b grad L_b / sum_b m_b

    over batches b whose mean loss L_b is over m_b loss-bearing tokens: the gradient of the task's
    mean loss per token, whatever the batch size. Entries lie in the order of `parameters`,
    flattened, and every `stride`-th of the whole is kept (the paper's stride of 5 keeps 20 %).

    Args: losses: one function a batch, giving (L_b, m_b).
    Returns: float32 (kept_entries,).
    """
    tensors = list(parameters.values())
    total: list[torch.Tensor] = [torch.zeros_like(p, dtype=torch.float32) for p in tensors]
    weight = 0
    for compute in losses:
        loss, count = compute()
        for sum_, gradient in zip(total, torch.autograd.grad(loss, tensors), strict=True):
            sum_.add_(gradient.float(), alpha=count)
        weight += count
    if weight == 0:
        raise ValueError("a task without a loss-bearing token has no gradient")
    return strided(total, stride) / weight


def strided(tensors: Iterable[torch.Tensor], stride: int) -> torch.Tensor:
    """Every `stride`-th entry of the flattened tensors' concatenation, without building it."""
    parts, position = [], 0
    for tensor in tensors:
        flat = tensor.reshape(-1)
        parts.append(flat[(-position) % stride :: stride])
        position += flat.numel()
    return torch.cat(parts)
