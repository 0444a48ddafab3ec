"""`merit smoke`: the whole pipeline at a tiny size, in a folder of its own.

The repository's code, experiments and settings are copied into a temporary folder that is a git and
DVC repository like a fresh clone. There a tiny variant of `experiments/mini_vision.yaml` runs
through `dvc repro`, and its results are checked. Nothing in the repository itself is touched.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from merit.config import EXPERIMENTS_DIR, PARAMS_FILE, Experiment, Params, load_experiment
from merit.config.branches import plan
from merit.dvc_processes import environment, fork_server
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json

ROOT = Path(__file__).resolve().parents[2]
SOURCE, NAME = "mini_vision", "smoke"
COPIED = (  # eval through the link in merit/
    *("merit", "eval", "bin", "dvc.yaml", "pipeline.yaml", "reports/paper", "params.yaml"),
    *("README.md", "docs"),
)
COPIED_HIDDEN = (".dvc/config", ".dvcignore", ".gitignore")
UNCHANGED_LIMIT = 8.0  # seconds that a `dvc repro` with nothing to do may take

# What the tiny variant changes. The keys are checked with the rest of the experiment.
NUM_STEPS = (30, 20, 60)  # of the base's phases
OVERRIDES: dict[str, Any] = {
    "name": NAME,
    "data": {
        **{"num_examples": 600, "num_images": 300, "num_conversations": 300},
        **{"num_questions": 12, "num_validation_questions": 4},
    },
    "base": {
        "architecture": {
            **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1},
            **{"vision_hidden_size": 32, "vision_intermediate_size": 64},
            **{"vision_depth": 2, "vision_num_heads": 2},
        },
    },
    "gradients": {"num_examples": 4},
    "evaluation": {"max_new_tokens": 16},
    "report": {
        "title": "Smoke run",
        "curves": ["joint-1ep", "random-2", "merit-1d"],
        "partition": "merit-1d",
    },
}
METHODS: dict[str, Any] = {
    "base": {"partition": "base"},
    "joint-1ep": {"partition": "joint"},
    "random-2": {"partition": "random", "groups": 2},
    "soup-2": {"partition": "soup", "members": 2},
    "merit-1d": {"partition": "merit", "axes": 1},
    "joint-shrunk": {"partition": "shrunk", "source": "joint-1ep", "match": "merit-1d"},
}
SWEEPS: dict[str, Any] = {
    "regime": {"methods": ["joint-1ep"], "learning_rate": [1.0e-3]},
}
STUDIES: dict[str, Any] = {
    "readiness": {"random": "random-2", "num_examples": 32, "num_points": 3},
    "cost": {"methods": ["merit-1d"]},
}


def smoke() -> None:
    """Run, check, say how long each stage took; the folder stays only where something failed."""
    folder = Path(tempfile.mkdtemp(prefix="merit-smoke-"))
    print(f"The whole pipeline at a tiny size, in {folder}", file=sys.stderr)
    began = time.monotonic()
    try:
        print(smoke_run(folder))
        again = check_unchanged(folder)
        if again > UNCHANGED_LIMIT:
            raise MeritError(f"a second `dvc repro` took {again:.1f} s")
    except BaseException:
        print(f"merit smoke: left for inspection: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    total = time.monotonic() - began
    print(f"smoke run passed in {total:.0f} s, {again:.0f} s of it a second run with nothing to do")


def smoke_run(folder: Path) -> str:
    """Prepare `folder`, run the pipeline in it and check the results; returns what it printed.

    Raises MeritError where the pipeline fails or leaves something out.
    """
    prepare(folder)
    output = repro(folder)
    check(folder)
    return output


def prepare(folder: Path) -> None:
    """Make `folder` a git and DVC repository that holds the code and the tiny experiment."""
    experiment = tiny(load_experiment(SOURCE, ROOT / EXPERIMENTS_DIR))
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*COPIED, *COPIED_HIDDEN):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored)
        elif source.is_file():
            shutil.copyfile(source, target)
    (folder / EXPERIMENTS_DIR).mkdir()
    _write_yaml(
        folder / EXPERIMENTS_DIR / f"{NAME}.yaml",
        experiment.model_dump(mode="json", exclude_defaults=True),
    )
    params = Params(experiments=[NAME])
    _write_yaml(folder / PARAMS_FILE, params.model_dump(mode="json"))
    identity = ("-c", "user.name=smoke", "-c", "user.email=smoke@localhost")
    unsigned = ("-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null")
    for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "smoke")):
        subprocess.run(["git", *identity, *unsigned, *arguments], cwd=folder, check=True)


def tiny(experiment: Experiment) -> Experiment:
    """`experiment` at a tiny size. Raises pydantic's ValidationError for a misspelled override."""
    values = _merged(experiment.model_dump(mode="json"), OVERRIDES)
    values |= {"methods": METHODS, "studies": STUDIES, "sweeps": SWEEPS}
    for phase, num_steps in zip(values["base"]["phases"], NUM_STEPS, strict=True):
        phase["num_steps"] = num_steps
    return Experiment.model_validate(values)


def repro(folder: Path) -> str:
    """`merit plan` and `dvc repro` in `folder`; DVC's standard output. Raises MeritError where one
    fails.
    """
    run_in(folder, "merit", "plan")
    with fork_server(folder):
        return run_in(folder, "dvc", "repro")


def run_in(folder: Path, module: str, *arguments: str) -> str:
    """`python -m <module> <arguments>` with the code of `folder`; messages go to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        command = f"{module} {' '.join(arguments)}"
        raise MeritError(f"`{command}` in {folder} failed:\n{done.stdout}")
    return done.stdout


def check(folder: Path) -> None:
    """Raise MeritError where a model lacks a score, or the report a table, figure or page."""
    experiment, paths = load_experiment(NAME, folder / EXPERIMENTS_DIR), _paths(folder)
    scores = read_json(paths.evaluation / "scores.json")["scores"]
    benchmarks = set(experiment.evaluation.benchmarks)
    for model in plan(experiment).models:
        if set(scores.get(model, {})) != benchmarks:
            raise MeritError(f"{model}: scores for {sorted(scores.get(model, {}))} only")
    report = folder / "reports" / NAME
    expected = [report / f"table02{suffix}" for suffix in (".csv", ".md", ".tex")]
    expected += [report / "metrics.json", report / "claims.json", report / "claims.md"]
    expected += [folder / path for path in ("reports/README.md", "reports/index.html", "mlflow.db")]
    missing = [str(path) for path in expected if not path.is_file() or not path.stat().st_size]
    if missing:
        raise MeritError(f"the report lacks {', '.join(missing)}")
    stems = {path.stem for path in (report / "figures").glob("*.png")}
    if len(stems) < 6 or stems != {path.stem for path in (report / "figures").glob("*.pdf")}:
        raise MeritError(
            f"{report / 'figures'}: PNG and PDF of six figures expected, found {stems}"
        )


def check_unchanged(folder: Path) -> float:
    """Seconds of a `dvc repro` with nothing to do. Raises MeritError where it does anything."""
    before = results(folder)
    began = time.monotonic()
    output = repro(folder)
    seconds = time.monotonic() - began
    if results(folder) != before or "up to date" not in output:
        raise MeritError(f"a second `dvc repro` did something:\n{output}")
    return seconds


def results(folder: Path) -> dict[Path, int]:
    """Every file that the pipeline writes, and when it was; DVC's own bookkeeping is left out."""
    found = [p for part in ("artifacts", "reports") for p in (folder / part).rglob("*")]
    found += [folder / name for name in ("dvc.lock", "mlflow.db", "README.md")]
    found += (folder / EXPERIMENTS_DIR / NAME).iterdir()
    return {path: path.stat().st_mtime_ns for path in found if path.is_file()}


# --- small things -------------------------------------------------------------------------------


def _paths(folder: Path) -> Artifacts:
    return Artifacts(NAME, folder / "artifacts")


def _merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `overrides` in their place, block by block."""
    result = dict(values)
    for key, value in overrides.items():
        inner = result.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return result


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
