"""Checkpoints of a training: a stopped one resumes from them, to the bit.

A folder of torch.distributed.checkpoint in the partial folder of the result: parameters and
optimiser states, written tensor by tensor, each process what it holds; state.json says where the
loop was. The order of the data follows from the seed, so it is not stored. Another number of
processes can resume, since torch cuts the tensors again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch

from merit.errors import STOPPED, STOPPING, MeritError, Stopped
from merit.io.artifacts import read_json
from merit.io.disk import writing
from merit.io.progress import Progress
from merit.train.distributed import ProcessGroup
from merit.train.optimizers import set_rate

STATE = "state.json"
Record = dict[str, float]


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGUSR2 sets; on `Stopped` the process exits with `STOPPED`."""
    stop = threading.Event()

    def set_stop(number: int, frame: Any) -> None:
        stop.set()
        for again in STOPPING:  # Slurm and the job may both send one, and the second would end a
            signal.signal(again, signal.SIG_IGN)  # process that is about to exit

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, set_stop) for number in STOPPING}
    try:
        yield stop
    except Stopped as stopped:
        print(f"{stopped}; the same command resumes it", file=sys.stderr)
        sys.exit(STOPPED)
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
    """Checkpoints of a training, in `folder`; one every `minutes` (None: only when it stops).

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
        group: ProcessGroup | None = None,
    ) -> None:
        self.folder = folder
        self.seconds = None if minutes is None else 60 * minutes
        self.logs = {"records": records, "timings": timings}
        self.stop = stop or threading.Event()
        self.group = group or ProcessGroup()
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
        """Write the whole state; it then replaces the previous one. All processes must ask.

        Raises MeritError on a full disk; the previous checkpoint is left.
        """
        from torch.distributed import checkpoint as dcp

        new = self.folder / "checkpoint.new"
        with writing(new), _plainly():
            tensors = _tensors(parameters, optimizers)
            dcp.save(tensors, checkpoint_id=new, no_dist=not self.group.started)
            if self.group.rank == 0:
                content = json.dumps({"loop": asdict(state), **self.logs})  # keys keep their order
                (new / STATE).write_text(content, encoding="utf-8")
                earlier = list(self.folder.glob("checkpoint-*"))
                os.replace(new, self.folder / f"checkpoint-{state.step}")
                for path in earlier:
                    shutil.rmtree(path)
        self.group.any(False)  # until the first process is done
        self.saved = time.monotonic()

    def restore(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> LoopState:
        """Put back the last state, if any, of any number of processes; return where the loop was.

        Raises MeritError for a checkpoint that cannot be read or is of another model.
        """
        step = max((int(p.name[11:]) for p in self.folder.glob("checkpoint-*")), default=0)
        if not step:
            return LoopState()
        from torch.distributed import checkpoint as dcp

        path = self.folder / f"checkpoint-{step}"
        _fill_states(optimizers)
        targets = _tensors(parameters, optimizers)
        try:
            with _plainly():
                known = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
                if known.keys() != targets.keys():
                    raise ValueError("it holds other tensors")
                dcp.load(targets, checkpoint_id=path, no_dist=not self.group.started)
            state = read_json(path / STATE)
            for name, rows in self.logs.items():
                rows[:] = state[name]
            return LoopState(**state["loop"])
        except (
            OSError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            PickleError,
        ) as error:
            raise MeritError(
                f"{path}: cannot resume from it ({error}); delete it to start again"
            ) from None


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """torch's checkpoints without its remarks; errors as they were raised, the disk's as such."""
    from torch.distributed.checkpoint import CheckpointException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if "unexpected pos" in str(cause):  # of torch.save, which could not write
                cause = OSError(errno.ENOSPC, str(cause))
            raise cause from None


@torch.no_grad()
def _tensors(
    parameters: Mapping[str, torch.nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """Every tensor of the state by name: <parameter> and <parameter>/<optimiser's own name>."""
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    for optimizer in optimizers:
        for name, parameter in parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{name}/{key}"] = value
    return tensors


def _fill_states(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the optimisers make their states, as the first step does; nothing moves."""
    for optimizer in optimizers:
        set_rate(optimizer, 0.0)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
