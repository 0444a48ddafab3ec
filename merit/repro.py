"""`make repro`: what `dvc repro` does, with independent stages side by side.

DVC runs one stage at a time; but it holds its lock only while it looks and records, so several
`dvc repro --single-item` may run at once. Kind by kind, since a kind needs the ones before it. One
progress line a chunk of stages: kind, done/all, time, time left.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from merit.config import Experiment, load_params
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.plan import plan_rows, planned_experiments, write_plan

# In the order of the flow: kind of stage -> the plan's list that it loops over ("" for a single
# stage), and about how long one takes at mini scale, which only the estimate of the time left uses.
KINDS = {
    "settings": ("setups", 1),
    "data": ("setups", 20),
    "base": ("setups", 200),
    "encode": ("setups", 8),
    "gradients": ("setups", 15),
    "partition": ("setups", 3),
    "train": ("branches", 5),
    "merge": ("models", 2),
    "prompts": ("setups", 12),
    "evaluate": ("models", 5),
    "score": ("setups", 15),
    "study": ("studies", 60),
    "report": ("reports", 20),
    "index": ("", 5),
    "track": ("", 15),
}
CHUNK = 8  # stages a `dvc` process: it reads the pipeline once for all of them
RAN = re.compile(r"^Running stage '(.+)':")
# what DVC says at length when it has nothing to say
NOISE = (
    *("didn't change, skipping", "To track the changes", "git add", "To enable auto staging"),
    *("core.autostage", "Use `dvc push`", "Updating lock file", "Generating lock file"),
    "Data and pipelines are up to date",
)


def repro() -> None:
    """Bring every result up to date. Raises MeritError where a stage fails; the rest is kept."""
    began = time.monotonic()
    if write_plan():
        print("experiments/plan.yaml was renewed", flush=True)
    params = load_params()
    planned = planned_experiments(params)
    rows = plan_rows(params, planned)
    stages = {
        kind: [f"{kind}@{key}" for key in rows[loop]] if loop else [kind]
        for kind, (loop, _) in KINDS.items()
    }
    derived = [key for key, row in rows["models"].items() if row["from"].startswith("models/")]
    if not stale([]):
        print(f"Everything is up to date ({time.monotonic() - began:.1f} s).")
        return
    progress = _Progress({kind: len(names) for kind, names in stages.items()})
    with fork_server():
        for kind, names in stages.items():
            todo = names if len(names) <= 2 * CHUNK else stale([kind])
            progress.skip(kind, len(names) - len(todo))
            # a model that is made of other models waits for them
            later = {f"merge@{key}" for key in derived} if kind == "merge" else set()
            for part in (set(todo) - later, set(todo) & later):
                run(kind, sorted(part, key=names.index), params.workers, progress)
    print(summary(planned))
    print(f"Everything is up to date ({clock(time.monotonic() - began)}).")


def summary(experiments: Sequence[Experiment]) -> str:
    """Time and memory of every kind of stage, as they were when each stage last ran here."""
    files = [p for e in experiments for p in (Artifacts(e.name).folder / "timings").glob("*.json")]
    frame = pd.DataFrame([read_json(path) for path in files])
    frame["stage"] = frame["stage"].str.partition("-")[0]
    table = frame.groupby("stage").agg(
        stages=("seconds", "size"), seconds=("seconds", "sum"), peak_mb=("peak_memory_mb", "max")
    )
    kinds = [kind for kind in KINDS if kind in table.index]
    return table.loc[kinds].to_markdown(floatfmt=".0f")


def stale(targets: Sequence[str]) -> list[str]:
    """The stages that DVC finds changed, of these targets (all by default)."""
    result = subprocess.run(
        [*dvc(), "status", "--json", *targets],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if result.returncode:
        raise MeritError(f"`dvc status` failed:\n{result.stderr.strip()}")
    return list(json.loads(result.stdout))


def run(kind: str, names: Sequence[str], workers: int, progress: _Progress) -> None:
    """`dvc repro --single-item` of the stages, `workers` processes side by side.

    After a failure no further chunk starts; then MeritError.
    """
    size = max(1, min(CHUNK, -(-len(names) // (4 * workers))))
    chunks = [names[i : i + size] for i in range(0, len(names), size)]
    failed = threading.Event()

    def one(chunk: Sequence[str]) -> None:
        if not failed.is_set() and not _dvc_repro(chunk):
            failed.set()
        progress.show(kind, len(chunk))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, chunks))
    if failed.is_set():
        raise MeritError(f"a stage of kind `{kind}` failed; the lines above say which and why")


def _dvc_repro(names: Sequence[str]) -> bool:
    """Whether it succeeded. The stages' own lines are passed on, DVC's chatter is not."""
    command = [*dvc(), "--wait-for-lock", "repro", "--single-item", *names]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            chatter = line.startswith("> ") or any(words in line for words in NOISE)
            if line.strip() and not chatter and not RAN.match(line):
                print(line, end="", flush=True)
    return process.returncode == 0


def dvc() -> list[str]:
    return [sys.executable, "-m", "dvc"]


def environment() -> dict[str, str]:
    """This process's, with its own Python first on the path and no telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}


@contextmanager
def fork_server(code: Path = Path()) -> Iterator[None]:
    """A process with torch loaded, which the stages are forked from while the block runs.

    Args: code: the repository whose code it loads.
    """
    with tempfile.TemporaryDirectory(prefix="merit-") as folder:
        path = str(Path(folder) / "socket")
        command = "import sys; from merit.forkserver import serve; serve(sys.argv[1])"
        process = subprocess.Popen([sys.executable, "-c", command, path], cwd=code)
        os.environ["MERIT_FORK"] = path
        try:
            yield
        finally:
            del os.environ["MERIT_FORK"]
            process.terminate()
            process.wait()


class _Progress:
    """A line after every chunk: stages done of all, time taken, time left by the kinds' costs."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.total, self.done = sum(counts.values()), 0
        self.cost_left = sum(KINDS[kind][1] * count for kind, count in counts.items())
        self.cost_run = 0
        self.began = time.monotonic()
        self.lock = threading.Lock()

    def skip(self, kind: str, count: int) -> None:
        """`count` stages need not run."""
        self.done += count
        self.cost_left -= KINDS[kind][1] * count

    def show(self, kind: str, count: int) -> None:
        with self.lock:
            self.skip(kind, count)
            self.cost_run += KINDS[kind][1] * count
            seconds = time.monotonic() - self.began
            left = seconds / self.cost_run * self.cost_left
            line = f"{kind}: {self.done}/{self.total} stages, {clock(seconds)}"
            print(f"{line}, about {clock(left)} left" if left else line, flush=True)


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
