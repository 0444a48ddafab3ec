"""Submits branches, looks how they go until all have ended, and remembers what runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import gethostname
from typing import Protocol

from merit.config import PARAMS_FILE
from merit.errors import MeritError
from merit.io.artifacts import file_hash, read_json, value_hash, write_json
from merit.launch.jobs import STOPPED, Work, ending
from merit.launch.table import Row, Table

# what the stage `train` depends on besides a branch's manifest, as in pipeline.yaml
TRAIN_CODE = (
    *("merit/training", "merit/train/branch.py", "merit/io/checkpoints.py"),
    "merit/data/examples.py",
)


class Backend(Protocol):
    """Where jobs run."""

    name: str
    interval: float  # seconds between two looks
    lag: float  # seconds until a file that a job wrote is seen here
    requeues: bool  # whether it starts a stopped job again by itself

    def submit(self, work: Work, again: bool) -> str | None:
        """The job's name; None where there is no room at present."""

    def states(self, jobs: Mapping[str, Work]) -> dict[str, tuple[str, str]]:
        """{job: ("waiting", "running", "unknown" or "ended", why)}"""

    def lost(self, work: Work) -> str:
        """What to say of a job that ended without an exit status."""

    def how_to_stop(self, jobs: Sequence[str]) -> str:
        """The command that stops them."""


@dataclass(frozen=True)
class Submitted:
    """A job that has not been seen to its end."""

    backend: str
    host: str
    job: str
    began: float  # Unix time
    code: str  # code_hash() when it was submitted


class Watch:
    """`jobs` are those of earlier launches, too; they are kept in a file as they come and go."""

    def __init__(
        self, backend: Backend, file: Path, jobs: dict[str, Submitted], retries: int
    ) -> None:
        self.backend, self.file, self.jobs, self.retries = backend, file, jobs, retries
        self.stops: Counter[str] = Counter()  # how often a branch was stopped and started again
        self.table = Table()

    def run(self, todo: Sequence[Work]) -> dict[str, str]:
        """{branch: why it failed}, when all have ended. The jobs of the others are kept."""
        failures: dict[str, str] = {}
        left = list(todo)
        while left:
            for work in left:
                if work.branch not in self.jobs and not self.submit(work):
                    break  # no free slot
            rows = self.rows(left)
            for work in [work for work in left if rows[work.branch].state == "ended"]:
                why = self.end(work, rows[work.branch].detail)
                if why == "goes on":
                    continue
                left.remove(work)
                if why is not None:
                    failures[work.branch] = why
                rows[work.branch] = Row(
                    work.branch, "failed" if why else "finished", why or "", step=work.progress()
                )
            self.table.show(list(rows.values()))
            if left:
                time.sleep(self.backend.interval)
        self.table.end()
        return failures

    def submit(self, work: Work) -> bool:
        """Whether there was room for it."""
        job = self.backend.submit(work, again=self.stops[work.branch] > 0)
        if job is not None:
            self.jobs[work.branch] = Submitted(
                self.backend.name, gethostname(), job, time.time(), code_hash()
            )
            self.save()
        return job is not None

    def rows(self, todo: Sequence[Work]) -> dict[str, Row]:
        """How each branch is, by branch."""
        there = {self.jobs[work.branch].job: work for work in todo if work.branch in self.jobs}
        states = self.backend.states(there)
        rows = {work.branch: Row(work.branch, "waiting", "no free slot") for work in todo}
        for job, work in there.items():
            seconds = time.time() - self.jobs[work.branch].began
            name = f"{self.backend.name} {job}"
            rows[work.branch] = Row(work.branch, *states[job], name, work.progress(), seconds)
        return rows

    def end(self, work: Work, detail: str) -> str | None:
        """None where the branch is finished, "goes on" where it is started again, else why it
        failed.
        """
        code = self.settled(work)
        if work.finished():
            return None
        del self.jobs[work.branch]
        self.save()
        if code == STOPPED and not self.backend.requeues and self.stops[work.branch] < self.retries:
            self.stops[work.branch] += 1
            return "goes on"
        state = f"{detail} in Slurm; " if detail else ""
        if code is None:
            return state + self.backend.lost(work)
        if code == STOPPED:
            return f"{state}was stopped; the same command goes on from its checkpoint ({work.log})"
        if code == 0:
            return f"{state}ended well, but left no output of its present manifest ({work.log})"
        return f"{state}{ending(code)} ({work.log}): {work.last_words()}"

    def settled(self, work: Work) -> int | None:
        """The exit status, given the time that a shared file system may take to show it."""
        deadline = time.monotonic() + self.backend.lag
        while (code := work.exit_status()) in (None, 0) and not work.finished():
            if time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        return code

    def forget(self, works: Sequence[Work]) -> None:
        """Their jobs have been dealt with."""
        for work in works:
            del self.jobs[work.branch]
        self.save()

    def save(self) -> None:
        write_json(self.file, {branch: asdict(job) for branch, job in self.jobs.items()})

    def farewell(self, todo: Sequence[Work]) -> str:
        """What to say to somebody who leaves."""
        jobs = [self.jobs[work.branch].job for work in todo if work.branch in self.jobs]
        lines = [
            f"\nmerit: left. Branches that go on: {len(jobs)}; that the next launch starts: "
            f"{sum(work.branch not in self.jobs and not work.finished() for work in todo)}",
            f"  to watch them again:  merit launch {todo[0].experiment}",
        ]
        if jobs:
            lines.append(f"  to stop them:         {self.backend.how_to_stop(jobs)}")
        return "\n".join(lines)


def read_jobs(file: Path, backend: str) -> dict[str, Submitted]:
    """The jobs of earlier launches. Raises MeritError where `backend` cannot watch them here."""
    if not file.is_file():
        return {}
    try:
        jobs = {branch: Submitted(**values) for branch, values in read_json(file).items()}
    except (AttributeError, TypeError):
        raise MeritError(f"{file}: not what a launch writes; delete it if nothing runs") from None
    for branch, job in jobs.items():
        if job.backend != backend:
            raise MeritError(
                f"{file}: {branch} was launched with `backend: {job.backend}`, {PARAMS_FILE} says "
                f"{backend}; set it back and launch again, or delete the file if nothing runs"
            )
        if backend == "local" and job.host != gethostname():
            raise MeritError(
                f"{file}: {branch} was launched on {job.host}, this is {gethostname()}; launch "
                "again there, or delete the file if nothing runs"
            )
    return jobs


def code_hash() -> str:
    """What the stage's code is at present."""
    files = [
        file
        for path in map(Path, TRAIN_CODE)
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    return value_hash([[str(file), file_hash(file)] for file in files if file.is_file()])
