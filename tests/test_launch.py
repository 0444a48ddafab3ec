"""`merit launch` on this host: real processes of a stub; what is submitted, told and refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from merit.config import Launch, Params
from merit.config.settings import load_yaml
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, file_hash, write_json
from merit.io.locks import exclusive
from merit.launch import launcher as launching
from merit.launch.jobs import Work, ending, train_command
from merit.launch.launcher import launch
from merit.launch.local import Local, make_slots, visible_gpus
from merit.launch.ranks import common_status
from merit.launch.table import Row, Table, clock
from merit.launch.watch import TRAIN_CODE
from tests.stub_branches import NAME, ROOT, Stubs, until

A, B, C, D = (f"merit-2d-s1-g{group}" for group in range(4))
Make = Callable[..., Stubs]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A workspace of stubs with such a `launch:` block, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(Local, "interval", 0.05)
    return lambda **settings: Stubs(tmp_path, **settings)


# --- how branches end -----------------------------------------------------------------------------


def test_every_ending(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stubs = make(slots=4, retries=2)
    well = [stubs.branch(A), stubs.branch(B, "tires 2")]
    tired, failing = stubs.branch(C, "tires 3"), stubs.branch(D, "fails")
    dead = stubs.branch("random-4-s1-g0", "dies")
    idle = stubs.branch("random-4-s1-g1", "idles")
    with pytest.raises(MeritError) as caught:
        launch(NAME, [*well, tired, failing, dead, idle])
    assert all(stubs.finished(branch) for branch in well)
    assert [stubs.attempts(branch) for branch in (A, B, C, D)] == [1, 3, 3, 1]  # 75: two retries
    logs = stubs.paths.launch.relative_to(stubs.folder)
    first, *lines = str(caught.value).splitlines()
    assert first == "4 of 6 branches failed; the same command tries them again"
    assert sorted(lines) == sorted(
        [
            f"  {C}: was stopped; the same command goes on from its checkpoint ({logs}/{C}.log)",
            f"  {D}: ended with exit status 2 ({logs}/{D}.log): merit: error: the loss is nan",
            f"  {dead}: died without an exit status (killed, or the host was restarted); "
            f"log: {logs}/{dead}.log",
            f"  {idle}: ended well, but left no output of its present manifest ({logs}/{idle}.log)",
        ]
    )
    # an attempt's words follow those of the one before
    assert stubs.log(B).splitlines() == [f"{B}: {i}/2, about 00:01 left" for i in (1, 2, 3)]
    assert stubs.jobs() == {}  # nothing is left to be watched
    told = capsys.readouterr().err
    assert re.search(rf"^\d\d:\d\d:\d\d {B}: running local \d+$", told, re.MULTILINE)
    assert re.search(rf"^\d\d:\d\d:\d\d {A}: finished$", told, re.MULTILINE)
    assert re.search(rf"^\d\d:\d\d:\d\d {D}: failed \(ended with exit status 2", told, re.MULTILINE)


def test_finished_branches_are_skipped_by_the_hash_of_their_manifest(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    stubs = make()
    for branch in (A, B):
        stubs.branch(branch)
    launch(NAME, [A, B])
    write_json(stubs.paths.manifest(B), {"branch": B, "seed": 2})
    launch(NAME, [A, B])
    assert "finished already: 1 of 2" in capsys.readouterr().err
    assert (stubs.attempts(A), stubs.attempts(B)) == (1, 2)


def test_all_branches_of_the_plan_by_default(make: Make) -> None:
    stubs = make()
    stubs.branch(A)
    with pytest.raises(MeritError, match=r"manifests/.*\.json: file not found; `dvc repro` writes"):
        launch(NAME)
    assert not stubs.attempts(A)


def test_slots_bound_what_runs_and_divide_the_gpus(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    stubs = make()
    (stubs.folder / "go").touch()
    for branch in (A, B, C):
        stubs.branch(branch, "waits")
    launch(NAME, [A, B, C])
    assert {stubs.note("gpus", A), stubs.note("gpus", B)} == {"4", "6"}
    assert stubs.note("gpus", C) in ("4", "6")  # waited for one of them
    assert all(stubs.finished(branch) for branch in (A, B, C))


# --- leaving, coming back, coming twice -----------------------------------------------------------


def start(stubs: Stubs, *branches: str) -> subprocess.Popen[str]:
    """`merit launch` as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "merit", "launch", NAME, *branches],
        cwd=stubs.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_leave_and_come_back(make: Make) -> None:
    """Ctrl-C leaves the running branch alone; what waited for its slot starts with the next one."""
    stubs = make(slots=1)
    stubs.branch(A, "waits")
    stubs.branch(B)
    first = start(stubs, A, B)
    stubs.wait_for(A)
    until(lambda: A in stubs.jobs())
    with pytest.raises(MeritError, match=rf"being launched by process {first.pid} on .* already"):
        launch(NAME, [A])  # two launches at once
    first.send_signal(signal.SIGINT)
    output, told = first.communicate(timeout=120)
    job = stubs.jobs()[A]["job"]
    assert (first.returncode, output) == (130, "")
    assert "Branches that go on: 1; that the next launch starts: 1" in told
    assert f"merit launch {NAME}" in told
    assert f"kill -TERM -- -{job}" in told
    (stubs.folder / "go").touch()
    launch(NAME, [A, B])
    assert (stubs.attempts(A), stubs.attempts(B)) == (1, 1)
    assert stubs.finished(A)
    assert stubs.finished(B)
    assert stubs.jobs() == {}


def test_a_job_that_ended_while_nobody_looked(make: Make) -> None:
    stubs = make()
    stubs.branch(A, "stops")
    first = start(stubs, A)
    stubs.wait_for(A)
    until(lambda: A in stubs.jobs())
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    os.killpg(int(stubs.jobs()[A]["job"]), signal.SIGTERM)  # what the launch said would stop it
    work = Work(NAME, A, ())
    until(lambda: work.exit_status() == 75)
    assert stubs.note("checkpoint", A) == "SIGTERM"
    launch(NAME, [A])
    assert stubs.finished(A)
    assert stubs.attempts(A) == 2


def test_a_branch_that_something_else_trains(make: Make) -> None:
    stubs = make()
    stubs.branch(A)
    with (
        exclusive(stubs.paths.branch(A), f"{A} is being trained"),
        pytest.raises(MeritError, match=rf"{A} is being trained by process {os.getpid()} on"),
    ):
        launch(NAME, [A])
    assert not stubs.attempts(A)
    launch(NAME, [A])
    assert stubs.finished(A)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "branches" / "x"
    with exclusive(path, "x is being trained"):
        with pytest.raises(MeritError) as caught, exclusive(path, "x is being trained"):
            pass
        assert str(caught.value) == (
            f"{path}: x is being trained by process {os.getpid()} on {socket.gethostname()} "
            "already; wait for it or end it, then run the same command again"
        )
    with exclusive(path, "x is being trained"):  # the lock ended with the block
        pass
    assert list(path.parent.iterdir()) == []  # and nothing is left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "slurm"}, r"launched with `backend: slurm`, params\.yaml says local"),
        ({"host": "elsewhere"}, "was launched on elsewhere, this is "),
    ],
)
def test_jobs_that_cannot_be_watched_from_here(
    make: Make, changes: dict[str, str], message: str
) -> None:
    stubs = make()
    stubs.branch(A)
    job = {"backend": "local", "host": socket.gethostname(), "job": "1", "began": 0.0, "code": ""}
    write_json(stubs.paths.launch / "jobs.json", {A: job | changes})
    with pytest.raises(MeritError, match=message):
        launch(NAME, [A])


def test_a_job_that_nothing_remembers(make: Make) -> None:
    """jobs.json was deleted, or never written: a branch is not started twice all the same."""
    stubs = make()
    stubs.branch(A, "waits")
    first = start(stubs, A)
    stubs.wait_for(A)
    first.kill()
    first.communicate()
    until(lambda: A in stubs.jobs())
    (stubs.paths.launch / "jobs.json").write_text("{}", encoding="utf-8")
    with pytest.raises(MeritError, match=rf"{A} runs already, though .*jobs\.json does not say so"):
        launch(NAME, [A])
    (stubs.paths.launch / "jobs.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(MeritError, match=r"jobs\.json: not what a launch writes"):
        launch(NAME, [A])
    (stubs.folder / "go").touch()
    until(lambda: stubs.finished(A))
    assert stubs.attempts(A) == 1


# --- bad input ------------------------------------------------------------------------------------


def test_an_unknown_branch(make: Make) -> None:
    make()
    with pytest.raises(MeritError) as caught:
        launch(NAME, ["merit-2d-s1-g11"])
    assert str(caught.value).startswith(
        f"launch: {NAME} has no branch 'merit-2d-s1-g11'. Did you mean `merit-2d-s1-g"
    )


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"backend": "slrum"}, "key `launch.backend`: found 'slrum': Input should be 'local' or"),
        ({"gpu_per_branch": 2}, "`launch.gpu_per_branch`. Did you mean `gpus_per_branch`?"),
        ({"sbatch": {"time": "1:00"}}, "`sbatch`: `time` is set by `merit launch`; take it out"),
        ({"minutes": 5}, "`seconds_to_stop`: 300 s before the end of 5 minutes is before the beg"),
    ],
)
def test_mistakes_in_the_launch_block(
    tmp_path: Path, block: dict[str, object], message: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"experiments": ["x"], "launch": block}), encoding="utf-8")
    with pytest.raises(MeritError) as caught:
        load_yaml(path, Params)
    assert message in str(caught.value)


def test_slurm_without_submitit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs = make(backend="slurm")
    stubs.branch(A)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MeritError, match=r"needs submitit.*pip install 'merit\[slurm\]'"):
        launch(NAME, [A])
    assert stubs.jobs() == {}


def test_slurm_without_sbatch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs = make(backend="slurm")
    stubs.branch(A)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(stubs.folder))
    with pytest.raises(MeritError, match="needs the command 'sbatch', which is not on the PATH"):
        launch(NAME, [A])


# --- small things ---------------------------------------------------------------------------------


def test_slots() -> None:
    four = ["0", "1", "2", "3"]
    assert make_slots(Launch(), four, workers=2) == [["0"], ["1"], ["2"], ["3"]]
    assert make_slots(Launch(gpus_per_branch=3), four, workers=2) == [["0", "1", "2"]]
    assert make_slots(Launch(gpus_per_branch=2, slots=1), four, workers=2) == [["0", "1"]]
    assert make_slots(Launch(), [], workers=3) == [[], [], []]
    assert make_slots(Launch(slots=1), [], workers=3) == [[]]
    assert make_slots(Launch(gpus_per_branch=0), four, workers=2) == [[], []]
    with pytest.raises(MeritError, match=r"`launch.gpus_per_branch`: 2 x 3 GPUs .* 4 are visible"):
        make_slots(Launch(gpus_per_branch=3, slots=2), four, workers=2)
    with pytest.raises(MeritError, match="1 x 8 GPUs are asked for, 4 are visible here"):
        make_slots(Launch(gpus_per_branch=8), four, workers=2)


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value, found in (("2, 5", ["2", "5"]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "GPU 0: A (UUID: a)"\necho "  MIG 1g"\necho "GPU 1: A"\n')
    tool.chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_several_gpus_are_ranks() -> None:
    assert (
        train_command("x", "b", 1) == train_command("x", "b", 0) == ("bin/merit", "train", "x", "b")
    )
    ranks = ("-m", "merit.launch.ranks", "8", "train", "x", "b")
    assert train_command("x", "b", 8) == (sys.executable, *ranks)


def test_endings_in_words() -> None:
    assert ending(2) == "ended with exit status 2"
    assert ending(137) == "was ended by signal 9 (out of memory?)"
    assert ending(139) == "was ended by signal 11"


def test_the_table_of_a_terminal() -> None:
    table = Table()
    table.rows = {
        row.branch: row
        for row in (
            Row("a", "finished"),
            Row("b", "waiting", "no free slot"),
            Row("c", "running", "", "local 7", "3/60", 125.0),
        )
    }
    assert [line.split() for line in table.lines(height=2)] == [
        ["branch", "state", "step", "time", "job"],
        ["--------", "-------", "------", "------", "-------", "------------"],
        ["c", "running", "3/60", "2m05s", "local", "7"],
        ["b", "waiting", "no", "free", "slot"],
        ["1", "running,", "1", "waiting,", "1", "finished"],
    ]
    assert (clock(59.6), clock(3600 * 30 + 61)) == ("1m00s", "30h01m")


# --- DVC ------------------------------------------------------------------------------------------


def test_the_code_is_what_dvc_thinks_it_is() -> None:
    """TRAIN_CODE is the part of `train`'s dependencies that is code."""
    stage = yaml.safe_load((ROOT / "pipeline.yaml").read_text(encoding="utf-8"))["stages"]["train"]
    assert set(TRAIN_CODE) == {dep for dep in stage["do"]["deps"] if dep.startswith("merit/")}


PIPELINE = """\
stages:
  train:
    foreach: [{a}, {b}]
    do:
      cmd: bin/merit train {name} ${{item}}
      deps: ["artifacts/{name}/partition/manifests/${{item}}.json", merit/train/branch.py]
      outs: ["artifacts/{name}/branches/merit-2d-s1/${{item}}"]
  merge:
    cmd: cat artifacts/{name}/branches/merit-2d-s1/*/summary.json > merged
    deps: [artifacts/{name}/branches/merit-2d-s1]
    outs: [merged]
"""


def test_dvc_takes_what_was_launched_and_trains_nothing_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As documented: launch, then `dvc repro`; not where the code has changed meanwhile."""
    stubs = make()
    for branch in (A, B):
        stubs.branch(branch)
    monkeypatch.setattr(launching, "stage_name", lambda work: f"train@{work.branch}")
    code = stubs.folder / "merit" / "stages" / "train.py"
    code.parent.mkdir(parents=True)
    code.write_text("1", encoding="utf-8")
    pipeline = PIPELINE.format(name=NAME, a=A, b=B)
    (stubs.folder / "dvc.yaml").write_text(pipeline, encoding="utf-8")
    (stubs.folder / ".dvc").mkdir()
    (stubs.folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    launch(NAME, [A])
    monkeypatch.setattr("merit.launch.watch.code_hash", lambda: "of another time")
    launch(NAME, [B])
    assert f"dvc commit train@{B}" in capsys.readouterr().err
    assert (stubs.attempts(A), stubs.attempts(B)) == (1, 1)
    dvc("repro", "--quiet")
    assert (stubs.attempts(A), stubs.attempts(B)) == (1, 2)
    assert (stubs.folder / "merged").is_file()


def test_a_launched_branch_is_that_of_the_pipeline(smoke_folder: Path) -> None:
    """The same bytes as by `dvc repro`, and the same record of them."""
    work = Work("smoke", "joint-1ep-s1", ())
    output = Artifacts("smoke", smoke_folder / "artifacts").branch(work.branch)
    lock = smoke_folder / "experiments" / "smoke" / "dvc.lock"
    before = file_hash(output / "model.safetensors")
    recorded = yaml.safe_load(lock.read_text(encoding="utf-8"))
    without = {**recorded, "stages": dict(recorded["stages"])}
    del without["stages"][launching.stage_name(work).rpartition(":")[2]]
    lock.write_text(yaml.safe_dump(without, sort_keys=False), encoding="utf-8")
    shutil.rmtree(output)
    command = [sys.executable, "-m", "merit", "launch", "smoke", work.branch]
    done = subprocess.run(command, cwd=smoke_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert file_hash(output / "model.safetensors") == before
    assert yaml.safe_load(lock.read_text(encoding="utf-8")) == recorded


def dvc(*arguments: str) -> None:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, env=environment)


# --- ranks ----------------------------------------------------------------------------------------

RANK = """\
import os, pathlib, signal, sys, time
rank = os.environ["RANK"]

def stop(number, _):
    pathlib.Path("stopped", rank).write_text(" ".join([signal.Signals(number).name, *sys.argv[1:]]))
    sys.exit(75)

signal.signal(signal.SIGUSR2, stop)
pathlib.Path("up", rank).touch()
time.sleep(60)
"""


def test_ranks(tmp_path: Path) -> None:
    """A signal reaches every rank, and the exit status of the ranks is that of all."""
    for name in ("merit", "up", "stopped"):
        (tmp_path / name).mkdir()
    (tmp_path / "merit" / "__main__.py").write_text(RANK, encoding="utf-8")  # what the ranks run
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from merit.launch.ranks import main; "
    script += "sys.exit(main('2', 'train', 'x', 'b'))"
    ranks = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE)
    until(lambda: len(list((tmp_path / "up").iterdir())) == 2)
    ranks.send_signal(signal.SIGUSR2)
    ranks.communicate(timeout=180)
    assert ranks.returncode == 75
    notes = [path.read_text(encoding="utf-8") for path in (tmp_path / "stopped").iterdir()]
    assert notes == ["SIGUSR2 train x b"] * 2


def test_the_common_exit_status() -> None:
    assert common_status([-15, 75]) == 75  # torchrun ends the others
    assert common_status([4, -15]) == 4
    assert common_status([-9]) == 1
