"""Train branches as Slurm jobs, through submitit: it writes the batch files, submits and requeues.

A job is named after its experiment, branch, key and clone, so a driver that was killed finds its
running jobs again. `squeue` says how a job is doing; `sacct`, which submitit would ask, answers
only on clusters that keep accounts. The result is read from the branch's folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from merit.config import PARAMS_FILE, Launch, Params
from merit.errors import STOPPED, MeritError
from merit.io.artifacts import value_hash, work_place
from merit.run.store import Item, Key

ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "DEADLINE", "REVOKED", "FORGOTTEN"),  # the last is our own word
)
ON_NODE = "MERIT_ON_NODE"  # in a job's environment: train here, whatever params.yaml says
INTERVAL = 5.0  # seconds between two questions to the controller, which serves all users
LAG = 10.0  # seconds until a file that a node wrote is seen here
PATIENCE = 300.0  # seconds that Slurm may take to end a job after SIGTERM


class Row(NamedTuple):
    """What squeue says of a job. Its name is last, since it may hold a "|"."""

    job: str
    state: str
    reason: str = "None"
    name: str = ""


def train_branches(
    experiment: str, todo: Sequence[tuple[Item, Key]], params: Params
) -> dict[str, str]:
    """Train every branch in a job, and wait for all; returns {label: why} of those that failed.

    Raises MeritError if Slurm is missing, or refuses a job while no other runs.
    """
    check_installed()
    folder = work_place(Path("artifacts", experiment, "slurm"))
    alive = {row.name: row.job for row in ask_squeue() if row.state not in ENDED}
    names = {job_name(item, key): (item, key) for item, key in todo}
    jobs = {alive[name]: pair for name, pair in names.items() if name in alive}
    left = [name for name in names if name not in alive]
    told: dict[str, str] = {}
    full = False  # whether sbatch takes no more jobs for now
    failures: dict[str, str] = {}
    try:
        while left or jobs:
            try:
                while left and not full:
                    job = submit(left[0], names[left[0]][0], folder, params.launch)
                    jobs[job] = names[left.pop(0)]
            except MeritError as refusal:  # a limit on the number of jobs, say
                if not jobs:
                    raise
                full = True
                print(f"{refusal}; it is tried again when a job ends", file=sys.stderr, flush=True)
            time.sleep(INTERVAL)
            rows = {row.job: row for row in ask_squeue()}
            for job, (item, key) in list(jobs.items()):
                row = rows.get(job, Row(job, "FORGOTTEN"))
                reason = f" ({row.reason})" if row.reason != "None" else ""
                if told.get(job) != row.state + reason:
                    told[job] = row.state + reason
                    print(f"{item.name}: job {job}: {told[job]}", file=sys.stderr, flush=True)
                if row.state in ENDED:
                    del jobs[job]
                    full = False
                    if not is_finished(item, key, row):
                        failures[item.label] = why(item, row, folder)
    except KeyboardInterrupt:
        print(
            f"\nmerit: the jobs continue; `merit run {experiment} train` waits for them again, "
            f"`scancel {' '.join(jobs)}` stops them",
            file=sys.stderr,
        )
        raise
    return failures


def check_installed() -> None:
    """Raises MeritError if submitit or a command of Slurm is missing."""
    where = f"{PARAMS_FILE}: key `launch.backend`: `slurm` needs"
    if importlib.util.find_spec("submitit") is None:
        raise MeritError(f"{where} submitit, which is missing; pip install 'merit[slurm]'")
    for command in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(command) is None:
            raise MeritError(
                f"{where} the command {command!r}, which is not on the PATH; run it on a host of "
                "the cluster that submits jobs, or set `backend: local`"
            )


def job_name(item: Item, key: Key) -> str:
    """The same for the same work of the same clone."""
    clone = str(Path.cwd().resolve())
    return f"merit-{item.experiment}-{item.name}-{value_hash([dict(key), clone])[:8]}"


def ask_squeue() -> list[Row]:
    """All the user's jobs; waits while the controller does not answer, as when it restarts.

    All are asked for, since squeue refuses a list with a forgotten job.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%j"]
    command += [f"--user={os.getuid()}"]
    while (
        asked := subprocess.run(command, capture_output=True, text=True, check=False)
    ).returncode:
        print(f"squeue: {asked.stderr.strip()}; asked again", file=sys.stderr)
        time.sleep(INTERVAL)
    return [Row(*line.split("|", 3)) for line in asked.stdout.splitlines()]


def is_finished(item: Item, key: Key, row: Row) -> bool:
    """Whether the result is there; a shared file system may take seconds to show it."""
    deadline = time.monotonic() + (LAG if row.state in ("COMPLETED", "FORGOTTEN") else 0)
    while not item.is_current(key):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
    return True


def why(item: Item, row: Row, folder: Path) -> str:
    """Slurm's word, the log's path and its last line, the closing lines of `merit run` apart."""
    closing = (f"train {item.experiment}: ", f"merit: error: {item.experiment}: ")
    for log in (folder / f"{item.name}.log", folder / "submitit" / f"{row.job}_0_log.out"):
        if log.is_file():
            lines = filter(str.strip, log.read_text("utf-8", errors="replace").splitlines())
            left = [x for x in lines if not x.startswith((*closing, f"  {item.label}: failed"))]
            return f"{row.state} in Slurm ({log}): {''.join(left[-1:]).strip()}"
    return (
        f"{row.state} in Slurm, without a log: {folder.resolve()} must be on a file system that "
        "every node sees under the same path, and so must the Python environment"
    )


def submit(name: str, item: Item, folder: Path, settings: Launch) -> str:
    """The new job's id. Raises MeritError with sbatch's own words if it refuses."""
    import submitit

    executor = submitit.SlurmExecutor(folder / "submitit", settings.retries)
    executor.update_parameters(job_name=name, **batch_options(settings))
    command = [sys.executable, "-m", "merit", "run", item.experiment, "train", "--only", item.name]
    log = folder / f"{item.name}.log"
    log.unlink(missing_ok=True)
    kept = {key: os.environ[key] for key in ("SLURM_CONF",) if key in os.environ}
    with submitit.helpers.clean_env():  # the driver may be a job itself
        os.environ.update(kept)
        try:
            return str(executor.submit(Job(command, log)).job_id)
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            raise MeritError(
                f"{PARAMS_FILE}: key `launch`: sbatch refused {item.name}: {str(error).strip()}"
            ) from None


def batch_options(settings: Launch) -> dict[str, Any]:
    """submitit's parameters of a job: one task on one node, requeued if it is preempted."""
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
    more = {"partition": settings.partition, "gpus_per_node": settings.gpus_per_branch}
    return options | {name: value for name, value in more.items() if value}


@dataclass
class Job:
    """What a node runs, under submitit.

    Slurm sends USR2 before the time limit or a preemption: `checkpoint` passes it on, training
    writes its checkpoint, submitit requeues the job. SIGTERM (preemption without that warning, or
    scancel) is passed on, too, but then Slurm decides: a cancelled job must not come back.
    """

    command: list[str]
    log: Path

    def __call__(self) -> None:
        self._ending = False
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=os.environ | {ON_NODE: "1"}
            )
        signal.signal(signal.SIGTERM, self._terminate)
        code = self._wait()
        # Slurm signals all processes of a job: the child may have ended before our signal comes
        if code == STOPPED or (code and self._ending):
            time.sleep(PATIENCE)
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Called by submitit in the handler of USR2, while __call__ waits."""
        from submitit.helpers import DelayedSubmission

        os.kill(self._process.pid, signal.SIGUSR2)
        self._wait()
        return DelayedSubmission(replace(self))

    def _terminate(self, *_: object) -> None:
        self._ending = True
        os.kill(self._process.pid, signal.SIGTERM)

    def _wait(self) -> int:
        """The exit status. The process is not reaped, so this may be called while it is called,
        and a late signal finds it."""
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
