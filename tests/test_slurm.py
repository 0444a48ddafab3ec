"""Branches as Slurm jobs: on a real Slurm of one node if it is installed, and parts without."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from merit.config import Launch, Params
from merit.errors import MeritError
from merit.io.artifacts import KEY, Artifacts, file_hash, write_json
from merit.run import slurm
from merit.run.ranks import common_status
from merit.run.slurm import Row, train_branches
from merit.run.store import Item, Key, hash_of_files
from tests.slurm import missing
from tests.slurm import slurm as start_slurm
from tests.test_train_stage import BRANCH, paths, write_manifest  # noqa: F401 - a fixture

ROOT = Path(__file__).parent.parent
LOGS = Path("artifacts/x/.work/slurm")
PYTHON = sys.executable
# the interpreter of jobs: `python -m merit run x train --only BRANCH` does what BRANCH.does says
STUB = f"""#!/bin/sh
[ "$2" = merit ] || exec {PYTHON} "$@"
branch=$7
echo "$3 $4 $5 $6" >> $branch.attempts
stop() {{
  trap '' TERM USR2
  echo $1 > $branch.stopped
  echo "merit: stopped; the same command resumes"
  exit 75
}}
trap 'stop TERM' TERM
trap 'stop USR2' USR2
if [ $(cat $branch.does) = waits ] && [ ! -f $branch.stopped ]; then
  touch $branch.up
  for _ in $(seq 600); do [ -f go ] || sleep 0.1; done
elif [ $(cat $branch.does) = fails ]; then
  echo "merit: error: train $branch: the loss is nan"
  echo "train x: 0 done, 0 kept, 00:01"
  exit 2
fi
mkdir -p artifacts/x/branches/$branch
cp $branch.key artifacts/x/branches/$branch/{KEY}
"""


def branch(name: str, does: str = "trains") -> tuple[Item, Key]:
    """A branch and its key; its job will do so."""
    folder, key = Path("artifacts/x/branches", name), {"settings": name}
    Path(f"{name}.does").write_text(does)
    write_json(Path(f"{name}.key"), {"key": key, "files": {}, "hash": hash_of_files({})})
    return Item("x", "train", name, (folder,), folder / KEY), key


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


# --- without Slurm --------------------------------------------------------------------------------


def test_what_sbatch_is_told() -> None:
    sbatch = {"account": "x", "cpus-per-task": 16}
    settings = Launch(minutes=90, seconds_to_stop=120, partition="long", sbatch=sbatch)
    assert slurm.batch_options(settings) == {
        "time": 90,
        "nodes": 1,
        "ntasks_per_node": 1,
        "gpus_per_node": 1,
        "partition": "long",
        "signal_delay_s": 120,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, "account": "x", "cpus-per-task": 16},
        "setup": ["export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}"],
    }
    assert "gpus_per_node" not in slurm.batch_options(Launch(gpus_per_branch=0))


def test_a_job_is_named_after_its_work_and_its_clone(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item, key), (other, _) = branch("a"), branch("b")
    name = slurm.job_name(item, key)
    assert name.startswith("merit-x-a-")
    assert slurm.job_name(item, dict(key)) == name
    changed = [slurm.job_name(other, key), slurm.job_name(item, {"settings": "other"})]
    (here / "clone").mkdir()
    monkeypatch.chdir(here / "clone")
    assert len({name, *changed, slurm.job_name(item, key)}) == 4


def test_squeue_is_asked_until_it_answers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "[ -f asked ] || { touch asked; exit 1; }; echo '7|PENDING|Resources|a|b'"
    Path("squeue").write_text(f"#!/bin/sh\n{answer}\n")
    Path("squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "INTERVAL", 0)
    assert slurm.ask_squeue() == [Row("7", "PENDING", "Resources", "a|b")]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("a: 3/7\nmerit: error: train a: nan\n\n", "merit: error: train a: nan"),
        (
            "RuntimeError: bad\ntrain x: 0 done\nmerit: error: x: 1 failed\n  train a: failed (1)",
            "RuntimeError: bad",
        ),
        ("merit: error: x: 1 failed\n  train a: ended by signal 9", "train a: ended by signal 9"),
    ],
)
def test_the_last_line_of_a_failed_job(here: Path, log: str, expected: str) -> None:
    item, row = branch("a")[0], Row("7", "FAILED")
    LOGS.mkdir(parents=True)
    (LOGS / "a.log").write_text(log)
    assert slurm.why(item, row, LOGS) == f"FAILED in Slurm ({LOGS}/a.log): {expected}"


def test_missing_software_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(MeritError, match=r"key `launch.backend`: .* the command 'sbatch'"):
        train_branches("x", [branch("a")], Params(experiments=["x"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MeritError, match=r"needs submitit, .* pip install 'merit\[slurm\]'"):
        slurm.check_installed()


@pytest.mark.parametrize(("codes", "status"), [((75, -15), 75), ((-15, -9), 1), ((1, 2), 2)])
def test_the_exit_status_of_several_ranks(codes: tuple[int, ...], status: int) -> None:
    assert common_status(codes) == status


# --- with Slurm -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """slurm.conf of a cluster that runs."""
    if reason := missing():
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            path = stack.enter_context(start_slurm(tmp_path_factory.mktemp("slurm")))
        except RuntimeError as error:
            pytest.skip(f"Slurm does not start here: {error}")
        yield path


@pytest.fixture
def cluster(here: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "INTERVAL", 0.2)
    monkeypatch.setattr(slurm, "LAG", 1.0)
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    Path("python").write_text(STUB)
    Path("python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(here / "python"))


def launch(partition: str = "main") -> Params:
    settings = Launch(backend="slurm", gpus_per_branch=0, partition=partition)
    return Params(experiments=["x"], launch=settings)


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def jobs() -> dict[str, str]:
    """{branch: id} of the jobs in this folder."""
    return {row.name.split("-")[2]: row.job for row in slurm.ask_squeue() if row.state in LIVE}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def attempts(name: str) -> int:
    return len(Path(f"{name}.attempts").read_text().splitlines())


LIVE = ("PENDING", "RUNNING")


@pytest.mark.usefixtures("cluster")
def test_jobs_that_end_that_fail_that_are_requeued_and_that_are_cancelled() -> None:
    does = {"a": "trains", "b": "fails", "c": "waits", "d": "waits", "e": "waits"}
    todo = [branch(name, what) for name, what in does.items()]
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(train_branches, "x", todo, launch())
        until(lambda: all(Path(f"{name}.up").exists() for name in "cde"))
        ids = jobs()
        ask("scancel", "--signal=USR2", ids["c"])  # what precedes a time limit
        ask("scontrol", "requeue", ids["d"])  # what follows a preemption or a broken node
        ask("scancel", ids["e"])
        failures = launched.result(timeout=600)
    stopped = "merit: stopped; the same command resumes"
    assert failures == {
        "train b": f"FAILED in Slurm ({LOGS}/b.log): merit: error: train b: the loss is nan",
        "train e": f"CANCELLED in Slurm ({LOGS}/e.log): {stopped}",
    }
    assert all(item.is_current(key) for item, key in todo if item.name in "acd")
    assert [Path(f"{name}.stopped").read_text() for name in "cde"] == ["USR2\n", "TERM\n", "TERM\n"]
    assert [attempts(name) for name in "abcde"] == [1, 1, 2, 2, 1]
    assert len(list((LOGS / "submitit").glob("*_submission.sh"))) == 5  # requeued by Slurm
    assert train_branches("x", todo[-1:], launch()) == {}
    assert attempts("e") == 2


@pytest.mark.usefixtures("cluster")
def test_a_driver_that_is_interrupted_finds_its_jobs_again() -> None:
    todo = [branch("a", "waits")]
    script = f"""
import signal, sys
from tests.test_slurm import branch, launch, train_branches
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
sys.executable = {sys.executable!r}
train_branches("x", [branch("a", "waits")], launch())
"""
    driver = subprocess.Popen([PYTHON, "-c", script], stderr=subprocess.PIPE, text=True)
    until(Path("a.up").exists)
    job = jobs()["a"]
    driver.send_signal(signal.SIGINT)
    told = driver.communicate(timeout=600)[1]
    assert f"`merit run x train` waits for them again, `scancel {job}` stops them" in told
    assert jobs() == {"a": job}
    Path("go").touch()
    assert train_branches("x", todo, launch()) == {}
    assert attempts("a") == 1


@pytest.mark.usefixtures("cluster")
def test_a_job_that_leaves_no_log(here: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(train_branches, "x", [branch("a")], launch("down"))
        until(jobs)
        ask("scancel", jobs()["a"])
        why = launched.result(timeout=600)["train a"]
    assert why.startswith(f"CANCELLED in Slurm, without a log: {here / LOGS} must be on")


@pytest.mark.usefixtures("cluster")
def test_a_job_that_slurm_refuses() -> None:
    with pytest.raises(MeritError, match=r"(?s)sbatch refused a: .*invalid partition specified"):
        train_branches("x", [branch("a")], launch("nowhere"))


@pytest.mark.usefixtures("cluster", "paths")
def test_a_training_that_is_stopped_and_requeued_is_the_same_to_the_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", PYTHON)
    shutil.copytree(ROOT / "experiments", "experiments")
    settings = {"extends": "smoke", "methods": {"merit-1d": {"seeds": [3]}, "joint-shrunk": None}}
    Path("experiments/x.yaml").write_text(yaml.safe_dump(settings))
    artifacts = Artifacts("x")
    write_manifest(artifacts, epochs=300.0)  # 400 steps
    train = (PYTHON, "-m", "merit", "run", "x", "train", "--only", BRANCH)
    Path("params.yaml").write_text("experiments: [x]\n")
    ask(*train)
    model = artifacts.branch(BRANCH) / "model.safetensors"
    before = file_hash(model)
    shutil.rmtree(artifacts.folder / ".store")
    shutil.rmtree(model.parent)
    Path("params.yaml").write_text(yaml.safe_dump(launch().model_dump()))
    work = artifacts.folder / ".work"
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(ask, *train)
        until(lambda: list(work.glob(f"branches/*/.{BRANCH}.????????????????")))
        (job,) = jobs().values()
        time.sleep(0.5)  # it has begun
        ask("scancel", "--signal=USR2", job)
        assert "1 done, 0 kept" in launched.result(timeout=180)
    assert "stopped after step" in (work / f"slurm/{BRANCH}.log").read_text()
    assert file_hash(model) == before
