"""A user's mistake at the command line: one message, status 2, no traceback, nothing written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARAMS = "params.yaml"
YAML = "experiments/mini_vision.yaml"
MODEL = "artifacts/mini_vision/base/model.safetensors"


def merit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command of this checkout, run in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "merit", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The settings alone, as in a fresh clone before any stage has run."""
    shutil.copyfile(ROOT / PARAMS, tmp_path / PARAMS)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


@pytest.fixture
def refuse(folder: Path) -> Callable[..., str]:
    """Run a command that must be refused; returns its message."""

    def run(*arguments: str) -> str:
        before = files(folder)
        done = merit(folder, *arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        prefix = "merit: error: "
        assert done.stderr.count(prefix) == 1
        assert files(folder) == before
        assert done.stdout == ""
        return done.stderr.partition(prefix)[2].strip()

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_misspelled_key_in_params(folder: Path, refuse: Callable[..., str]) -> None:
    replace(folder / PARAMS, "workers:", "wokers:")
    expected = "params.yaml: unknown key `wokers`. Did you mean `workers`?"
    assert refuse("repro") == expected


def test_wrong_type_in_params(folder: Path, refuse: Callable[..., str]) -> None:
    replace(folder / PARAMS, "workers: 2", "workers: two")
    assert refuse("repro").startswith("params.yaml: key `workers`: found 'two': ")


@pytest.mark.parametrize("command", ["repro", "data"])
def test_misspelled_key_in_an_experiment(
    folder: Path, refuse: Callable[..., str], command: str
) -> None:
    replace(folder / YAML, "max_new_tokens:", "max_new_token:")
    arguments = [command] if command == "repro" else [command, "mini_vision"]
    assert refuse(*arguments) == (
        "experiments/mini_vision.yaml: unknown key `evaluation.max_new_token`. "
        "Did you mean `max_new_tokens`?"
    )


def test_two_mistakes_are_two_lines(folder: Path, refuse: Callable[..., str]) -> None:
    replace(folder / YAML, "stride: 5", "stride: five")
    replace(folder / YAML, "max_new_tokens:", "max_new_token:")
    lines = refuse("repro").splitlines()
    assert len(lines) == 2
    assert "key `gradients.stride`: found 'five'" in lines[0]
    assert "unknown key `evaluation.max_new_token`" in lines[1]


def test_unknown_experiment(refuse: Callable[..., str]) -> None:
    message = refuse("data", "mini_visoin")
    assert message == (
        "data: no experiment 'mini_visoin' in params.yaml. Did you mean `mini_vision`? Where it "
        "was taken out, run `merit plan`"
    )


def test_unknown_branch(refuse: Callable[..., str]) -> None:
    assert refuse("train", "mini_vision", "joint-1ep-s11") == (
        "train: mini_vision has no 'joint-1ep-s11' among the branches of experiments/mini_vision/"
        "plan.yaml. Did you mean `joint-1ep-s1`?"
    )


def test_unknown_study(refuse: Callable[..., str]) -> None:
    assert refuse("study", "mini_vision", "regimes") == (
        "study: mini_vision has no 'regimes' among the studies of experiments/mini_vision/"
        "plan.yaml. Did you mean `regime`?"
    )


def test_unknown_model(refuse: Callable[..., str]) -> None:
    message = refuse("merge", "mini_vision", "merit-9d-s1")
    assert message.startswith(
        "merge: mini_vision has no 'merit-9d-s1' among the models of experiments/mini_vision/"
        "plan.yaml. Did you mean `merit-"
    )


def test_stale_plan(folder: Path, refuse: Callable[..., str]) -> None:
    """Before anything runs: the plan of another level is of other branches."""
    replace(folder / PARAMS, "level: default", "level: full")
    assert refuse("train", "mini_vision", "joint-1ep-s1") == (
        "experiments/mini_vision/plan.yaml is stale: params.yaml or the experiment's methods have "
        "changed; run `merit plan`, then the same command again"
    )


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ("base mini_vision", "data/pretraining/captions.jsonl"),
        ("encode mini_vision", "data/mixture/tasks.json"),
        ("gradients mini_vision", "encoded/tokens.npy"),
        ("partition mini_vision", "encoded/tasks.json"),
        ("train mini_vision joint-1ep-s1", "partition/manifests/joint-1ep-s1.json"),
        ("merge mini_vision base", "settings/models/base.json"),
        ("evaluate mini_vision base", "evaluation/questions/questions.json"),
        ("score mini_vision", "evaluation/answers/base.json"),
        ("report mini_vision", "evaluation/scores.json"),
    ],
)
def test_missing_upstream_file(refuse: Callable[..., str], arguments: str, file: str) -> None:
    message = refuse(*arguments.split())
    assert message.startswith(f"artifacts/mini_vision/{file}: ")
    assert len(message.splitlines()) == 1


def test_truncated_base(folder: Path, refuse: Callable[..., str]) -> None:
    merit(folder, "settings", "mini_vision")
    path = folder / MODEL
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    assert refuse("merge", "mini_vision", "base").startswith(f"{MODEL}: truncated or not a ")


def test_nothing_tracked_yet(refuse: Callable[..., str]) -> None:
    assert refuse("ui").startswith("sqlite:///mlflow.db: nothing has been tracked yet")
