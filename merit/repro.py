"""`make repro`: what `dvc repro` does, with independent stages side by side.

DVC runs one stage at a time; but it holds its lock only while it looks and records, so several
`dvc repro --single-item` may run at once. Every experiment goes its own way, in waves: all up to
the partition, its runs (a run is its branches, the models averaged from them and their answers),
models made of models, scores, studies, report. A chunk is what one process of DVC runs in order;
`workers` of them run side by side. One progress line a chunk: its last stage, done/all, time left.
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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from merit.config import Experiment, load_params
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.plan import PIPELINE, folder_of, plan_rows, planned_experiments, write_plan

# Every kind of stage and about how long one takes at mini scale, in seconds: what the estimate of
# the time left goes by.
COSTS = {
    **{"settings": 1, "data": 20, "base": 200, "encode": 8, "gradients": 15, "partition": 3},
    **{"train": 5, "merge": 2, "prompts": 12, "evaluate": 5, "score": 15, "study": 60},
    **{"report": 20, "index": 5, "track": 15},
}
FIRST = ["settings", "data", "base", "encode", "gradients", "partition", "prompts"]
LAST = ["index", "track"]  # over all experiments
STUDIES = 4  # their wave
RAN = re.compile(r"^Running stage '(.+)':")
# what DVC says at length when it has nothing to say
NOISE = (
    *("didn't change, skipping", "To track the changes", "git add", "To enable auto staging"),
    *("core.autostage", "Use `dvc push`", "Updating lock file", "Generating lock file"),
    "Data and pipelines are up to date",
)
Chunk = list[str]  # stages of one process of DVC, in their order


def repro() -> None:
    """Bring every result up to date. Raises MeritError where a stage fails; the rest is kept."""
    began = time.monotonic()
    for path in write_plan():
        print(f"{path} was renewed", flush=True)
    params = load_params()
    changed = stale([])
    if not changed:
        print(f"Everything is up to date ({time.monotonic() - began:.1f} s).")
        return
    planned = planned_experiments(params)
    flows = {part.name: waves(plan_rows(part, params.level)) for part in planned}
    progress = _Progress([*(stage for flow in flows.values() for stage in stages(flow)), *LAST])
    with (
        fork_server(),
        ThreadPoolExecutor(params.workers) as slots,
        ThreadPoolExecutor(len(flows)) as threads,
    ):
        run, ends = _Runner(slots, progress, changed), []
        for name in params.experiments:
            own, *parts = (flow for x, flow in flows.items() if x.partition("-")[0] == name)
            names = [stage for flow in (own, *parts) for stage in stages(flow)]
            if changed.isdisjoint(names):  # no experiment changes another
                progress.skip(names)
                continue
            before = [threads.submit(run.flow, part) for part in parts]
            ends.append(threads.submit(run.flow, own, before))
        for end in ends:
            end.result()
        run.wave([LAST])
    print(summary(planned))
    print(f"Everything is up to date ({clock(time.monotonic() - began)}).")


def waves(rows: Mapping[str, Any]) -> list[list[Chunk]]:
    """The stages of an experiment, or of its part that starts from another base: wave after wave
    of chunks that need nothing of each other.

    Args: rows: what pipeline.yaml reads of it (merit.plan.plan_rows).
    """
    runs: dict[str, list[str]] = defaultdict(list)  # by what their models are merged from
    for key, row in rows["branches"].items():
        runs[f"branches/{row['run']}"].append(f"train@{key}")
    for kind in ("merge", "evaluate"):
        for key, row in rows["models"].items():
            runs[row["from"]].append(f"{kind}@{key}")
    derived = [chunk for origin, chunk in runs.items() if origin.startswith("models/")]
    flow: list[Sequence[Chunk]] = [
        [FIRST],
        [chunk for chunk in runs.values() if chunk not in derived],
        derived,
        [["score"]],
        [[f"study@{key}"] for key in rows["studies"]],
        [[f"report@{key}"] for key in rows["reports"]],
    ]
    pipeline = folder_of(rows["x"]) / PIPELINE
    return [[[f"{pipeline}:{stage}" for stage in chunk] for chunk in wave] for wave in flow]


def stages(flow: Sequence[Sequence[Chunk]]) -> list[str]:
    return [stage for wave in flow for chunk in wave for stage in chunk]


def summary(experiments: Sequence[Experiment]) -> str:
    """Time and memory of every kind of stage, as they were when each stage last ran here."""
    files = [p for e in experiments for p in (Artifacts(e.name).folder / "timings").glob("*.json")]
    if not files:
        return "No stage ran here: every result came from DVC's cache."
    frame = pd.DataFrame([read_json(path) for path in files])
    frame["stage"] = frame["stage"].str.partition("-")[0]
    table = frame.groupby("stage").agg(
        stages=("seconds", "size"), seconds=("seconds", "sum"), peak_mb=("peak_memory_mb", "max")
    )
    kinds = [kind for kind in COSTS if kind in table.index]
    return table.loc[kinds].to_markdown(floatfmt=".0f")


def stale(targets: Sequence[str]) -> set[str]:
    """The stages that DVC finds changed, of these targets (all by default)."""
    result = subprocess.run(
        [*dvc(), "--wait-for-lock", "status", "--json", *targets],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if result.returncode:
        raise MeritError(f"`dvc status` failed:\n{result.stderr.strip()}")
    return set(json.loads(result.stdout))


class _Runner:
    """Chunks in processes of DVC, as many side by side as there are `slots`."""

    def __init__(self, slots: ThreadPoolExecutor, progress: _Progress, changed: set[str]) -> None:
        self.slots, self.progress = slots, progress
        self.changed = changed  # what DVC found at the start
        self.failed = threading.Event()

    def flow(self, flow: Sequence[Sequence[Chunk]], parts: Sequence[Future[None]] = ()) -> None:
        """Wave after wave; studies wait for the experiment's parts, whose scores one of them reads.

        Where not all of a wave was to be run from the start, DVC is asked what is now.
        """
        for number, wave in enumerate(flow):
            for part in parts if number == STUDIES else ():
                part.result()
            todo = wave
            if len(wave) > 1 and not self.changed.issuperset(stages([wave])):
                now = stale(sorted({stage.partition("@")[0] for stage in stages([wave])}))
                todo = [chunk for chunk in wave if not now.isdisjoint(chunk)]
                self.progress.skip(stages([[chunk for chunk in wave if chunk not in todo]]))
            self.wave(todo)

    def wave(self, chunks: Sequence[Chunk]) -> None:
        """Raises MeritError where a stage failed, here or beside; no further chunk starts then."""
        list(self.slots.map(self._chunk, chunks))
        if self.failed.is_set():
            raise MeritError("a stage failed; the lines above say which and why")

    def _chunk(self, chunk: Chunk) -> None:
        if not self.failed.is_set() and not _dvc_repro(chunk):
            self.failed.set()
        self.progress.show(chunk)


def _dvc_repro(chunk: Chunk) -> bool:
    """Whether it succeeded. The stages' own lines are passed on, DVC's chatter is not."""
    command = [*dvc(), "--wait-for-lock", "repro", "--single-item", *chunk]
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

    def __init__(self, names: Sequence[str]) -> None:
        self.total, self.done = len(names), 0
        self.cost_left, self.cost_run = sum(map(_cost, names)), 0
        self.began = time.monotonic()
        self.lock = threading.Lock()

    def skip(self, names: Sequence[str]) -> None:
        """They need not run."""
        with self.lock:
            self._count(names)

    def show(self, names: Sequence[str]) -> None:
        with self.lock:
            self._count(names)
            self.cost_run += sum(map(_cost, names))
            seconds = time.monotonic() - self.began
            left = seconds / self.cost_run * self.cost_left
            line = f"{_label(names[-1])}: {self.done}/{self.total} stages, {clock(seconds)}"
            print(f"{line}, about {clock(left)} left" if left else line, flush=True)

    def _count(self, names: Sequence[str]) -> None:
        self.done += len(names)
        self.cost_left -= sum(map(_cost, names))


def _label(stage: str) -> str:
    """experiments/mini_vision/dvc.yaml:score -> "mini_vision: score"."""
    pipeline, _, name = stage.rpartition(":")
    return f"{Path(pipeline).parent.name}: {name}" if pipeline else name


def _cost(stage: str) -> int:
    return COSTS[stage.rpartition(":")[2].partition("@")[0]]


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
