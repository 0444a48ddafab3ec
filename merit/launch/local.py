"""Branches as processes of this host, each in a slot: a share of its GPUs, or of its cores.

A job and its slot are locks that the job's own process holds. They last as long as the job does,
whatever becomes of the launch, and no process id has to be trusted after a restart.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from merit.config import PARAMS_FILE, Launch
from merit.errors import MeritError
from merit.io.artifacts import ARTIFACTS_DIR
from merit.io.locks import try_lock
from merit.launch.jobs import Work, environment

Slots = list[list[str]]  # the GPUs of each slot; none where the CPU trains


class Local:
    """Jobs are known by their process group."""

    name = "local"
    interval = 0.5
    lag = 0.0
    requeues = False

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # those that were started here

    def submit(self, work: Work, again: bool) -> str | None:
        """Start it in a free slot; None where there is none at present."""
        for number, gpus in enumerate(self.slots):
            slot = try_lock(slot_file(number))
            if slot is not None:
                with slot:
                    return self._start(work, again, gpus, slot)
        return None

    def _start(self, work: Work, again: bool, gpus: Sequence[str], slot: IO[str]) -> str:
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        job = try_lock(job_file(work))
        if job is None:  # started by a launch that was killed before it noted so
            raise MeritError(
                f"launch: {work.branch} runs already, though {work.folder / 'jobs.json'} does not "
                f"say so; wait for it, or end it ({work.log} is its log), then launch again"
            )
        work.clear(again)
        with job, work.log.open("ab") as log:
            process = subprocess.Popen(
                work.shell,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment() | visible,
                start_new_session=True,  # Ctrl-C ends the launch alone
                pass_fds=(job.fileno(), slot.fileno()),
            )
        job_id = str(process.pid)
        self._children[job_id] = process
        return job_id

    def states(self, jobs: Mapping[str, Work]) -> dict[str, tuple[str, str]]:
        """Of each job "running" or "ended"."""
        states = {job: "running" if self.runs(work) else "ended" for job, work in jobs.items()}
        for job, state in states.items():
            if state == "ended" and job in self._children:
                self._children.pop(job).wait()
        return {job: (state, "") for job, state in states.items()}

    def runs(self, work: Work) -> bool:
        """Whether its process has not ended; what it may have left running keeps the slot."""
        lock = try_lock(job_file(work))
        if lock is not None:
            lock.close()
        return lock is None and work.exit_status() is None

    def lost(self, work: Work) -> str:
        return f"died without an exit status (killed, or the host was restarted); log: {work.log}"

    def how_to_stop(self, jobs: Sequence[str]) -> str:
        return f"kill {' '.join(f'-{job}' for job in jobs)}".replace("kill ", "kill -TERM -- ", 1)


def job_file(work: Work) -> Path:
    return work.folder / f".{work.branch}.job"


def slot_file(number: int) -> Path:
    """Slots are the host's: experiments that are launched at the same time share them."""
    return ARTIFACTS_DIR / "launch" / f".{socket.gethostname()}-slot-{number}"


def make_slots(settings: Launch, gpus: Sequence[str], workers: int) -> Slots:
    """The GPUs of each slot; without GPUs `launch.slots`, or `workers`, empty ones.

    Raises MeritError where the host has fewer GPUs than the settings ask for.
    """
    size = settings.gpus_per_branch
    if not gpus or not size:
        return [[] for _ in range(settings.slots or workers)]
    number = settings.slots or max(1, len(gpus) // size)
    if number * size > len(gpus):
        raise MeritError(
            f"{PARAMS_FILE}: key `launch.gpus_per_branch`: {number} x {size} GPUs are asked for, "
            f"{len(gpus)} are visible here; lower it or `launch.slots`"
        )
    return [list(gpus[i * size : (i + 1) * size]) for i in range(number)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(found))]
