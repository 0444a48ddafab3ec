"""`python -m benchmarks.kills`: kill commands at random moments, and compare what they leave.

A small pipeline runs once undisturbed. Then the results of a stage, of `merit merge` or of `merit
track` are taken away again and again; the command that makes them is killed with SIGKILL while it
works: only the command, one of its processes, or all of them, half of the time once more within a
second. It is then typed again. Every artifact, table and page must be the same bytes as before, no
finished branch may have been trained again, and no process or unfinished folder be left over. The
result is reports/benchmarks/kills.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from merit.config import load_experiment
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, file_hash, read_json
from merit.io.checkpoints import save_tensors
from merit.run import smoke
from merit.run.stages import STAGES, Context
from merit.run.store import STORE, remove

VICTIMS = ("command", "one process", "all")
TIMES = ("timings", "mlruns", "tmp", STORE, ".work")  # differ from run to run
LOCK = ".lock"  # empty files that a killed process leaves; they lock nothing
QUICK = 1.0  # seconds after which a second kill follows the first
BRANCH = "merit-1d-s1-g0"
PAIR = {"CUDA_VISIBLE_DEVICES": "0,1"}  # no GPU is needed: two processes, over gloo
OUT = Path("reports/benchmarks/kills.md")
SMALLER: dict[str, Any] = {
    "data": {"num_examples": 200, "num_images": 60, "num_conversations": 60, "num_questions": 6},
    "gradients": {"num_examples": 1},
    "methods": {"soup-2": None, "random-2": None},
    "sweeps": {"regime": None},
    "report": {"curves": ["joint-1ep", "merit-1d"]},
    "studies": {"readiness": None},
}


@dataclass(frozen=True)
class Step:
    """A command, what is taken away before it, and whether it works by now."""

    name: str
    command: tuple[str, ...]
    kills: int  # of 40
    reset: Callable[[Path], None]
    working: Callable[[psutil.Process, Path, float], bool]
    environment: dict[str, str] = field(default_factory=dict)
    whole: str = ""  # what a command that was killed at its end has written, and refuses to again


def forgetting(*stages: str, only: str = "") -> Callable[[Path], None]:
    """Takes away the results of stages, or of one item, and what DVC and the store have of them."""

    def reset(folder: Path) -> None:
        with contextlib.chdir(folder):
            context = Context.of(load_experiment(smoke.NAME))
            for stage in stages:
                for item in STAGES[stage].items(context):
                    if only in ("", item.name):
                        item.remove()
                        remove(Path("artifacts", smoke.NAME, STORE, stage, item.name or "all"))
            shutil.rmtree(".dvc/cache", ignore_errors=True)

    return reset


def item_runs(process: psutil.Process, folder: Path, since: float) -> bool:
    """Whether the fork server has a child: an item is being made."""
    return any(
        "forkserver" in " ".join(p.cmdline()) and "forkserver" in " ".join(p.parent().cmdline())
        for p in process.children(recursive=True)
    )


def newer(pattern: str) -> Callable[[psutil.Process, Path, float], bool]:
    """Whether a file that matches has changed since the command began."""

    def working(process: psutil.Process, folder: Path, since: float) -> bool:
        return any(path.stat().st_mtime > since for path in folder.glob(pattern))

    return working


def no_mlflow(folder: Path) -> None:
    (folder / "mlflow.db").unlink(missing_ok=True)
    shutil.rmtree(folder / "mlruns", ignore_errors=True)


def steps() -> dict[str, Step]:
    """{name: step}, in the order in which they are taken: the pair's branch is another's bytes."""
    run = ("merit", "run", smoke.NAME)
    merge = ("merit", "merge", "--base", "big/base", "--branches", "big/a", "big/b", "--out")
    made = [stage.name for stage in STAGES.values() if stage.stored]
    only = ("train", "--only", BRANCH)
    found = [
        *(Step(name, (*run, name), 1, forgetting(name), item_runs) for name in STAGES),
        Step("all stages", run, 3, forgetting(*made), item_runs),
        Step("a branch", (*run, *only), 2, forgetting("train", only=BRANCH), item_runs),
        Step("dvc repro", ("dvc", "repro"), 6, forgetting("base", "train"), item_runs),
        Step(
            "merit merge",
            (*merge, "merged"),
            6,
            lambda folder: shutil.rmtree(folder / "merged", ignore_errors=True),
            newer(".merged.*"),
            whole="merged",
        ),
        Step("merit track", ("merit", "track", "--strict"), 5, no_mlflow, newer("mlflow.db")),
        Step(
            "a branch on two processes",
            (*run, *only),
            5,
            forgetting("train", only=BRANCH),
            item_runs,
            PAIR,
        ),
    ]
    return {step.name: step for step in found}


# --- what is left ---------------------------------------------------------------------------------


def results(folder: Path) -> dict[str, Any]:
    """{file: SHA-256} of all artifacts, reports and merged models; what MLflow shows."""
    tops = [folder / "artifacts", folder / "reports", *folder.glob("*merged*")]
    files = [path for top in tops for path in top.rglob("*") if path.is_file()]
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in files
        if path.suffix != LOCK and not set(path.relative_to(folder).parts) & set(TIMES)
    }
    return found | {f"MLflow {key}": shown for key, shown in tracked(folder).items()}


def tracked(folder: Path) -> dict[str, Any]:
    """{key of a run: parameters, last metrics, status}."""
    if not (folder / "mlflow.db").is_file():
        return {}
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        runs = database.execute(
            "SELECT runs.run_uuid, value, status FROM runs JOIN tags USING (run_uuid) "
            "WHERE key = 'merit.key' AND lifecycle_stage = 'active'"
        ).fetchall()

        def pairs(table: str, run: str) -> list[Any]:
            rows = f"SELECT key, value FROM {table} WHERE run_uuid = ? ORDER BY key"
            return database.execute(rows, (run,)).fetchall()

        return {
            key: (status, pairs("params", run), pairs("latest_metrics", run))
            for run, key, status in runs
        }


def finished(folder: Path) -> dict[str, int]:
    """{trained branch: when its weights were written}, of those in the store."""
    store = Artifacts(smoke.NAME, folder / "artifacts").folder / STORE / "train"
    return {
        path.relative_to(store).as_posix(): path.stat().st_mtime_ns
        for path in store.rglob("model.safetensors")
    }


def left_over(folder: Path, wait: float = 20.0) -> list[str]:
    """The commands that still run in `folder` after `wait` seconds."""
    end = time.monotonic() + wait
    while found := [
        p for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == str(folder)
    ]:
        if time.monotonic() > end:
            return [" ".join(p.info["cmdline"] or [])[:120] for p in found]
        time.sleep(0.1)
    return []


# --- kills ----------------------------------------------------------------------------------------


def start(folder: Path, step: Step) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = os.pathsep.join([str(smoke.ROOT), os.environ.get("PYTHONPATH", "")])
    if step.whole and (folder / step.whole).exists():
        step.reset(folder)
    environment = os.environ | {"PATH": path, "PYTHONPATH": code} | step.environment
    with (folder / "tmp.log").open("ab") as log:
        return subprocess.Popen(step.command, cwd=folder, env=environment, stdout=log, stderr=log)


def wait_for_work(folder: Path, step: Step, process: subprocess.Popen[bytes], since: float) -> None:
    """Return once the command works, or has ended."""
    while process.poll() is None:
        with contextlib.suppress(psutil.Error, AttributeError, FileNotFoundError):
            if step.working(psutil.Process(process.pid), folder, since):
                return
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes], victim: str, rng: random.Random) -> bool:
    """SIGKILL the victim; False if there is none of its kind."""
    if process.poll() is not None:
        return False
    command = psutil.Process(process.pid)
    children = command.children(recursive=True)
    victims = {
        "command": [command],
        "one process": rng.sample(children, 1) if children else [],
        "all": [*children, command],
    }[victim]
    for found in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()
    return bool(victims)


def finish(folder: Path, step: Step, process: subprocess.Popen[bytes], killed: bool) -> None:
    """Wait for the end. Raises MeritError if it fails or hangs, or leaves a process."""
    log = folder / "tmp.log"
    try:
        code = process.wait(900)
    except subprocess.TimeoutExpired:
        raise MeritError(f"{step.name} does not end: {log}") from None
    if found := left_over(folder):
        raise MeritError(f"left over after {step.name}: {found}")
    if code and not killed:
        raise MeritError(f"{step.name} ended with {code}, and nothing was killed: {log}")


def undisturbed(folder: Path, step: Step) -> float:
    """For how many seconds the step works."""
    step.reset(folder)
    since = time.time()
    process = start(folder, step)
    wait_for_work(folder, step, process, since)
    began = time.monotonic()
    finish(folder, step, process, killed=False)
    return time.monotonic() - began


def disturb(
    folder: Path, step: Step, num_kills: int, seconds: float, rng: random.Random
) -> Counter[str]:
    """Run a step to its end with `num_kills` kills. Returns {step, victim: kills}.

    Raises MeritError if a process is left over, a finished branch is trained again, or the command
    fails without having been killed.
    """
    kills: Counter[str] = Counter()
    step.reset(folder)
    while True:
        before, since = finished(folder), time.time()
        process = start(folder, step)
        killed = False
        if kills.total() < num_kills:
            wait_for_work(folder, step, process, since)
            time.sleep(rng.uniform(0, seconds))
            for again in (False, True):
                hit = kill(process, victim := rng.choice(VICTIMS), rng)
                killed |= hit
                kills[f"{step.name} | {victim}"] += hit
                if again or not hit or rng.random() < 0.5 or kills.total() >= num_kills:
                    break
                if victim != "one process":  # which the command may survive
                    process.wait()
                    process, killed = start(folder, step), False
                time.sleep(rng.uniform(0, QUICK))
        finish(folder, step, process, killed)
        after = finished(folder)
        if lost := [branch for branch, when in before.items() if after.get(branch) != when]:
            raise MeritError(f"{step.name}: trained again: {lost}")
        if not killed and kills.total() >= num_kills:
            return kills
        if process.returncode == 0:  # before the kill, or in spite of it
            step.reset(folder)


def disturbed(folder: Path, names: Sequence[str], rng: random.Random) -> Counter[str]:
    """Kill the named steps, each as often as it is named; what `folder` holds is undisturbed.

    Returns {step, victim: kills}. Raises MeritError if results are not the same bytes.
    """
    kills: Counter[str] = Counter()
    for name, step in steps().items():
        if name not in names:
            continue
        seconds = work_seconds(folder, name) or undisturbed(folder, step)
        expected = results(folder)
        kills += disturb(folder, step, names.count(name), seconds, rng)
        found = results(folder)
        if differing := sorted(n for n in expected | found if expected.get(n) != found.get(n)):
            raise MeritError(f"{name}: {len(differing)} files differ in {folder}: {differing[:5]}")
        print(f"{name}: {names.count(name)} kills within {seconds:.1f} s", flush=True)
    return kills


def work_seconds(folder: Path, stage: str) -> float:
    """How long the items of a stage took, one after the other; 0 if it is none."""
    timings = Artifacts(smoke.NAME, folder / "artifacts").folder / "timings"
    files = [*timings.glob(f"{stage}.json"), *timings.glob(f"{stage}-*.json")]
    return sum(read_json(file)["seconds"] for file in files if stage in STAGES)


def large_branches(folder: Path) -> None:
    """A base and two branches whose merge takes a second."""
    for shift, name in enumerate(("base", "a", "b")):
        (folder / "big" / name).mkdir(parents=True)
        rows = {f"layer.{i}": torch.full((1024, 4096), float(shift + i)) for i in range(8)}
        save_tensors(rows, folder / "big" / name / "model.safetensors")


def prepare(folder: Path) -> None:
    """The pipeline, smaller than that of `merit smoke`, run once undisturbed."""
    smoke.prepare(folder)
    place = folder / "experiments" / f"{smoke.NAME}.yaml"
    settings = yaml.safe_load(place.read_text(encoding="utf-8"))
    for key, values in SMALLER.items():
        settings[key] = settings[key] | values
    for phase in settings["base"]["phases"]:
        phase["num_steps"] //= 3
    place.write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "params.yaml").write_text(f"{smoke.PARAMS}launch: {{gpus_per_branch: 2}}\n")
    smoke.run_in(folder, "merit", "run", smoke.NAME)
    large_branches(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.kills")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", nargs="+", default=list(steps()), help="default: all")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    slots = [
        name for name, step in steps().items() if name in args.steps for _ in range(step.kills)
    ]
    rng.shuffle(slots)
    names = [slots[i % len(slots)] for i in range(args.kills)]
    folder = Path(tempfile.mkdtemp(prefix="merit-kills-")).resolve()
    prepare(folder)
    kills = disturbed(folder, names, rng)
    rows = "\n".join(f"| {where} | {count} |" for where, count in kills.items() if count)
    OUT.write_text(
        "# Killed and run again\n\n"
        f"`python -m benchmarks.kills --kills {args.kills} --seed {args.seed}`: commands of a "
        "small pipeline, killed with SIGKILL at random moments while they work, and typed again.\n"
        f"All {len(results(folder))} artifacts, tables, pages, models and runs of MLflow are the "
        "same as undisturbed; no finished branch was trained again, no process was left over.\n\n"
        f"| command | killed | times |\n|---|---|---:|\n{rows}\n",
        encoding="utf-8",
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    try:
        main()
    except MeritError as error:
        sys.exit(f"kills: {error}")
