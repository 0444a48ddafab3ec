"""Mean task gradients at the base (docs/method.md 2, Algorithm 1 step 1).

A gradient is never held whole: as soon as autograd has a parameter's part, it is folded into linear
representations of fewer entries (`Stride`, `Sketch`) and freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from merit.errors import MeritError

CHUNK = 1 << 22  # entries widened and signed at a time


class Representation(Protocol):
    """A linear map from the P entries of a gradient to fewer, applied piece by piece."""

    def size(self, num_parameters: int) -> int:
        """How many entries represent a gradient of `num_parameters`."""

    def add(self, total: Tensor, entries: Tensor, start: int, weight: float) -> None:
        """total += weight * R(entries), in float32.

        Args: total float32 (size,); entries (n,) of any float type, on total's device: the
        gradient's entries start, ..., start + n - 1.
        """


@dataclass(frozen=True)
class Stride:
    """Every `every`-th entry of the gradient (docs/method.md, eq. (2)); 1 keeps all of them."""

    every: int

    def size(self, num_parameters: int) -> int:
        return -(-num_parameters // self.every)

    def add(self, total: Tensor, entries: Tensor, start: int, weight: float) -> None:
        kept = entries[-start % self.every :: self.every]
        first = self.size(start)
        total[first : first + len(kept)].add_(kept.float(), alpha=weight)


@dataclass(frozen=True)
class Sketch:
    """`buckets` signed sums of the gradient's entries (docs/method.md, eq. (52)).

    Entry i has the sign of `signs` and the bucket i mod `buckets`: one pass, no index, the same
    bytes on every run, and the same signs on every device.
    """

    buckets: int
    seed: int = 0

    def size(self, num_parameters: int) -> int:
        return self.buckets

    def add(self, total: Tensor, entries: Tensor, start: int, weight: float) -> None:
        rows = max(1, CHUNK // self.buckets)
        while len(entries):
            # up to where a row of buckets ends; whole rows from there on
            column = start % self.buckets
            length = self.buckets - column if column else rows * self.buckets
            part, entries = entries[:length], entries[length:]
            signed = part.float() * self.signs(start, len(part), part.device)
            whole = 0 if column else len(signed) // self.buckets * self.buckets
            if whole:
                total.add_(signed[:whole].view(-1, self.buckets).sum(dim=0), alpha=weight)
            rest = signed[whole:]
            total[column : column + len(rest)].add_(rest, alpha=weight)
            start += len(part)

    def signs(self, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        """float32 (count,): the signs, 1 or -1, of entries start, ..., start + count - 1.

        64 entries share a word of splitmix64, whose n-th output follows from n; entry i's
        sign is bit i mod 64 of word i // 64.
        """
        first, last = start // 64, (start + count - 1) // 64
        numbers = torch.arange(first + 1, last + 2, device=device)
        # mixed: of plain multiples, one seed's words would be another's, shifted
        origin = int(_mixed(torch.tensor(self.seed)))
        words = _mixed(numbers * _signed(_GOLDEN) + origin)
        places = torch.arange(8, dtype=torch.uint8, device=device)
        bits = (words.view(torch.uint8)[:, None] >> places) & 1
        return bits.view(-1)[start % 64 :][:count].float().mul_(-2).add_(1)


_GOLDEN = 0x9E3779B97F4A7C15


def _signed(word: int) -> int:
    """The int64 with the word's low 64 bits."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def _mixed(words: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 products wrap around on every device."""

    def shifted(x: Tensor, by: int) -> Tensor:  # a logical shift: int64's own keeps the sign
        return (x >> by) & ((1 << (64 - by)) - 1)

    words = (words ^ shifted(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ shifted(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ shifted(words, 31)


def calibration_sample(num_examples: int, limit: int, seed: int) -> Tensor:
    """int64 indices of at most `limit` of a task's examples, sorted; from only the seed."""
    if num_examples <= limit:
        return torch.arange(num_examples)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_examples, generator=generator)[:limit].sort().values


def mean_gradient(
    losses: Iterable[Callable[[], tuple[Tensor, int]]],
    parameters: Mapping[str, torch.nn.Parameter],
    representation: Representation,
) -> Tensor:
    """`mean_gradients` in one representation."""
    return mean_gradients(losses, parameters, [representation])[0]


def mean_gradients(
    losses: Iterable[Callable[[], tuple[Tensor, int]]],
    parameters: Mapping[str, torch.nn.Parameter],
    representations: Sequence[Representation],
) -> list[Tensor]:
    """The gradient of a task's mean loss in every representation, from one pass over its batches.

        g = sum_b m_b grad L_b / sum_b m_b

    over batches b whose mean loss L_b is over m_b supervised tokens: the gradient of the task's
    mean loss per token, whatever the batch size. Entries lie in the order of `parameters`,
    flattened. Gradients are widened to float32 before they are added up, on the device of the
    first parameter; one that the loss does not depend on has gradient zero.

    Args: losses: one function per batch, giving (L_b, m_b).
    Returns: float32 (representation.size(P),) each.
    Raises ValueError for a task without a supervised token or a tensor named twice; MeritError
    for parameters that are sharded over processes.
    """
    tensors = list(parameters.values())
    _check(parameters)
    device = tensors[0].device
    num_parameters = sum(p.numel() for p in tensors)
    totals = [torch.zeros(r.size(num_parameters), device=device) for r in representations]
    count = 0  # of the batch at hand

    def fold(parameter: Tensor, start: int) -> None:
        assert parameter.grad is not None
        entries = parameter.grad.reshape(-1).to(device)
        parameter.grad = None
        for total, representation in zip(totals, representations, strict=True):
            representation.add(total, entries, start, count)

    hooks, start = [], 0
    for parameter in tensors:
        parameter.grad = None
        hooks.append(
            parameter.register_post_accumulate_grad_hook(lambda p, start=start: fold(p, start))
        )
        start += parameter.numel()
    weight = 0
    try:
        for compute in losses:
            loss, count = compute()
            if loss.requires_grad:  # a projector without images has none
                loss.backward()
            weight += count
    finally:
        for hook in hooks:
            hook.remove()
    if weight == 0:
        raise ValueError("a task without a supervised token has no gradient")
    return [total / weight for total in totals]


def _check(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    seen: dict[int, str] = {}
    for name, parameter in parameters.items():
        if id(parameter) in seen:
            raise ValueError(f"{name!r} and {seen[id(parameter)]!r} are one tied tensor")
        seen[id(parameter)] = name
        if hasattr(parameter, "to_local"):  # a DTensor, as FSDP2 makes them
            raise MeritError(
                f"parameter {name!r} is sharded over processes, and gradients are taken from a "
                "whole model on one device: load it unsharded and divide the tasks instead "
                "(`merit run NAME gradients` does so on several GPUs)"
            )
