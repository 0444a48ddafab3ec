"""`merit smoke`: the whole pipeline at a tiny size, in a folder of its own.

The folder is a git and DVC repository like a fresh clone. experiments/smoke.yaml, a tiny variant of
mini_vision, runs there by `merit run` in one process, then through `dvc repro`, which finds the
results stored; they are checked. Nothing in the clone itself is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from merit.config import load_experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.run.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
NAME = "smoke"
COPIED = (
    *("experiments", "reports/paper", "dvc.yaml", "README.md"),
    *(".dvc/config", ".dvcignore", ".gitignore"),
)
PARAMS = f"experiments: [{NAME}]\n"


def smoke() -> None:
    """Run, check, say how long it took; the folder stays only if something failed."""
    folder = Path(tempfile.mkdtemp(prefix="merit-smoke-"))
    print(f"The whole pipeline at a tiny size, in {folder}", file=sys.stderr)
    began = time.monotonic()
    try:
        run_all(folder)
        again = check_unchanged(folder)
    except BaseException:
        print(f"merit smoke: left for inspection: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    total = time.monotonic() - began
    print(f"smoke run passed in {total:.0f} s, {again:.0f} s of it a second run with nothing to do")


def run_all(folder: Path) -> None:
    """Prepare `folder`, run the pipeline in it and check the results."""
    prepare(folder)
    # one command imports torch once for all stages; DVC's commands then find their results stored
    run_in(folder, "merit", "run", NAME, *(stage for stage in STAGES if STAGES[stage].stored))
    run_in(folder, "dvc", "repro")
    check(folder)


def prepare(folder: Path) -> None:
    """Make `folder` a git and DVC repository with the tiny experiment."""
    if not (ROOT / "dvc.yaml").is_file():
        raise MeritError("smoke: runs in a clone of the repository, which holds dvc.yaml")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, target)
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    identity = ("-c", "user.name=smoke", "-c", "user.email=smoke@localhost")
    unsigned = ("-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
    for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "smoke")):
        subprocess.run(["git", *identity, *unsigned, *arguments], cwd=folder, check=True)


def run_in(folder: Path, *command: str) -> str:
    """The command's output, run in `folder` with this code; its messages go to stderr."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    code = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": code},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MeritError(f"`{' '.join(command)}` in {folder} failed:\n{done.stdout}")
    return done.stdout


def check(folder: Path) -> None:
    """Raise MeritError if a model lacks a score, or the report a table, figure or page."""
    experiment = load_experiment(NAME, folder / "experiments")
    paths = Artifacts(NAME, folder / "artifacts")
    scores = read_json(paths.evaluation / "scores.json")["scores"]
    for model in plan(experiment).models:
        if set(scores.get(model, {})) != set(experiment.evaluation.benchmarks):
            raise MeritError(f"{model}: scores for {sorted(scores.get(model, {}))} only")
    report = folder / "reports" / NAME
    expected = [report / name for name in ("table02.csv", "metrics.json", "claims.json")]
    expected += [report / "README.md", folder / "reports/README.md", folder / "mlflow.db"]
    missing = [str(path) for path in expected if not path.is_file() or not path.stat().st_size]
    if missing:
        raise MeritError(f"the report lacks {', '.join(missing)}")
    if len(list((report / "figures").glob("*.png"))) < 6:
        raise MeritError(f"{report / 'figures'}: six figures expected")


def check_unchanged(folder: Path) -> float:
    """Seconds of a `dvc repro` with nothing to do. MeritError if more than `settings` runs."""
    began = time.monotonic()
    output = run_in(folder, "dvc", "repro")
    seconds = time.monotonic() - began
    if output.count("Running stage") != 1:
        raise MeritError(f"a second `dvc repro` did something:\n{output}")
    return seconds
