"""Branches as Slurm jobs, through submitit: it writes the batch file, submits and requeues.

How a job goes is asked of squeue, and how it ended is read from the files of the branch: `sacct`,
which submitit would ask, answers only on clusters that keep accounts.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merit.config import PARAMS_FILE, Launch
from merit.errors import MeritError
from merit.launch.jobs import STOPPED, Work, environment

NEEDED = ("sbatch", "srun", "squeue", "scontrol")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")


class Slurm:
    """Jobs are known by Slurm's ids."""

    name = "slurm"
    interval = 5.0  # squeue asks the one controller of all users
    lag = 10.0
    requeues = True

    def __init__(self, settings: Launch) -> None:
        """Raises MeritError where submitit or Slurm's commands are missing."""
        if importlib.util.find_spec("submitit") is None:
            raise MeritError(
                f"{PARAMS_FILE}: key `launch.backend`: `slurm` needs submitit, which is not "
                "installed; pip install 'merit[slurm]'"
            )
        missing = [command for command in NEEDED if shutil.which(command) is None]
        if missing:
            raise MeritError(
                f"{PARAMS_FILE}: key `launch.backend`: `slurm` needs the command {missing[0]!r}, "
                "which is not on the PATH; launch on a host of the cluster that submits jobs, or "
                "set `backend: local`"
            )
        self.settings = settings

    def submit(self, work: Work, again: bool) -> str:
        """Raises MeritError with sbatch's own words where it refuses."""
        import submitit

        executor = submitit.SlurmExecutor(work.folder / "slurm", self.settings.retries)
        executor.update_parameters(
            job_name=f"merit-{work.experiment}-{work.branch}", **batch_options(self.settings)
        )
        work.clear(again)
        try:
            return str(executor.submit(Job(work, self.settings.retries)).job_id)
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            raise MeritError(
                f"{PARAMS_FILE}: key `launch`: sbatch refused {work.branch}: {str(error).strip()}"
            ) from None

    def states(self, jobs: Mapping[str, Work]) -> dict[str, tuple[str, str]]:
        """With Slurm's reason for waiting or its word for the end, which it forgets in minutes.

        All the user's jobs are asked for: squeue refuses a list with a forgotten one.
        """
        form = "--format=%i|%T|%r"
        command = ["squeue", "--noheader", "--array", "--states=all", form]
        asked = subprocess.run(
            [*command, f"--user={getpass.getuser()}"], capture_output=True, text=True, check=False
        )
        if asked.returncode:  # the controller restarts, say: nothing is known, so nothing changed
            return {job: ("unknown", "squeue does not answer") for job in jobs}
        rows = [line.split("|", 2) for line in asked.stdout.splitlines()]
        known = {job: _state(state, reason) for job, state, reason in rows}
        return {job: known.get(job, ("ended", "")) for job in jobs}

    def lost(self, work: Work) -> str:
        own = sorted((work.folder / "slurm").glob("*_log.out"), key=lambda p: p.stat().st_mtime)
        if not work.log.exists() and not own:
            return (
                f"died without a log: {work.folder.resolve()} must be on a file system that every "
                "node sees under the same path, and so must the Python environment"
            )
        return f"died without an exit status; logs: {work.log}, {own[-1] if own else 'no other'}"

    def how_to_stop(self, jobs: Sequence[str]) -> str:
        return f"scancel {' '.join(jobs)}"


def _state(state: str, reason: str) -> tuple[str, str]:
    if state in RUNNING:
        return "running", ""
    if state in WAITING:
        return "waiting", "" if reason == "None" else reason
    return "ended", "" if state in ("COMPLETED", "FAILED") else state


def batch_options(settings: Launch) -> dict[str, Any]:
    """submitit's parameters of one job: a task on a node, requeued where it is preempted."""
    options: dict[str, Any] = {
        "time": settings.minutes,
        "nodes": 1,
        "ntasks_per_node": 1,
        "signal_delay_s": settings.seconds_to_stop,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **settings.sbatch},
        # srun does not inherit sbatch's cores otherwise, from Slurm 22.05 on
        "setup": ["export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}", *settings.setup],
    }
    if settings.partition:
        options["partition"] = settings.partition
    if settings.gpus_per_branch:
        options["gpus_per_node"] = settings.gpus_per_branch
    return options


@dataclass
class Job:
    """What a node runs, under submitit: the command, and what becomes of it when it is stopped.

    Slurm says USR2 before the time limit, or before a preemption: `checkpoint` passes it on, the
    training writes its checkpoint and exits with status 75, submitit requeues the job. SIGTERM
    (preemption without that warning, or scancel) is passed on as well, but whether the job is
    requeued is Slurm's to say then: a job that was cancelled must not come back.
    """

    work: Work
    retries: int
    patience: float = 300.0  # seconds that Slurm may take to end the job after SIGTERM

    def __call__(self) -> int:
        if self.work.finished():  # requeued between its last step and its end
            self.work.status.write_text("0\n", encoding="utf-8")
            return 0
        self.work.status.unlink(missing_ok=True)
        self._ending = False
        with self.work.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.work.shell,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        signal.signal(signal.SIGTERM, self._terminate)
        code = self._wait()
        if code == STOPPED and self._ending:
            time.sleep(self.patience)
        elif code == STOPPED and int(os.environ.get("SLURM_RESTART_COUNT", "0")) < self.retries:
            os.kill(os.getpid(), signal.SIGUSR2)  # submitit's own way: checkpoint, requeue, exit
        if code:
            sys.exit(code)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit in the handler of USR2, while __call__ waits."""
        from submitit.helpers import DelayedSubmission

        self._pass_on(signal.SIGUSR2)
        self._wait()
        return DelayedSubmission(Job(self.work, self.retries, self.patience))

    def _terminate(self, *_: object) -> None:
        self._ending = True
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _wait(self) -> int:
        """The exit status. Unlike Popen.wait, it may be called while it is being called: the
        process is left to be waited for."""
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
