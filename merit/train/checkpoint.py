"""A branch's checkpoints: what a training that was stopped goes on from, to the bit.

safetensors files in the branch's partial folder: parameters, optimiser states and where the loop
was. The order of the data follows from the seed, so it need not be stored. Every process of a
branch writes what it holds itself.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merit.errors import MeritError
from merit.io.disk import writing

GO_ON = 75  # exit status of a training that was asked to stop and can go on (EX_TEMPFAIL)


@dataclass
class Progressed:
    """How far a training has come, and its sums since the last record."""

    step: int = 0
    num_tokens: int = 0
    num_loss_tokens: int = 0
    loss_since: float = 0.0
    count_since: int = 0


class Checkpoints:
    """Checkpoints of one process of a branch, in `folder`; one every `minutes` (None: on a stop).

    `records` and `timings` are the lists that the loop's log fills; they are stored, too. `stop` is
    set from outside (a signal): the loop saves after the step that it is at, and ends.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float | None,
        records: list[dict[str, float]],
        timings: list[dict[str, float]],
        rank: int = 0,
    ) -> None:
        self.path = folder / f"checkpoint-{rank}.safetensors"
        # while the other processes write theirs
        self.previous = folder / f"checkpoint-{rank}-previous.safetensors"
        self.seconds = None if minutes is None else 60 * minutes
        self.logs = {"records": records, "timings": timings}
        self.stop = False
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether the time to save has come."""
        waited = time.monotonic() - self.saved
        return self.seconds is not None and waited >= self.seconds

    def save(
        self,
        progressed: Progressed,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Write the whole state; the last one is kept until all processes have done so.

        Raises MeritError where the disk is full; then the last one is left.
        """
        state = {"progressed": asdict(progressed), **self.logs}
        temporary = self.path.with_suffix(".new")
        tensors = {k: t.contiguous() for k, t in _tensors(parameters, optimizers).items()}
        with writing(temporary):
            save_file(tensors, temporary, metadata={"state": json.dumps(state)})
        if self.path.is_file():
            os.replace(self.path, self.previous)
        os.replace(temporary, self.path)
        self.saved = time.monotonic()

    def forget_previous(self) -> None:
        """Every process has written the last state."""
        self.previous.unlink(missing_ok=True)

    def restore(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        common: Callable[[int], int] = lambda step: step,
    ) -> Progressed:
        """Put back the last state that every process saved, if there is one; how far it had come.

        Args: common: the smallest step of all processes, given this one's last.
        Raises MeritError where a file cannot be read or is of another model or number of processes.
        """
        steps = {_step(path): path for path in (self.previous, self.path) if path.is_file()}
        step = common(max(steps, default=0))
        if not step:
            return Progressed()
        if step not in steps:
            raise MeritError(
                f"{self.path}: not of step {step}, as those of other processes; delete "
                f"{self.path.parent} to start anew"
            )
        path = steps[step]
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                _fill_states(optimizers)
                targets = _tensors(parameters, optimizers)
                if set(targets) != set(file.keys()):
                    raise ValueError("it holds other tensors")
                for name, target in targets.items():
                    target.copy_(file.get_tensor(name))
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise _unreadable(path, error) from None
        for name, rows in self.logs.items():
            rows[:] = state[name]
        return Progressed(**state["progressed"])


def stopping(checkpoints: Checkpoints) -> None:
    """Let SIGTERM and SIGUSR2 (Slurm, before the time is up) end the training after its step."""

    def stop(number: int, frame: Any) -> None:
        checkpoints.stop = True
        for again in (signal.SIGTERM, signal.SIGUSR2):  # Slurm and the job may say it twice, and
            signal.signal(again, signal.SIG_IGN)  # the second would end a process that is leaving

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, stop)


def _step(path: Path) -> int:
    """The step that a checkpoint was written after. Raises MeritError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["state"])["progressed"]["step"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> MeritError:
    return MeritError(f"{path}: no checkpoint to go on from ({error}); delete it to start anew")


@torch.no_grad()
def _tensors(
    parameters: Mapping[str, torch.nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """Every tensor of the state by name: <parameter> and <parameter>/<optimiser's own name>."""
    found = {name: _local(parameter) for name, parameter in parameters.items()}
    for optimizer in optimizers:
        for name, parameter in parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    found[f"{name}/{key}"] = _local(value)
    return found


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that may be sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _fill_states(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the optimisers make their states, as the first step does; nothing moves."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
