"""The launcher: order, failures, killed workers, interruption; on stages that only write files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from merit.errors import MeritError
from merit.launch import Job, clock, next_job, run_jobs, stage_name

STAGE = '''
import os, signal, time
from pathlib import Path
from merit.errors import MeritError


def run(experiment, item):
    """`experiment` is a folder; `item` says what to do."""
    folder = Path(experiment)
    with (folder / "log").open("a") as log:
        log.write(f"{item} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")
    if item.startswith("wrong"):
        raise MeritError("tasks.json, line 3: no such task; remove it")
    if item.startswith("bug"):
        raise KeyError("a bug")
    if item.startswith("killed"):
        print("almost out of memory", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if item.startswith("slow"):
        while not (folder / "go").exists():
            time.sleep(0.01)
    if item.startswith("endless"):
        try:
            (folder / "started").touch()
            time.sleep(600)
        finally:
            (folder / "cleaned").touch()
    (folder / item).touch()
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose one stage, `write`, is STAGE; workers find it on the path they inherit."""
    folder = tmp_path / "import" / "fake_stages"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "write.py").write_text(STAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    return "fake_stages"


def job(folder: Path, item: str, cost: float = 1.0, after: tuple[str, ...] = ()) -> Job:
    return Job("write", str(folder), item, cost, tuple(f"write-{folder}-{name}" for name in after))


def log(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def test_names() -> None:
    assert Job("train", "mini_vision", "joint-1ep-s1", 1.0).name == "train-mini_vision-joint-1ep-s1"
    assert stage_name("train", "mini", "joint-0.5ep-s1") == "train-mini-joint-0_5ep-s1"
    assert stage_name("data", "mini") == "data-mini"
    assert [clock(0.4), clock(75), clock(3600)] == ["0:00", "1:15", "60:00"]


def test_next_job_is_the_dearest_ready_one() -> None:
    short, long = Job("s", "e", "short", 1.0), Job("s", "e", "long", 5.0)
    twin = Job("s", "e", "a-twin", 1.0)
    merge = Job("s", "e", "merge", 9.0, after=("s-e-long", "s-e-finished-before"))
    unfinished = {"s-e-short", "s-e-long", "s-e-merge"}
    assert next_job([short, long, merge], unfinished) is long
    assert next_job([short, merge], unfinished) is short
    assert next_job([short, merge], unfinished - {"s-e-long"}) is merge
    assert next_job([short, twin], unfinished) is twin
    assert next_job([merge], unfinished) is None


def test_one_warm_worker_takes_the_longest_first(tmp_path: Path, package: str) -> None:
    jobs = [
        job(tmp_path, "merge", cost=9.0, after=("b", "c")),
        job(tmp_path, "a", cost=1.0),
        job(tmp_path, "b", cost=3.0),
        job(tmp_path, "c", cost=2.0),
    ]
    done: list[str] = []
    run_jobs(jobs, 1, lambda finished: done.append(finished.item), package)
    assert done == ["b", "c", "merge", "a"]
    assert [line[0] for line in log(tmp_path)] == done
    pids = {line[1] for line in log(tmp_path)}
    assert len(pids) == 1
    assert str(os.getpid()) not in pids
    assert {line[2] for line in log(tmp_path)} == {"1"}


def test_two_workers_run_side_by_side(tmp_path: Path, package: str) -> None:
    jobs = [job(tmp_path, "slow", cost=2.0), job(tmp_path, "go")]  # slow ends once go is written
    done: list[str] = []
    run_jobs(jobs, 2, lambda finished: done.append(finished.item), package)
    assert done == ["go", "slow"]


def test_no_jobs() -> None:
    run_jobs([], 2, lambda finished: None)


def test_failure_keeps_what_runs_and_starts_nothing_more(tmp_path: Path, package: str) -> None:
    jobs = [
        job(tmp_path, "slow", cost=3.0),
        job(tmp_path, "wrong", cost=2.0),
        job(tmp_path, "never", cost=1.0),
    ]
    done: list[str] = []

    def release() -> None:
        while not (tmp_path / "log").exists() or len(log(tmp_path)) < 2:
            time.sleep(0.01)
        time.sleep(0.2)  # `wrong` has failed by now, with `slow` still running
        (tmp_path / "go").touch()

    thread = threading.Thread(target=release)
    thread.start()
    with pytest.raises(MeritError) as error:
        run_jobs(jobs, 2, lambda finished: done.append(finished.item), package)
    thread.join()
    message = "tasks.json, line 3: no such task; remove it"
    assert str(error.value) == f"write-{tmp_path}-wrong: {message}"
    assert done == ["slow"]
    assert not (tmp_path / "never").exists()


def test_unexpected_error_shows_its_traceback(tmp_path: Path, package: str) -> None:
    with pytest.raises(
        MeritError, match=r"-bug: unexpected error\nTraceback(.|\n)*KeyError: 'a bug'"
    ):
        run_jobs([job(tmp_path, "bug")], 1, lambda finished: None, package)


def test_killed_worker_is_reported(tmp_path: Path, package: str) -> None:
    done: list[str] = []
    jobs = [job(tmp_path, "killed", cost=1.0), job(tmp_path, "first", cost=2.0)]
    with pytest.raises(MeritError) as error:
        run_jobs(jobs, 1, lambda finished: done.append(finished.item), package)
    assert "-killed: its worker process was killed by SIGKILL" in str(error.value)
    assert "almost out of memory" in str(error.value)
    assert done == ["first"]


def test_jobs_that_wait_for_each_other(tmp_path: Path, package: str) -> None:
    jobs = [job(tmp_path, "a", after=("b",)), job(tmp_path, "b", after=("a",))]
    with pytest.raises(ValueError, match="wait for each other"):
        run_jobs(jobs, 1, lambda finished: None, package)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_stopping_the_parent_stops_the_workers(tmp_path: Path, package: str, signum: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import signal
            from merit.launch import Job, run_jobs
            if __name__ == "__main__":
                # a shell's background job, as this test may be, ignores it
                signal.signal(signal.SIGINT, signal.default_int_handler)
                job = Job("write", {str(tmp_path)!r}, "endless", 1.0)
                run_jobs([job], 1, print, {package!r})
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for(tmp_path / "started")
            process.send_signal(signum)
            assert process.wait(timeout=10) != 0
        finally:
            process.kill()  # or a failure here would wait for ever
    worker = int(log(tmp_path)[0][1])
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(worker)
    # an interrupted worker ends in order, its temporary files removed; a killed parent's does not
    assert (tmp_path / "cleaned").exists() == (signum == signal.SIGINT)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but not been waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
