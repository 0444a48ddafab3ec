"""Checkpoints of a training: a stopped one resumes from them, to the bit.

safetensors files in the partial folder of the result: parameters, optimiser states and where the
loop was. The order of the data follows from the seed, so it is not stored. Every process of a
branch writes what it holds itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merit.errors import MeritError
from merit.io.disk import writing
from merit.io.progress import Progress

RESUMABLE = 75  # exit status of a training that was asked to stop and can resume (EX_TEMPFAIL)
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # Slurm sends USR2 before the time is up
Record = dict[str, float]


class Stopped(Exception):
    """Training was asked to stop; its checkpoint is written, and it resumes from there."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGUSR2 sets; on `Stopped` the process exits with `RESUMABLE`."""
    stop = threading.Event()

    def set_stop(number: int, frame: Any) -> None:
        stop.set()
        for again in SIGNALS:  # Slurm and the job may both send one, and the second would end a
            signal.signal(again, signal.SIG_IGN)  # process that is about to exit

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, set_stop) for number in SIGNALS}
    try:
        yield stop
    except Stopped as stopped:
        print(f"{stopped}; the same command resumes it", file=sys.stderr)
        sys.exit(RESUMABLE)
    finally:
        if not stop.is_set():
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class Log:
    """What a training's steps have given: records, which are results, and wall-clock timings.

    `first`: the steps before this training on the progress bar; `phase`: the base phase's name.
    """

    progress: Progress
    first: int = 0
    phase: str | None = None
    records: list[Record] = field(default_factory=list)
    timings: list[Record] = field(default_factory=list)

    def __call__(self, record: Record, timing: Record) -> None:
        step = int(self.first + record["step"])
        if self.phase is not None:
            record = {"phase": self.phase, **record, "step": step}  # type: ignore[dict-item]
        self.records.append(record)
        self.timings.append(timing)
        self.progress.advance(step - self.progress.n)


@dataclass
class LoopState:
    """Where the loop is: its next step, tokens so far, and sums since the last record."""

    step: int = 0
    num_tokens: int = 0
    num_loss_tokens: int = 0
    loss_since: float = 0.0
    count_since: int = 0


class Checkpoints:
    """Checkpoints of one process, in `folder`; one every `minutes` (None: only when it stops).

    `records` and `timings` are the lists that the loop's log fills; they are stored, too. `stop` is
    set from outside: the loop then saves after its current step, and ends.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float | None,
        records: list[Record],
        timings: list[Record],
        stop: threading.Event | None = None,
        rank: int = 0,
    ) -> None:
        self.path = folder / f"checkpoint-{rank}.safetensors"
        # kept while the other processes write theirs
        self.previous = folder / f"checkpoint-{rank}-previous.safetensors"
        self.seconds = None if minutes is None else 60 * minutes
        self.logs = {"records": records, "timings": timings}
        self.stop = stop or threading.Event()
        self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        waited = time.monotonic() - self.saved
        return self.seconds is not None and waited >= self.seconds

    def save(
        self,
        state: LoopState,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Write the whole state; the previous one is kept until all processes have written theirs.

        Raises MeritError on a full disk; the previous checkpoint is left.
        """
        tensors = _tensors(parameters, optimizers)
        write_state(self.path, tensors, {"loop": asdict(state), **self.logs}, self.previous)
        self.saved = time.monotonic()

    def forget_previous(self) -> None:
        """Remove the previous checkpoint: every process has written the last one."""
        self.previous.unlink(missing_ok=True)

    def restore(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        common: Callable[[int], int] = lambda step: step,
    ) -> LoopState:
        """Put back the last state that every process saved, if any; return where the loop was.

        Args: common: the smallest step of all processes, given this one's last.
        Raises MeritError for a file that cannot be read or is of another model or number of
        processes.
        """
        steps = {}
        for path in (self.previous, self.path):
            if path.is_file():
                with open_state(path) as (_, state):
                    steps[int(state["loop"]["step"])] = path
        step = common(max(steps, default=0))
        if not step:
            return LoopState()
        if step not in steps:
            raise MeritError(
                f"{self.path}: not of step {step}, as those of other processes; delete "
                f"{self.path.parent} to start again"
            )
        with open_state(steps[step]) as (file, state):
            _fill_states(optimizers)
            targets = _tensors(parameters, optimizers)
            if set(targets) != set(file.keys()):
                raise ValueError("it holds other tensors")
            for name, target in targets.items():
                target.copy_(file.get_tensor(name))
        for name, rows in self.logs.items():
            rows[:] = state[name]
        return LoopState(**state["loop"])


def write_state(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    state: dict[str, Any],
    previous: Path | None = None,
) -> None:
    """Write tensors and state whole, or leave what was at `path`, which moves to `previous`."""
    temporary = path.with_suffix(".new")
    with writing(temporary):
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"state": json.dumps(state)},
        )
    if previous is not None and path.is_file():
        os.replace(path, previous)
    os.replace(temporary, path)


@contextlib.contextmanager
def open_state(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(open safetensors file, state) of `write_state`. Raises MeritError if it cannot be used."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads(file.metadata()["state"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MeritError(
            f"{path}: cannot resume from it ({error}); delete it to start again"
        ) from None


@torch.no_grad()
def _tensors(
    parameters: Mapping[str, torch.nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """Every tensor of the state by name: <parameter> and <parameter>/<optimiser's own name>."""
    tensors = {name: _local(parameter) for name, parameter in parameters.items()}
    for optimizer in optimizers:
        for name, parameter in parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{name}/{key}"] = _local(value)
    return tensors


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a DTensor; another tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()


def _fill_states(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the optimisers make their states, as the first step does; nothing moves."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
