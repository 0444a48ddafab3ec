"""The executor of the pipeline: `merit run`, `merit status`, and what both need.

Each stage runs the items whose results are not those of their present key, side by side, and keeps
the others. DVC calls it once per stage; without DVC and git one call runs all stages.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from merit.check.access import needs_hub, uses_hub
from merit.config import Experiment, Launch, Params, load_experiment, load_params
from merit.config.settings import nearest
from merit.errors import STOPPING, MeritError
from merit.io.artifacts import Artifacts, read_json, value_hash, work_place, write_json
from merit.io.locks import exclusive
from merit.io.machine import differences, visible_gpus
from merit.io.progress import clock, write_timing
from merit.run.keys import code_hash
from merit.run.pool import Pool, Task, describe_slots, end_with_parent, gpu_slots, run_stage
from merit.run.preflight import check_base, check_place, check_tasks
from merit.run.slurm import ON_NODE, train_branches
from merit.run.stages import STAGES, Context, Stage, own_files
from merit.run.store import Item, Key, NotReady

SETTINGS_DIR = Path("experiments/settings")
# takes seconds to import, which every model's process would
LM_EVAL = ("lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.tasks")
OVER_ALL = {"index": "merit.eval.stages.index", "track": "merit.track"}


def run(
    names: Sequence[str], stages: Sequence[str] = (), only: Sequence[str] = (), dry: bool = False
) -> None:
    """Bring experiments up to date, or some stages of them, or only some items.

    Raises MeritError that names what failed; everything else is finished first.
    """
    params = load_params()
    experiments = [load(name) for name in names]
    if not stages:
        say_differences()
    if not dry and (not stages or visible_gpus()):
        print(f"merit: {describe_slots(gpu_slots(params))}", file=sys.stderr)
    if ON_NODE in os.environ:  # a job trains its branch itself, on all GPUs that it was given
        launch = Launch(gpus_per_branch=params.launch.gpus_per_branch)
        params = params.model_copy(update={"launch": launch})
    for experiment in experiments:
        executor = Executor(experiment, params)
        wanted = list(stages or STAGES)
        check_items(executor.context, wanted, only)
        if dry:
            executor.describe(wanted, only)
        else:
            executor.run(wanted, only)
            if not stages:
                made = executor.context.paths
                page = made.report / "README.md"
                print(f"{experiment.name}: {made.folder / 'models'}, {page}", flush=True)


def load(name: str) -> Experiment:
    """The experiment with its studies' settings checked, too."""
    from merit.eval.studies import settings_of

    experiment = load_experiment(name)
    settings_of(experiment)
    return experiment


def check_items(context: Context, stages: Sequence[str], only: Sequence[str]) -> None:
    """Raises MeritError for a stage or an item that there is not."""
    for name in stages:
        if name not in STAGES:
            raise MeritError(f"run: no stage is called {name!r}.{nearest(name, list(STAGES))}")
    if only and len(stages) != 1:
        raise MeritError("run: `--only` needs a stage, as in `merit run NAME train --only BRANCH`")
    known = STAGES[stages[0]].names(context)
    for item in only:
        if item not in known:
            hint = nearest(item, known) if known != [""] else " It has no items."
            raise MeritError(f"run: {context.experiment.name} {stages[0]} has no {item!r}.{hint}")


class Executor:
    """One experiment, its context, and the processes that its stages share."""

    def __init__(self, experiment: Experiment, params: Params) -> None:
        self.experiment, self.params = experiment, params
        self.name, self.context = experiment.name, Context.of(experiment)
        self._pool: Pool | None = None

    def pool(self, stages: Sequence[str]) -> Pool:
        from merit.eval.benchmarks import engine_of

        if self._pool is None:
            ahead: list[str] = []
            # whether the hub may be asked is read once, when its client is imported
            if not uses_hub(self.experiment):
                ahead = [module for stage in stages for module in STAGES[stage].preload]
                names = self.experiment.evaluation.benchmarks
                if "evaluate" in stages and names and engine_of(names) == "lm_eval":
                    ahead += LM_EVAL
            self._pool = Pool(gpu_slots(self.params), list(dict.fromkeys(ahead)))
        return self._pool

    def run(self, stages: Sequence[str], only: Sequence[str] = ()) -> None:
        """Run the stages in order. Items that need a failed one are left out."""
        failures: dict[str, str] = {}
        waiting: dict[str, str] = {}
        check_place(self.experiment, self.context.paths)
        if "base" in stages:
            check_base(self.experiment)
        for name in stages:
            if (failures or waiting) and name not in ("merge", "prompts", "evaluate"):
                break  # these do what they can; all others need everything
            if name == "studies":
                before = list(STAGES)[: list(STAGES).index(name)]
                for other in self.experiment.reads:
                    Executor(load(other), self.params).run(before)
            began = time.monotonic()
            failed, blocked, done, kept = self.run_stage(STAGES[name], stages, only)
            failures |= failed
            waiting |= blocked
            if done or failed or len(stages) == 1:
                took = clock(time.monotonic() - began)
                print(f"{name} {self.name}: {done} done, {kept} kept, {took}", flush=True)
            if name == "data" and not failed:
                check_tasks(self.experiment, self.context.paths)
        if failures or waiting:
            lines = [
                f"  {', '.join(label for label in failures if failures[label] == why)}: {why}"
                for why in dict.fromkeys(failures.values())
            ]
            if waiting:
                label, why = next(iter(waiting.items()))
                others = f", and {len(waiting) - 1} more like it" if len(waiting) > 1 else ""
                lines.append(f"  {label}{others}: not run, since {why}")
            advice = (
                "the same command tries again" if failures else f"`merit run {self.name}` makes it"
            )
            head = f"{self.name}: {len(failures)} failed, {len(waiting)} not run; {advice}"
            raise MeritError("\n".join([head, *lines]))

    def run_stage(
        self, stage: Stage, stages: Sequence[str], only: Sequence[str]
    ) -> tuple[dict[str, str], dict[str, str], int, int]:
        """({failed item: why}, {item that lacks an input: which}, number done, number kept)."""
        # single branches may be trained by several machines at once; each has a lock of its own
        lock = work_place(Path("artifacts", self.name, f"run-{stage.name}"))
        guard = nullcontext() if only else exclusive(lock, f"{stage.name} is being run")
        failures: dict[str, str] = {}
        done = kept = 0
        with guard:
            if not only:
                for path in stage.prune(self.context):
                    print(f"removed: {path}, which the plan does not name", file=sys.stderr)
            pending = [i for i in stage.items(self.context) if not only or i.name in only]
            while True:
                todo, num_current, lacking = self._sorted(stage, pending)
                pending, kept = list(lacking), kept + num_current
                asked = stage.name == "train" and "evaluate" in stages and todo
                if asked and (unasked := self._missing(stages)):
                    return unasked, {}, done, kept
                failed = self._compute(stage, stages, todo) if todo else {}
                failures |= failed
                done += len(todo) - len(failed)
                if not pending or not (todo or num_current):
                    waiting = {item.label: why for item, why in lacking.items()}
                    return failures, waiting, done, kept

    def _sorted(
        self, stage: Stage, items: Sequence[Item]
    ) -> tuple[list[tuple[Item, Key]], int, dict[Item, str]]:
        """Items to make, with their keys; the number of current ones; what others lack.

        What is out of date is removed at once, so that nothing is made of it.
        """
        todo: list[tuple[Item, Key]] = []
        num_current, lacking = 0, {}
        for item in items:
            try:
                key = stage.key(self.context, item.name)
            except NotReady as missing:
                lacking[item] = str(missing)
                continue
            current = item.is_current(key)
            if stage.stored and not current:
                item.adopt()
                item.remove()
                current = item.take(key)
            num_current += current
            todo += [] if current else [(item, key)]
        return todo, num_current, lacking

    def _compute(
        self, stage: Stage, stages: Sequence[str], todo: Sequence[tuple[Item, Key]]
    ) -> dict[str, str]:
        todo, failures = self._with_whole_inputs(stage, todo)
        if not todo:
            return failures
        if stage.name == "train":
            manifests = {item: self.context.paths.manifest(item.name) for item, _ in todo}
            tokens = {item: read_json(file)["num_tokens"] for item, file in manifests.items()}
            todo = sorted(todo, key=lambda pair: tokens[pair[0]], reverse=True)  # end together
            if self.params.launch.backend == "slurm":
                return failures | train_branches(self.name, todo, self.params)
        pool, hub = self.pool(stages), needs_hub(self.experiment, stage.name)
        label = f"{self.name}, {stage.name}"
        slots = self._slots(stage, pool.slots)
        if stage.name == "gradients" and len(slots) > 1:
            n = len(slots)
            parts = [f"{i}/{n}" for i in range(1, n + 1)]
            shares: list[Task] = [
                (f"gradients {part}", run_stage, (stage.module, self.name, part, hub))
                for part in parts
            ]
            if failed := pool.run(label, shares, slots):
                return failures | failed
        tasks: list[Task] = [
            (item.label, make_item, (stage.module, item, key, hub, stage.stored))
            for item, key in todo
        ]
        return failures | pool.run(label, tasks, slots)

    def _with_whole_inputs(
        self, stage: Stage, todo: Sequence[tuple[Item, Key]]
    ) -> tuple[list[tuple[Item, Key]], dict[str, str]]:
        """Those whose inputs have the bytes of their records; why the others are not made.

        Keys are of records: what was changed since, or copied in damaged, is found here.
        """
        inputs = {item: stage.inputs(self.context, item.name) for item, _ in todo}
        damaged: dict[tuple[Item, str], str] = {}
        for read in set().union(*inputs.values()):
            try:
                read[0].check(read[1])
            except MeritError as error:
                damaged[read] = str(error)
        failures = {
            item.label: min(damaged[read] for read in reads & damaged.keys())
            for item, reads in inputs.items()
            if reads & damaged.keys()
        }
        return [(item, key) for item, key in todo if item.label not in failures], failures

    def _slots(self, stage: Stage, slots: Sequence[list[str]]) -> Sequence[list[str]]:
        """Those of branches; a base that is trained has all GPUs, what does not train one each."""
        gpus = [gpu for slot in slots for gpu in slot]
        if not gpus or stage.name == "train":
            return slots
        if _trains(self.experiment, stage.name):
            return [gpus]
        return slots if self.experiment.model.spread else [[gpu] for gpu in gpus]

    def _missing(self, stages: Sequence[str]) -> dict[str, str]:
        """Why there is nothing to ask the models that would be trained."""
        from merit.check.missing import check_questions
        from merit.eval.benchmarks import benchmark

        if not any(benchmark(name).public for name in self.experiment.evaluation.benchmarks):
            return {}
        task: Task = ("questions", check_questions, (self.name,))
        return self.pool(stages).run(f"{self.name}, questions", [task])

    # --- what would be done ---------------------------------------------------------------------

    def describe(self, stages: Sequence[str], only: Sequence[str] = ()) -> int:
        """Print what is out of date, and why; returns how many items are."""
        stale = 0
        for name in stages:
            whys = {row["item"]: row["why"] for row in self.facts([name], only)}
            old = {item: why for item, why in whys.items() if why}
            for item, why in old.items():
                print(f"{self.name} {name}{f' {item}' if item else ''}: {why}")
            num_current = len(whys) - len(old)
            unless = " unless the above changes them" if stale and num_current else ""
            print(f"{self.name} {name}: {num_current} up to date{unless}")
            stale += len(old)
        return stale

    def facts(
        self, stages: Sequence[str] = tuple(STAGES), only: Sequence[str] = ()
    ) -> list[dict[str, str | None]]:
        """Every item with why it is out of date."""
        return [
            {"experiment": self.name, "stage": name, "item": item.name or None}
            | {"why": self._why(STAGES[name], item) or None}
            for name in stages
            for item in STAGES[name].items(self.context)
            if not only or item.name in only
        ]

    def _why(self, stage: Stage, item: Item) -> str:
        try:
            key = stage.key(self.context, item.name)
        except NotReady as missing:
            return f"waits for {missing}"
        why = item.changed(key)
        return f"{why}; kept in the store" if why and item.place(key).is_dir() else why


def make_item(module: str, item: Item, key: Key, hub: bool, stored: bool) -> None:
    """Make one item and record it. Runs in a process of its own."""
    began = time.monotonic()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(gpus) > 1 and _trains(load_experiment(item.experiment), item.stage):
        _run_on_ranks(item, len(gpus))
    else:
        run_stage(module, item.experiment, item.name or None, hub)
    item.finish(key, stored)
    write_timing(Artifacts(item.experiment).folder, item.stage, item.name or None, began)


def _trains(experiment: Experiment, stage: str) -> bool:
    """Whether an item of the stage trains, which the GPUs of its slot share as processes."""
    return stage == "train" or (stage == "base" and bool(experiment.base.phases))


def run_rank(name: str, stage: str, item: str | None) -> None:
    """The part of one process of torchrun in training a base or a branch."""
    end_with_parent()
    run_stage(STAGES[stage].module, name, item, needs_hub(load_experiment(name), stage))


def _run_on_ranks(item: Item, num_ranks: int) -> None:
    """Train in `num_ranks` processes of torchrun; a signal that stops them is passed on."""
    words = [str(num_ranks), item.experiment, item.stage, *filter(None, [item.name])]
    command = [sys.executable, "-m", "merit.run.ranks", *words]
    process = subprocess.Popen(command)
    for number in STOPPING:
        signal.signal(number, lambda number, _: process.send_signal(number))
    if code := process.wait():
        sys.exit(code)


# --- around all stages ----------------------------------------------------------------------------


def say_differences() -> None:
    """One line to stderr if the results here may be other bytes than those of other machines."""
    if found := "; ".join(differences()):
        print(f"merit: results may differ from the committed ones: {found}", file=sys.stderr)


def write_settings(names: Sequence[str]) -> None:
    """experiments/settings/<name>.json, which dvc.yaml's stages depend on block by block.

    Besides, what DVC or the user has brought into place is stored: DVC empties the outputs of a
    stage before it runs the stage.
    """
    say_differences()
    for name in names:
        context = Context.of(load(name))
        if not context.experiment.evaluation.benchmarks:
            raise MeritError(
                f"params.yaml: key `experiments`: {name} has no benchmarks, which dvc.yaml's "
                f"stages expect; `merit run {name}` runs it"
            )
        write_json(SETTINGS_DIR / f"{name}.json", stage_settings(context))
        for stage in STAGES.values():
            for item in stage.items(context) if stage.stored else ():
                item.adopt()
    code = {name: code_hash([module]) for name, module in OVER_ALL.items()}
    write_json(SETTINGS_DIR / "index.json", {"code": code})


def stage_settings(context: Context) -> dict[str, Any]:
    """Every setting with its default; hashes of each stage's code, of the user's own files, of the
    experiments that the studies read, and of the scores on other bases that the report reads.
    """
    from merit.eval.report.bases import scores_hashes

    code = {
        stage.name: value_hash([stage.code_of(context, item.name) for item in stage.items(context)])
        for stage in STAGES.values()
    }
    others = {other: stage_settings(Context.of(load(other))) for other in context.experiment.reads}
    return context.dump | {
        "code": code,
        "own_files": own_files(context.experiment),
        "reads": {name: value_hash(settings) for name, settings in others.items()},
        "bases": scores_hashes(context.experiment),
    }


def status(names: Sequence[str], as_json: bool = False) -> None:
    """Print which items are out of date, and why; as JSON a list of all, `why` null if current."""
    params = load_params()
    executors = [Executor(load(name), params) for name in names]
    if as_json:
        print(json.dumps([row for executor in executors for row in executor.facts()], indent=1))
        return
    stale = sum(executor.describe(list(STAGES)) for executor in executors)
    print(f"{stale} out of date" if stale else "everything is up to date")
