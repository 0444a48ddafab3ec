"""Many stage jobs in a few warm worker processes.

A process of its own for every branch would pay torch's import each time (4 to 5 s where a mini
branch trains for 10 s). A worker imports a stage once and takes one job after the other. Every
worker is single-threaded: at mini scale two such processes beat one process with two threads.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType

from merit.errors import MeritError
from merit.io.artifacts import Artifacts
from merit.progress import write_timing

# judging lives in `eval`, which may import `merit`; the way back is by name only
_EVAL_STAGES = ("generate", "evaluate", "study", "report")
# spawn, not fork: a forked child of a process that holds torch's threads or locks can hang
_SPAWN = multiprocessing.get_context("spawn")
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def stage_name(kind: str, experiment: str, item: str | None = None) -> str:
    """The DVC stage `<kind>-<experiment>[-<item>]`; DVC refuses dots, so `0.5ep` is `0_5ep`."""
    return "-".join(part for part in (kind, experiment, item) if part).replace(".", "_")


def stage_module(stage: str) -> str:
    """The module whose `run(experiment, item)` is the stage."""
    return f"{'eval' if stage in _EVAL_STAGES else 'merit'}.stages.{stage}"


def run_stage(stage: str, experiment: str, item: str | None) -> None:
    """Run one stage in this process; write how long it took and how much memory."""
    began = time.monotonic()
    importlib.import_module(stage_module(stage)).run(experiment, item)
    write_timing(Artifacts(experiment).folder, stage, item, began)


@dataclass(frozen=True)
class Job:
    """One call of `run_stage(stage, experiment, item)`.

    `cost` is in any unit, the same for all jobs of a launch (tokens, say): it orders the jobs and
    gives the ETA. `after` names the jobs that must be finished first; a name that is not launched
    alongside counts as finished.
    """

    stage: str
    experiment: str
    item: str
    cost: float
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The job's DVC stage."""
        return stage_name(self.stage, self.experiment, self.item)


def next_job(waiting: Iterable[Job], unfinished: set[str]) -> Job | None:
    """The dearest job of `waiting` whose `after` holds no `unfinished` name; ties by name.

    Longest first keeps the last worker from starting a long job alone. None where none is ready.
    """
    ready = [job for job in waiting if not unfinished.intersection(job.after)]
    return min(ready, key=lambda job: (-job.cost, job.name), default=None)


def run_jobs(
    jobs: Sequence[Job],
    num_workers: int,
    on_done: Callable[[Job], None],
    package: str | None = None,
) -> None:
    """Run `jobs` in `num_workers` processes; `on_done` is called in this process as each finishes.

    When a job fails, no further one starts; those that run finish and reach `on_done`. Then a
    MeritError names the job and the cause: a stage's own MeritError message unchanged, any other
    exception with its traceback, a worker that died with its signal and its last output.
    Interrupting stops the workers, which leave no half-written output.

    Args: package: where the stages' modules are, if they are not the project's own (tests).
    """
    names = {job.name for job in jobs}
    if len(names) != len(jobs):
        raise ValueError("two jobs have one name")
    waiting = {job.name: job for job in jobs}
    unfinished = set(names)
    failures: list[str] = []
    finished: list[Job] = []
    progress = _Progress(jobs)
    workers = [_Worker(package) for _ in range(min(num_workers, len(jobs)))]
    try:
        while True:
            if not failures:
                _assign(workers, waiting, unfinished)
            # only now, with the workers busy again: recording results may take a while
            for job in finished:
                on_done(job)
            progress.show(finished)
            finished = []
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            if not busy:
                break
            for connection in wait(list(busy), timeout=progress.interval):
                worker = busy[connection]  # type: ignore[index]  # wait() returns what it was given
                job, failure = worker.result()
                if failure is None:
                    unfinished.remove(job.name)
                    finished.append(job)
                else:
                    failures.append(f"{job.name}: {failure}")
    finally:
        progress.close()
        for worker in workers:
            worker.stop()
    if failures:
        raise MeritError("\n".join(failures))
    if waiting:
        raise ValueError(f"these jobs wait for each other: {sorted(waiting)}")


def _assign(workers: Sequence[_Worker], waiting: dict[str, Job], unfinished: set[str]) -> None:
    """Give every idle worker the next ready job, which leaves `waiting`."""
    for worker in workers:
        job = next_job(waiting.values(), unfinished) if worker.job is None else None
        if job is not None:
            del waiting[job.name]
            worker.start(job)


# --- a worker, seen from the parent -------------------------------------------------------------


class _Worker:
    """One process; `job` is what it works on."""

    def __init__(self, package: str | None) -> None:
        handle, name = tempfile.mkstemp(prefix="merit-worker-", suffix=".log")
        os.close(handle)
        self.log = Path(name)
        self.job: Job | None = None
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(theirs, package, name), daemon=True)
        self.process.start()
        theirs.close()  # so that the worker's death reads as the end of the pipe

    def start(self, job: Job) -> None:
        self.job = job
        # a worker that died since its last job shows at result(), as the end of the pipe
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((job.stage, job.experiment, job.item))

    def result(self) -> tuple[Job, str | None]:
        """The finished job and None, or what went wrong. Blocks until the worker says or dies."""
        assert self.job is not None
        job, self.job = self.job, None
        try:
            return job, self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return job, self._death()

    def _death(self) -> str:
        code = self.process.exitcode or 0
        how = f"exited with status {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += (
                    " (often the system running out of memory: set fewer `workers` in params.yaml)"
                )
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        return f"its worker process {how}" + (f"; its last output:\n{tail}" if tail else "")

    def stop(self) -> None:
        """Ask an idle worker to end, tell a busy one to; then see to it."""
        if self.job is not None:
            self.process.terminate()
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self.log.unlink(missing_ok=True)


# --- inside a worker ----------------------------------------------------------------------------


def _work(connection: Connection, package: str | None, log: str) -> None:
    """Take jobs until the parent closes the pipe; answer each with None or the failure's text."""
    for name in _THREAD_SETTINGS:  # before the first import of numpy or torch, which read them
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow_parent, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    while True:
        try:
            stage, experiment, item = connection.recv()
        except EOFError:
            return
        failure = None
        try:
            if package is None:
                run_stage(stage, experiment, item)
            else:
                importlib.import_module(f"{package}.{stage}").run(experiment, item)
        except MeritError as error:
            failure = str(error)
        except Exception:
            failure = "unexpected error\n" + traceback.format_exc()
        connection.send(failure)


def _leave(signum: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that half-written temporary outputs are removed."""
    raise SystemExit(128 + signum)


def _follow_parent() -> None:
    """End with the parent, however it ended: a resumed run must not meet old workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# --- progress -----------------------------------------------------------------------------------


class _Progress:
    """Jobs done, time taken and left, on stderr: one changing line on a terminal, else lines."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.num_jobs, self.cost = len(jobs), sum(job.cost for job in jobs)
        self.num_done, self.cost_done = 0, 0.0
        self.began = time.monotonic()
        self.tty = sys.stderr.isatty()
        self.interval = 1.0 if self.tty else None  # how often the line is redrawn without news

    def show(self, finished: Sequence[Job]) -> None:
        self.num_done += len(finished)
        self.cost_done += sum(job.cost for job in finished)
        seconds = time.monotonic() - self.began
        line = f"{self.num_done}/{self.num_jobs} jobs, {clock(seconds)}"
        if 0 < self.cost_done < self.cost:
            left = seconds * (self.cost - self.cost_done) / self.cost_done
            line += f", about {clock(left)} left"
        if self.tty:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif finished:
            print(
                f"{line} ({', '.join(job.name for job in finished)})", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        if self.tty and self.num_jobs:
            print(file=sys.stderr)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
