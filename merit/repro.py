"""`make repro`: what `dvc repro` does, with independent stages side by side.

DVC runs one stage at a time; but it holds its lock only while it looks and records, so several
`dvc repro --single-item` may run at once. Every experiment goes its own way, in waves: all up to
the partition, its runs (a run is its branches, the models averaged from them and their answers),
models made of models, scores, studies, report. A chunk is what one process of DVC runs in order;
`workers` of them run side by side, with GPUs of their own where there are any. One progress line a
chunk: its last stage, done/all, time left.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pandas as pd

from merit.choice import chosen, put_in, take_out
from merit.config import PARAMS_FILE, REHEARSAL, Experiment, Params, load_params
from merit.dvc_processes import Chunk, Places, dvc_repro, experiment_of, fork_server, stale
from merit.errors import MeritError
from merit.io.artifacts import REPORTS_DIR, Artifacts, read_json
from merit.launch.local import make_slots, visible_gpus
from merit.plan import PIPELINE, folder_of, plan_rows, with_parts, write_plan
from merit.run.access import uses_hub

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


def repro(names: Sequence[str] = (), rehearse: bool = False) -> None:
    """Bring every result up to date, or those of some experiments, which params.yaml then names.

    A rehearsal is named there while it runs, and no longer when it has ended well. Raises
    MeritError where a stage fails; the rest is kept.
    """
    began = time.monotonic()
    if rehearse and not names:
        raise MeritError("repro: name what is to be rehearsed, as in `merit repro NAME --rehearse`")
    wanted = chosen(names, rehearse)
    for name in put_in(wanted):
        print(f"{PARAMS_FILE}: {name} is among its `experiments` from now on", flush=True)
    for path in write_plan():
        print(f"{path} was renewed", flush=True)
    params = load_params()
    run_all(params, wanted or params.experiments, not names)
    if done := [name for name in wanted if is_rehearsal(name)]:
        take_out(done)
        write_plan()
        print(f"Rehearsed: {', '.join(done)}; {PARAMS_FILE} names it no longer.")
    print(f"Everything is up to date ({clock(time.monotonic() - began)}).")


def run_all(params: Params, names: Sequence[str], everything: bool) -> None:
    """The stages of these experiments that DVC finds changed, then what is over all of them."""
    parts = {name: with_parts(name) for name in names}
    planned = [part for those in parts.values() for part in those]
    pipelines = [str(folder_of(part.name) / PIPELINE) for part in planned]
    changed = stale([] if everything else pipelines)
    if not changed:
        return
    flows = {part.name: waves(plan_rows(part)) for part in planned}
    progress = _Progress([*(stage for flow in flows.values() for stage in stages(flow)), *LAST])
    alone = {part.name for part in planned if uses_hub(part)}
    slots = make_slots(params.launch, visible_gpus(), params.workers)[: params.workers]
    on_gpu = {part.name for part in planned if slots[0] and part.model.device != "cpu"}
    server = fork_server() if alone != flows.keys() else nullcontext()
    with (
        server,
        ThreadPoolExecutor(params.workers) as pool,
        ThreadPoolExecutor(len(flows)) as threads,
    ):
        run, ends = _Runner(pool, progress, changed, Places(slots, on_gpu, alone)), []
        for own, *others in parts.values():
            names_of = [stage for part in (own, *others) for stage in stages(flows[part.name])]
            if changed.isdisjoint(names_of):  # no experiment changes another
                progress.skip(names_of)
                continue
            before = [threads.submit(run.flow, flows[part.name]) for part in others]
            ends.append(threads.submit(run.flow, flows[own.name], before))
        for end in ends:
            end.result()
        run.wave([LAST if everything else last_of(params, names)])
    print(summary(planned))


def last_of(params: Params, names: Sequence[str]) -> Chunk:
    """What is over all experiments, after some of them: the pages need every report there is to be,
    and say nothing of a rehearsal.
    """
    if any(map(is_rehearsal, names)):
        return []
    reports = {
        name: Artifacts(name).root / f"{REPORTS_DIR / name}.json" for name in params.experiments
    }
    absent = [name for name, path in reports.items() if not path.is_file()]
    if absent:
        print(f"The pages over all experiments wait for {', '.join(absent)} (`make repro`).")
    return [stage for stage in LAST if stage != "index" or not absent]


def is_rehearsal(name: str) -> bool:
    return name.endswith(REHEARSAL)


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


class _Runner:
    """Chunks in processes of DVC, as many side by side as there are `slots`."""

    def __init__(
        self, slots: ThreadPoolExecutor, progress: _Progress, changed: set[str], places: Places
    ) -> None:
        self.slots, self.progress, self.places = slots, progress, places
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
        if not chunk:
            return
        with self.places.place(chunk) as variables:
            if not self.failed.is_set() and not dvc_repro(chunk, variables):
                self.failed.set()
        self.progress.show(chunk)


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
    x, name = experiment_of(stage), stage.rpartition(":")[2]
    return f"{x}: {name}" if x else name


def _cost(stage: str) -> int:
    return COSTS[stage.rpartition(":")[2].partition("@")[0]]


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
