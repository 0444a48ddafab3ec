"""`merit launch` through submitit: on its local executor, and on a real Slurm of one node."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import submitit

from merit.config import Launch
from merit.errors import MeritError
from merit.launch.jobs import Work, train_command
from merit.launch.launcher import launch
from merit.launch.slurm import Job, Slurm, batch_options
from tests.slurm import missing, slurm
from tests.stub_branches import NAME, ROOT, Stubs, until

A, B, C, D, E = (f"merit-3d-s1-g{group}" for group in range(5))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the code of this checkout for the jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


# --- without Slurm --------------------------------------------------------------------------------


def test_what_sbatch_is_told() -> None:
    settings = Launch(
        backend="slurm",
        gpus_per_branch=8,
        minutes=90,
        seconds_to_stop=120,
        partition="long",
        sbatch={"account": "x", "cpus-per-task": 16},
        setup=["module load cuda"],
    )
    assert batch_options(settings) == {
        "time": 90,
        "nodes": 1,
        "ntasks_per_node": 1,
        "gpus_per_node": 8,
        "partition": "long",
        "signal_delay_s": 120,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, "account": "x", "cpus-per-task": 16},
        "setup": [
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",
            "module load cuda",
        ],
    }
    assert "gpus_per_node" not in batch_options(Launch(backend="slurm", gpus_per_branch=0))


def test_a_job_that_is_stopped_goes_on(here: Path) -> None:
    """Under submitit's local executor: USR2 reaches the training, whose status 75 requeues."""
    stubs = Stubs(here)
    stubs.branch(A, "stops")
    executor = submitit.LocalExecutor(here / "submitit")
    executor.update_parameters(timeout_min=1)
    stubs.paths.launch.mkdir(parents=True)
    job = executor.submit(Job(Work(NAME, A, train_command(NAME, A, 1)), retries=3))
    stubs.wait_for(A)
    # not job._interrupt(), which signals the controller, and that one dies of it
    (process,) = psutil.Process(int(job.job_id)).children()
    process.send_signal(signal.SIGUSR2)
    assert job.result() == 0
    assert stubs.note("checkpoint", A) == "SIGUSR2"
    assert stubs.attempts(A) == 2
    assert stubs.finished(A)


# --- with Slurm -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """slurm.conf of a cluster that runs; skipped, with the reason, where there can be none."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            path = stack.enter_context(slurm(tmp_path_factory.mktemp("slurm")))
        except RuntimeError as error:
            pytest.skip(f"Slurm does not start here: {error}")
        yield path


@pytest.fixture
def cluster(
    here: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Stubs]:
    """A workspace of stubs on it, given its partition."""
    monkeypatch.setattr(Slurm, "interval", 0.2)
    monkeypatch.setattr(Slurm, "lag", 1.0)
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    return lambda partition="main": Stubs(
        here, backend="slurm", gpus_per_branch=0, partition=partition
    )


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def refusal(launched: Future[None]) -> str:
    with pytest.raises(MeritError) as caught:
        launched.result(timeout=180)
    return str(caught.value)


def test_jobs_that_end_that_are_preempted_and_that_are_cancelled(
    cluster: Callable[..., Stubs],
) -> None:
    stubs = cluster()
    tired, failing = stubs.branch(A, "tires 1"), stubs.branch(B, "fails")
    stopping = [stubs.branch(name, "stops") for name in (C, D, E)]
    logs = stubs.paths.launch.relative_to(stubs.folder)
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(launch, NAME, [A, B, C, D, E])
        stubs.wait_for(*stopping)
        jobs = {branch: entry["job"] for branch, entry in stubs.jobs().items()}
        ask("scancel", "--signal=USR2", jobs[C])  # what precedes a time limit
        ask("scontrol", "requeue", jobs[D])  # what follows a preemption or a broken node
        ask("scancel", jobs[E])
        first, *lines = refusal(launched).splitlines()
    assert first == "2 of 5 branches failed; the same command tries them again"
    assert sorted(lines) == [
        f"  {failing}: ended with exit status 2 ({logs}/{B}.log): merit: error: the loss is nan",
        f"  {E}: CANCELLED in Slurm; was stopped; the same command goes on from its checkpoint "
        f"({logs}/{E}.log)",
    ]
    assert [stubs.note("checkpoint", name) for name in stopping] == [
        "SIGUSR2",
        "SIGTERM",
        "SIGTERM",
    ]
    assert all(stubs.finished(branch) for branch in (tired, C, D))
    assert [stubs.attempts(branch) for branch in (A, B, C, D, E)] == [2, 1, 2, 2, 1]
    # requeued by Slurm, not submitted anew
    assert len(list((stubs.paths.launch / "slurm").glob("*_submission.sh"))) == 5
    assert stubs.jobs() == {}
    launch(NAME, [C, E])
    assert stubs.finished(E)
    assert (stubs.attempts(C), stubs.attempts(E)) == (2, 2)


def test_leave_and_come_back_to_jobs(cluster: Callable[..., Stubs]) -> None:
    stubs = cluster()
    stubs.branch(A, "waits")
    command = [sys.executable, "-m", "merit", "launch", NAME, A]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    stubs.wait_for(A)
    until(lambda: A in stubs.jobs())
    job = stubs.jobs()[A]["job"]
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 130
    assert f"scancel {job}" in told
    assert ask("squeue", "--noheader", "--format=%i %T", f"--jobs={job}") == f"{job} RUNNING\n"
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(launch, NAME, [A])
        (stubs.folder / "go").touch()
        launched.result(timeout=120)
    assert stubs.finished(A)
    assert stubs.attempts(A) == 1


def test_a_job_that_dies_without_a_word(cluster: Callable[..., Stubs]) -> None:
    stubs = cluster("down")  # where jobs wait for ever
    stubs.branch(A)
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(launch, NAME, [A])
        until(lambda: A in stubs.jobs())
        ask("scancel", stubs.jobs()[A]["job"])
        assert refusal(launched).splitlines()[1] == (
            f"  {A}: CANCELLED in Slurm; died without a log: {stubs.paths.launch} must be on a "
            "file system that every node sees under the same path, and so must the Python "
            "environment"
        )


def test_a_job_that_slurm_refuses(cluster: Callable[..., Stubs]) -> None:
    stubs = cluster("nowhere")
    stubs.branch(A)
    with pytest.raises(MeritError, match=rf"(?s)sbatch refused {A}: .*invalid partition specified"):
        launch(NAME, [A])
    assert stubs.jobs() == {}
