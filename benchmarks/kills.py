"""`python -m benchmarks.kills`: kill the pipeline at random moments, and compare what it leaves.

The tiny pipeline of `merit smoke` runs once undisturbed. In a second folder the same commands are
killed with SIGKILL again and again, each time only the command, one of its workers, or all of
them, and typed once more. At the end every artifact, table and page must be the same bytes, no
finished branch may have been trained again, and no process may be left over. The result is
reports/benchmarks/kills.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from merit.errors import MeritError
from merit.io.artifacts import Artifacts, file_hash
from merit.run import smoke
from merit.run.stages import STAGES

VICTIMS = ("command", "worker", "all")
COMMANDS = {
    "merit run": ("merit", "run", smoke.NAME, *(s for s in STAGES if STAGES[s].stored)),
    "dvc repro": ("dvc", "repro"),
}
TIMES = ("timings", "mlruns", "tmp", ".git", ".store", ".work")  # differ from run to run
OUT = Path("reports/benchmarks/kills.md")


def results(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of all artifacts and reports."""
    files = [p for top in ("artifacts", "reports") for p in (folder / top).rglob("*")]
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in files
        if path.is_file() and not set(path.relative_to(folder).parts) & set(TIMES)
    }


def finished(folder: Path) -> dict[str, int]:
    """{trained branch: when its weights were written}, of those in the store."""
    store = Artifacts(smoke.NAME, folder / "artifacts").folder / ".store" / "train"
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
        time.sleep(0.2)
    return []


def kill(process: subprocess.Popen[bytes], victim: str, rng: random.Random) -> bool:
    """SIGKILL the victim; False if there is none of its kind."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    victims = {
        "command": [psutil.Process(process.pid)],
        "worker": rng.sample(children, 1) if children else [],
        "all": [*children, psutil.Process(process.pid)],
    }[victim]
    for found in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.kill()
    return bool(victims)


def start(folder: Path, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = os.pathsep.join([str(smoke.ROOT), os.environ.get("PYTHONPATH", "")])
    log = (folder / "tmp.log").open("ab")
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PATH": path, "PYTHONPATH": code},
        stdout=log, stderr=log,
    )  # fmt: skip


def disturbed(folder: Path, num_kills: int, longest: float, rng: random.Random) -> Counter[str]:
    """Run both commands to their end with `num_kills` kills. Returns {command, victim: kills}.

    Raises MeritError if a process is left over, a finished branch is trained again, or a command
    fails without having been killed.
    """
    kills: Counter[str] = Counter()
    for name, command in COMMANDS.items():
        share = num_kills if name == "dvc repro" else num_kills // 2
        while True:
            before = finished(folder)
            process = start(folder, command)
            killed = False
            if kills.total() < share:
                try:
                    process.wait(rng.uniform(0.5, longest))
                except subprocess.TimeoutExpired:
                    victim = rng.choice(VICTIMS)
                    killed = kill(process, victim, rng)
                    kills[f"{name} | {victim}"] += killed
            code = process.wait()
            if found := left_over(folder):
                raise MeritError(f"left over after {name}: {found}")
            after = finished(folder)
            if again := [branch for branch, when in before.items() if after.get(branch) != when]:
                raise MeritError(f"trained again: {again}")
            print(f"{kills.total()} kills, {name}: exit {code}, {len(after)} branches", flush=True)
            if code == 0 and not killed:
                break
            if code and not killed:
                log = folder / "tmp.log"
                raise MeritError(f"{name} ended with {code}, and nothing was killed: {log}")
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.kills")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds until a kill")
    args = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="merit-kills-")).resolve()
    for name in ("undisturbed", "killed"):
        (top / name).mkdir()
        smoke.prepare(top / name)
    for command in COMMANDS.values():
        smoke.run_in(top / "undisturbed", *command)
    kills = disturbed(top / "killed", args.kills, args.longest, random.Random(args.seed))
    one, other = results(top / "undisturbed"), results(top / "killed")
    differing = sorted(name for name in one | other if one.get(name) != other.get(name))
    if differing:
        raise MeritError(f"{len(differing)} of {len(one)} files differ in {top}: {differing[:5]}")
    rows = "\n".join(f"| {where} | {count} |" for where, count in sorted(kills.items()))
    OUT.write_text(
        "# Killed and run again\n\n"
        f"`python -m benchmarks.kills --kills {args.kills} --seed {args.seed} "
        f"--longest {args.longest:g}`: the tiny pipeline, "
        "killed with SIGKILL at random moments and typed again.\n"
        f"{len(one)} of {len(one)} artifacts, tables and pages are the same bytes as undisturbed; "
        "no finished branch was trained again, no process was left over.\n\n"
        f"| command | killed | times |\n|---|---|---:|\n{rows}\n",
        encoding="utf-8",
    )
    shutil.rmtree(top)


if __name__ == "__main__":
    try:
        main()
    except MeritError as error:
        sys.exit(f"kills: {error}")
