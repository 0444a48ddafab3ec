"""The training loop of a branch and of a base phase: next-token loss on tokenized examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from merit.config import Optimizer, Training
from merit.errors import MeritError
from merit.train.batches import BatchDataset, BatchPlan
from merit.train.checkpoint import Checkpoints, LoopState, Record, Stopped
from merit.train.dataset import TokenizedDataset
from merit.train.distributed import ProcessGroup, clip_gradients
from merit.train.loss import LanguageLoss, Project
from merit.train.model import use_kernels
from merit.train.optimizers import build_optimizers, by_kind, learning_rate_at, step_all


class Diverged(MeritError):
    """A loss, a gradient or a parameter that is not finite."""


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
    """Take the optimiser's steps over `order`, in place; the parameters become float32.

    A step's gradient is that of the mean loss over all its supervised tokens,

        grad L = sum_r m_r grad L_r / sum_r m_r

    over rows r (of all processes) whose mean loss L_r is over m_r tokens; zero without a token.

    `log` gets (record, timing) about `num_records` times: the record (step, epoch, mean loss since
    the last one, learning_rate, gradient_norm, num_tokens and num_loss_tokens so far) is a function
    of inputs and seed only; the timing (step, seconds, tokens_per_second: all tokens) is
    wall-clock.

    Args: settings: how a step is computed (default: one padded batch, float32); num_examples:
    examples in one epoch, if `order` draws on a part of `data` (a branch's group); name_of: what
    an example is called in messages; checkpoints: from which a stopped training resumes; group: the
    processes that share the branch.

    Raises Diverged, naming `what`, the step and its examples, for a loss, a gradient or at the end
    a parameter that is not finite; another MeritError for an image that cannot be read or a
    checkpoint that cannot be written; Stopped if `checkpoints` was told to stop.
    """
    settings = settings or Training(trainable=["decoder"], optimizer=optimizer)
    group = group or ProcessGroup()
    plan = BatchPlan.of(order, data, optimizer.batch_size, settings.pack_tokens, group.size)
    num_steps, per_epoch = len(plan), num_examples or len(data)
    every = max(1, num_steps // num_records)
    for parameter in parameters.values():
        if parameter.dtype != torch.float32:  # sums of small steps need the digits
            parameter.data = parameter.data.float()
    use_kernels(model, settings.kernels)
    module = LanguageLoss(model, project, settings.precision == "bfloat16")
    group.prepare(module, parameters)
    tensors, kinds = list(parameters.values()), by_kind(parameters.values())
    optimizers = build_optimizers(parameters, optimizer)
    state = LoopState()
    if checkpoints is not None:
        state = checkpoints.restore(parameters, optimizers)
    advice = f"lower `learning_rate` (now {optimizer.learning_rate:g}) or look at the data"

    def check_finite(quantity: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"{what}: the {quantity} {value} at step {step + 1} of {num_steps}; {advice}: "
                f"{_names(plan.examples(step), name_of)}"
            )

    model.train()
    shares = [plan.share(step, group.rank) for step in range(state.step, num_steps)]
    rows = [row for share in shares for row, _ in share]
    batches = BatchDataset(data, rows, plan.packed).read(settings.workers)
    started = last = time.monotonic()
    tokens_since = 0
    for step, share in enumerate(shares, start=state.step):
        rate = learning_rate_at(step, num_steps, optimizer)
        indices = plan.examples(step)
        num_targets = int(data.num_targets(indices).sum())
        losses = []
        for row, counts in share:
            weight = float(data.num_targets(row).sum()) / max(num_targets, 1) if counts else 0.0
            loss = module(next(batches))
            # the mean of the processes' gradients is taken below, and by FSDP
            if loss.requires_grad:  # a projector without images has none
                (loss * (weight * group.size)).backward()
            losses.append((loss.detach(), weight))
        value = group.total(sum(loss.item() * weight for loss, weight in losses))
        check_finite("loss is", value, step)
        group.average_gradients(tensors)
        norm = clip_gradients(kinds, optimizer.max_grad_norm)
        # before it reaches the parameters, and with them a checkpoint
        check_finite("gradient's norm is", norm, step)
        step_all(optimizers, rate)
        num_tokens = int(plan.lengths[indices].sum())
        tokens_since += num_tokens
        state.step += 1
        state.num_tokens += num_tokens
        state.num_loss_tokens += num_targets
        state.loss_since += value
        state.count_since += 1
        if state.step % every == 0 or state.step == num_steps:
            now = time.monotonic()
            epoch = min(state.step * optimizer.batch_size, len(order)) / per_epoch
            log(
                {
                    "step": state.step,
                    "epoch": round(epoch, 6),
                    "loss": state.loss_since / state.count_since,
                    "learning_rate": rate,
                    "gradient_norm": norm,
                    "num_tokens": state.num_tokens,
                    "num_loss_tokens": state.num_loss_tokens,
                },
                {
                    "step": state.step,
                    "seconds": now - started,
                    "tokens_per_second": tokens_since / max(now - last, 1e-9),
                },
            )
            last, tokens_since, state.loss_since, state.count_since = now, 0, 0.0, 0
        if checkpoints is not None and state.step < num_steps:
            # clocks differ, and a signal reaches one process before another; `stop` is read once,
            # so that none comes between the saving and the end
            due, stop = group.any(checkpoints.due(), checkpoints.stop.is_set())
            if due or stop:
                checkpoints.save(state, parameters, optimizers)
            if stop:
                raise Stopped(f"{what}: stopped after step {state.step} of {num_steps}")
    # the last step has no loss after it that would show what it did
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise Diverged(
            f"{what}: the parameters are not finite after step {num_steps} of {num_steps}; {advice}"
        )
    model.eval()


def _names(indices: np.ndarray, name_of: Callable[[int], str], shown: int = 8) -> str:
    """The first examples of a step, for a message."""
    names = [name_of(int(i)) for i in indices[:shown]]
    more = f" and {len(indices) - shown} more" if len(indices) > shown else ""
    return ", ".join(names) + more
