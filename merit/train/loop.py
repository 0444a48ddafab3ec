"""The training loop of one branch (and of a base phase): next-token loss on encoded examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from merit.config import Optimizer, Training
from merit.errors import MeritError
from merit.train.checkpoint import Checkpoints, Progressed
from merit.train.dataset import Batch, TokenizedDataset, packed_rows
from merit.train.distributed import ProcessGroup
from merit.train.loss import LanguageLoss, Project
from merit.train.optimizers import build_optimizers, learning_rate_at, step_all
from merit.train.order import batches

Record = dict[str, float]


class Diverged(MeritError):
    """A loss, a gradient or a parameter that is not finite."""


class Stopped(Exception):
    """Training was asked to stop; its checkpoint is written, and it goes on from there."""


@dataclass(frozen=True)
class BatchPlan:
    """Which examples each forward pass of each step sees: `rows[step]`, indices into the data."""

    rows: list[list[np.ndarray]]
    packed: bool

    @classmethod
    def of(
        cls, order: np.ndarray, data: TokenizedDataset, size: int, pack_tokens: int | None
    ) -> BatchPlan:
        """Steps of `size` examples, as one batch each or packed into rows of `pack_tokens`."""
        chosen = list(batches(order, size))
        if pack_tokens is None:
            return cls([[indices] for indices in chosen], False)
        lengths = data.num_tokens()
        rows = [
            [indices[row] for row in packed_rows(lengths[indices], pack_tokens)]
            for indices in chosen
        ]
        return cls(rows, True)

    def __len__(self) -> int:
        return len(self.rows)

    def examples(self, step: int) -> np.ndarray:
        return np.concatenate(self.rows[step])


class BatchDataset(torch.utils.data.Dataset):
    """The rows that one process computes, one behind the other; read in workers where asked for."""

    def __init__(self, data: TokenizedDataset, rows: Sequence[np.ndarray], packed: bool) -> None:
        self.data, self.rows, self.packed = data, rows, packed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch | MeritError:
        try:
            return (self.data.pack if self.packed else self.data.batch)(self.rows[index])
        except MeritError as error:  # raised in a worker it would come with a traceback
            return error

    def read(self, workers: int) -> Iterator[Batch]:
        """Batches in order. Raises MeritError where an image cannot be read."""
        loader = torch.utils.data.DataLoader(
            self,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=bool(workers) and torch.cuda.is_available(),
        )
        for batch in loader:
            if isinstance(batch, MeritError):
                raise batch
            yield batch


def train(
    model: Any,
    parameters: dict[str, torch.nn.Parameter],
    data: TokenizedDataset,
    order: np.ndarray,
    optimizer: Optimizer,
    *,
    what: str,
    settings: Training | None = None,
    num_examples: int | None = None,
    project: Project | None = None,
    log: Callable[[Record, Record], None] = lambda record, timing: None,
    num_records: int = 200,
    name_of: Callable[[int], str] = "example {}".format,
    checkpoints: Checkpoints | None = None,
    group: ProcessGroup | None = None,
) -> None:
    """The optimiser's steps over `order`, in place; the parameters are float32 from then on.

    A step's gradient is that of the mean loss over all its loss-bearing tokens,

        grad L = sum_r m_r grad L_r / sum_r m_r

    over rows r (of all processes) whose mean loss L_r is over m_r tokens; zero without a token.

    `log` gets (record, timing) about `num_records` times: the record (step, epoch, mean loss since
    the last one, learning_rate, gradient_norm, num_tokens and num_loss_tokens so far) is a function
    of inputs and seed alone; the timing (step, seconds, tokens_per_second: all tokens) is
    wall-clock.

    Args: settings: how a step is computed (default: one padded batch, float32); num_examples:
    examples in one epoch, where `order` draws on a part of `data` (a branch's group); name_of: what
    an example is called in messages; checkpoints: where the training goes on after it was stopped;
    group: the processes that share the branch.

    Raises Diverged, naming `what`, the step and its examples, where the loss, its gradient, or at
    the end a parameter, is not finite; another MeritError where an image cannot be read or a
    checkpoint cannot be written; Stopped where `checkpoints` was told to stop.
    """
    settings = settings or Training(trainable=["decoder"], optimizer=optimizer)
    group = group or ProcessGroup.alone(settings.precision)
    plan = BatchPlan.of(order, data, optimizer.batch_size, settings.pack_tokens)
    num_steps = len(plan)
    per_epoch = num_examples or len(data)
    every = max(1, num_steps // num_records)
    lengths = data.num_tokens()
    for parameter in parameters.values():
        if parameter.dtype != torch.float32:  # sums of small steps need the digits
            parameter.data = parameter.data.float()
    module = group.prepare(LanguageLoss(model, project), parameters)
    tensors = list(parameters.values())
    optimizers = build_optimizers(parameters, optimizer)
    now = Progressed()
    if checkpoints is not None:
        now = checkpoints.restore(parameters, optimizers, group.least)

    def check_finite(found: str, value: float, step: int, indices: np.ndarray) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"{what}: the {found} {value} at step {step + 1} of {num_steps}; lower "
                f"`learning_rate` (now {optimizer.learning_rate:g}) or look at the data: "
                f"{_names(indices, name_of)}"
            )

    model.train()
    mine = [group.share(plan.rows[step]) for step in range(now.step, num_steps)]
    reader = BatchDataset(data, [row for rows in mine for row in rows], plan.packed)
    read = reader.read(settings.workers)
    started = last = time.monotonic()
    tokens_since = 0
    for step, rows in enumerate(mine, start=now.step):
        rate = learning_rate_at(step, num_steps, optimizer)
        indices = plan.examples(step)
        own = group.own(plan.rows[step])
        total = int(data.num_targets(indices).sum())
        losses = []
        for i, row in enumerate(rows):
            # a row beyond this process's own only keeps it in step with the others
            share = float(data.num_targets(row).sum()) / max(total, 1) if i < own else 0.0
            with group.precision():
                loss = module(next(read))
            (loss * (share * group.averaged_over)).backward()
            losses.append((loss.detach(), share))
        value = group.total(sum(loss.item() * share for loss, share in losses))
        check_finite("loss is", value, step, indices)
        group.sum_gradients(tensors)
        norm = group.clip(tensors, optimizer.max_grad_norm)
        # before it reaches the parameters, and with them a checkpoint
        check_finite("gradient's norm is", norm, step, indices)
        step_all(optimizers, rate)
        now.num_loss_tokens += total
        seen = int(lengths[indices].sum())
        now.num_tokens, tokens_since = now.num_tokens + seen, tokens_since + seen
        now.loss_since, now.count_since = now.loss_since + value, now.count_since + 1
        now.step = step + 1
        if now.step % every == 0 or now.step == num_steps:
            clock = time.monotonic()
            log(
                {
                    "step": now.step,
                    "epoch": round(min(now.step * optimizer.batch_size, len(order)) / per_epoch, 6),
                    "loss": now.loss_since / now.count_since,
                    "learning_rate": rate,
                    "gradient_norm": norm,
                    "num_tokens": now.num_tokens,
                    "num_loss_tokens": now.num_loss_tokens,
                },
                {
                    "step": now.step,
                    "seconds": clock - started,
                    "tokens_per_second": tokens_since / max(clock - last, 1e-9),
                },
            )
            last, tokens_since, now.loss_since, now.count_since = clock, 0, 0.0, 0
        if checkpoints is not None and now.step < num_steps:
            # clocks differ, and a signal reaches one process before another; `stop` is looked at
            # once, so that none comes between the saving and the end
            due, stop = group.any(checkpoints.due(), checkpoints.stop)
            if due or stop:
                checkpoints.save(now, parameters, optimizers)
                group.any(False)  # until all have written theirs
                checkpoints.forget_previous()
            if stop:
                raise Stopped(f"{what}: stopped after step {now.step} of {num_steps}")
    # the last step has no loss after it that would show what it did
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise Diverged(
            f"{what}: the parameters are not finite after step {num_steps} of {num_steps}; lower "
            f"`learning_rate` (now {optimizer.learning_rate:g}) or look at the data"
        )
    model.eval()


def _names(indices: np.ndarray, name_of: Callable[[int], str], shown: int = 8) -> str:
    """The first examples of a step, for a message."""
    names = [name_of(int(i)) for i in indices[:shown]]
    more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
    return ", ".join(names) + more
