"""docs/machines.md: clones that share nothing but git and a DVC remote; the SkyPilot example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "machines.md"
# the pipeline's shape, with stubs: a partition, two branches, their merge
PIPELINE = """\
stages:
  partition:
    cmd: mkdir -p part base && echo a > part/a && echo b > part/b && echo theta0 > base/model
    deps: [settings]
    outs: [part, base]
  train:
    foreach: [a, b]
    do:
      cmd: mkdir -p branches/${item} && cat part/${item} base/model > branches/${item}/model
      deps: ["part/${item}"]
      outs: ["branches/${item}"]
  merge:
    cmd: cat branches/*/model > merged
    deps: [branches]
    outs: [merged]
"""
REMOTE = "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../remote\n"


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "commit.gpgsign=false")
    run(folder, "git", *identity, *arguments)


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def documented(*words: str) -> bool:
    """Whether a line of the page's commands begins so."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return any(line.startswith(" ".join(("dvc", *words))) for line in lines)


def test_unrelated_machines_through_a_remote(tmp_path: Path) -> None:
    driver, node = tmp_path / "driver", tmp_path / "node"
    driver.mkdir()
    git(driver, "init", "--quiet")
    (driver / ".dvc").mkdir()
    (driver / ".dvc" / "config").write_text(REMOTE, encoding="utf-8")
    (driver / ".dvc" / ".gitignore").write_text("/cache\n/tmp\n", encoding="utf-8")
    (driver / ".gitignore").write_text("/part\n/base\n/branches\n/merged\n", encoding="utf-8")
    (driver / "settings").touch()
    (driver / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    dvc(driver, "repro", "partition")
    git(driver, "add", ".")
    git(driver, "commit", "--quiet", "-m", "partition")
    dvc(driver, "push")
    # the other machine: what the branch needs, the branch alone, what it gave
    git(tmp_path, "clone", "--quiet", str(driver), str(node))
    dvc(node, "pull", "part", "base")
    assert not (node / "branches").exists()
    assert "Running stage 'train@b'" in dvc(node, "repro", "--single-item", "train@b")
    dvc(node, "push", "--run-cache", "train@b")
    # back on the driver: the other branch is trained, this one is not
    told = dvc(driver, "repro", "--pull")
    assert "Running stage 'train@a'" in told
    assert "Stage 'train@b' is cached - skipping run, checking out outputs" in told
    assert (driver / "merged").read_text() == "a\ntheta0\nb\ntheta0\n"
    for words in (
        ("push",),
        ("pull",),
        ("repro", "-s"),
        ("push", "--run-cache"),
        ("repro", "--pull"),
    ):
        assert documented(*words), words


# what SkyPilot 0.14 knows at each level, of what the example uses or may want
TASK = {
    "name",
    "workdir",
    "num_nodes",
    "resources",
    "envs",
    "secrets",
    "file_mounts",
    "setup",
    "run",
}
RESOURCES = {"infra", "accelerators", "cpus", "memory", "disk_size", "use_spot", "job_recovery"}
RECOVERY = {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}


def test_the_skypilot_example() -> None:
    text = (ROOT / "docs" / "examples" / "skypilot.yaml").read_text(encoding="utf-8")
    task = yaml.safe_load(text)
    assert set(task) <= TASK
    assert set(task["resources"]) <= RESOURCES
    assert set(task["resources"]["job_recovery"]) <= RECOVERY
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    assert all(isinstance(value, str) for value in task["envs"].values())
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert {"EXPERIMENT", "BRANCH"} <= set(task["envs"])
    for line in ("pull", "commit --force", "push --run-cache"):
        assert f"dvc {line} " in task["run"]
