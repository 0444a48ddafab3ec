"""The whole pipeline at a tiny size; what each stage computes is golden in test_same_bytes.py."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sqlite3
from pathlib import Path

import pytest

from merit.config import load_experiment, load_params
from merit.config.branches import plan
from merit.io.artifacts import Artifacts, file_hash, read_json
from merit.run import keys, smoke, store
from merit.run.execute import Executor
from merit.run.stages import STAGES
from tests.conftest import SECRET

ROOT = Path(__file__).parent.parent
BRANCH = "merit-1d-s1-g0"


@pytest.fixture(scope="module")
def folder(smoke_folder: Path) -> Path:
    return smoke_folder


def paths(folder: Path) -> Artifacts:
    return Artifacts(smoke.NAME, folder / "artifacts")


def hashes(branch: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in branch.iterdir()}


def test_the_control_lies_as_far_from_the_base_as_the_merged_model(folder: Path) -> None:
    distances = {
        model: read_json(paths(folder).model(model) / "merge.json")["displacement"]
        for model in ("merit-1d-s1", "joint-shrunk-s1", "joint-1ep-s1", "base")
    }
    assert distances["joint-shrunk-s1"] == pytest.approx(distances["merit-1d-s1"], rel=1e-4)
    assert 0 == distances["base"] < distances["merit-1d-s1"] < distances["joint-1ep-s1"]


def test_every_method_model_and_branch_is_a_finished_run_in_mlflow(folder: Path) -> None:
    planned = plan(load_experiment(smoke.NAME, folder / "experiments"))
    methods = {model.method for model in planned.models.values() if model.seed is not None}
    num_runs = len(methods) + len(planned.models) + len(planned.branches)
    database = sqlite3.connect(folder / "mlflow.db")
    query = "SELECT status, COUNT(*) FROM runs WHERE lifecycle_stage = 'active' GROUP BY status"
    try:
        assert database.execute(query).fetchall() == [("FINISHED", num_runs)]
    finally:
        database.close()


def test_no_key_is_written(folder: Path) -> None:
    """Logs, artifacts, reports, DVC's and MLflow's files, git's objects apart (compressed)."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


# --- what users type; each test leaves the folder finished and committed --------------------------


@pytest.fixture(scope="module")
def committed(folder: Path) -> Path:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=smoke", "-c", "user.email=smoke@localhost")
    return smoke.run_in(folder, "git", *identity, *arguments)


def ran(output: str) -> dict[str, tuple[int, int]]:
    """{stage: (items done, items kept)} of the stages that ran."""
    found = re.findall(rf"^(\w+) {smoke.NAME}: (\d+) done, (\d+) kept", output, re.MULTILINE)
    return {stage: (int(done), int(kept)) for stage, done, kept in found}


def test_a_second_run_does_nothing(folder: Path) -> None:
    """In processor time, since other tests run beside it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    smoke.check_unchanged(folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used > 0


def test_a_branch_is_the_same_bytes_again_and_is_not_trained_twice(folder: Path) -> None:
    branch = paths(folder).branch(BRANCH)
    before = hashes(branch)
    shutil.rmtree(branch)
    shutil.rmtree(folder / "artifacts" / smoke.NAME / store.STORE / "train" / BRANCH)
    command = ("merit", "run", smoke.NAME, "train", "--only", BRANCH)
    assert ran(smoke.run_in(folder, *command)) == {"train": (1, 0)}
    assert hashes(branch) == before
    shutil.rmtree(branch)
    assert ran(smoke.run_in(folder, *command)) == {"train": (0, 1)}  # from the store


def test_a_changed_method_trains_its_own_branches_and_changing_back_none(committed: Path) -> None:
    change = f"experiments/{smoke.NAME}.yaml:sweeps.regime.learning_rate=[2.0e-3]"
    output = smoke.run_in(committed, "dvc", "exp", "run", f"score@{smoke.NAME}", "-S", change)
    assert ran(output) == {
        "partition": (1, 0),
        **dict.fromkeys(("train", "merge", "evaluate"), (1, 6)),
        "score": (1, 0),
    }
    told = smoke.run_in(committed, "dvc", "params", "diff")
    assert re.search(r"sweeps\.regime\.learning_rate +\[0\.001\] +\[0\.002\]", told)
    git(committed, "checkout", "--quiet", ".")
    smoke.check_unchanged(committed)
    rows = json.loads(smoke.run_in(committed, "merit", "status", "--json"))
    assert {row["why"] for row in rows} == {None}
    assert [row["item"] for row in rows if row["stage"] == "data"] == [None]


def test_push_clone_pull_repro(committed: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    smoke.run_in(committed, "dvc", "remote", "add", "--force", "--default", "here", str(tmp_path))
    smoke.run_in(committed, "dvc", "push")
    git(committed, "commit", "--quiet", "--all", "--allow-empty", "--message", "pushed")
    git(committed, "clone", "--quiet", str(committed), str(clone))
    shutil.copy(committed / ".dvc/config", clone / ".dvc/config")
    assert "merit run" not in smoke.run_in(clone, "dvc", "repro", "--dry", "--allow-missing")
    assert len(smoke.run_in(clone, "dvc", "dag", "--mermaid").splitlines()) < 60
    smoke.run_in(clone, "dvc", "pull")
    assert ran(smoke.run_in(clone, "dvc", "repro")) == {}
    assert "everything is up to date" in smoke.run_in(clone, "merit", "status")
    for made in ("reports/smoke", "reports/studies", "artifacts/smoke/studies"):
        shutil.rmtree(clone / made)
    shutil.rmtree(clone / "artifacts/smoke" / store.STORE / "studies")
    assert ran(smoke.run_in(clone, "dvc", "repro")).keys() == {"studies", "report"}
    assert git(clone, "status", "--short") == ""  # the same bytes, of another commit and time


# an item, its stage, and a file that it is made of
READ = [
    ("base", "", "data/pretraining/conversations.jsonl"),
    ("encode", "", "data/mixture/tasks.json"),
    ("encode", "", "base/model.safetensors"),
    ("gradients", "", "encoded/tokens.npy"),
    ("partition", "", "gradients/gradients.npy"),
    ("train", BRANCH, "encoded/bearing.npy"),
    ("train", BRANCH, "base/model.safetensors"),
    ("train", BRANCH, f"partition/manifests/{BRANCH}.json"),
    ("merge", "merit-1d-s1", f"branches/merit-1d-s1/{BRANCH}/model.safetensors"),
    ("evaluate", "merit-1d-s1", "models/merit-1d-s1/model.safetensors"),
    ("score", "", "evaluation/answers/merit-1d-s1.json"),
    ("studies", "readiness", "models/base/model.safetensors"),
    ("report", "", "evaluation/scores.json"),
]


@pytest.mark.parametrize(("stage", "name", "file"), READ)
def test_nothing_is_made_of_an_input_with_a_changed_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, name: str, file: str
) -> None:
    monkeypatch.chdir(folder)
    executor = Executor(load_experiment(smoke.NAME), load_params())
    item = STAGES[stage].item(executor.context, name)
    todo = [(item, STAGES[stage].key(executor.context, name))]
    assert executor._with_whole_inputs(STAGES[stage], todo) == (todo, {})
    damaged = Path("artifacts", smoke.NAME, file)
    content = damaged.read_bytes()
    times = damaged.stat().st_atime_ns, damaged.stat().st_mtime_ns
    damaged.write_bytes(content[:-12] + bytes([content[-12] ^ 1]) + content[-11:])  # a letter
    try:
        left, why = executor._with_whole_inputs(STAGES[stage], todo)
    finally:
        damaged.write_bytes(content)  # in place, as DVC and the store know it
        os.utime(damaged, ns=times)
    assert left == []
    assert why[item.label].startswith(f"{damaged}: not what its record says; ")


WATCH = """
import json, sys
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
from merit.train.branch import run
run(*sys.argv[1:])
names = [name for name in sys.modules if name.startswith("merit.")]
print(json.dumps([names, [path for path in opened if not path.endswith((".py", ".pyc"))]]))
"""


def test_what_training_reads_is_in_its_key(folder: Path) -> None:
    """Modules are in the code hash or known to be none; files are hashed inputs, or its own."""
    work = folder / "watched"
    for part in ("experiments", f"artifacts/{smoke.NAME}"):
        shutil.copytree(folder / part, work / part, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(folder / "params.yaml", work)
    told = smoke.run_in(work, "python", "-c", WATCH, smoke.NAME, BRANCH)
    shutil.rmtree(work)
    names, opened = json.loads(told.splitlines()[-1])
    code = {(keys.PACKAGE / path).as_posix() for path in keys.code_files("merit.train.branch")}
    beside = [name for name in names if f"{name}.".startswith(keys.NOT_CODE)]
    allowed = code | {str(keys.module_file(name)) for name in beside}
    for name in beside:  # what those import, and no training uses
        allowed |= {str(keys.module_file(other)) for other in keys.imported(keys.module_file(name))}
    surplus = {str(keys.module_file(name)) for name in names} - allowed
    assert {path for path in surplus if not path.endswith("__init__.py")} <= {
        str(keys.module_file(f"merit.method.{name}")) for name in ("partition", "similarity")
    }
    inputs = ("base/", "encoded/", "partition/manifests/", "data/mixture/")
    own = ("branches/", ".work/", "timings/")
    for path in opened:
        relative = path.partition(f"artifacts/{smoke.NAME}/")[2]
        assert not relative or relative.startswith((*inputs, *own)), path
        assert f"{ROOT}/merit/" not in path or path in code, path
