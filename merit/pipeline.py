"""`merit repro`: bring every result up to date, with the branches trained side by side.

DVC runs one stage at a time, each in a process of its own. So the experiments' stages up to the
partition run as several `dvc repro` side by side, and so do those after the merges. Branches and
merges are many and short at mini scale: they run through `merit.launch`, and each is recorded in
DVC as if `dvc repro` had run it (`dvc.lock` and the run cache cannot tell).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from merit.config import Experiment, Params, load_experiment, load_params
from merit.errors import MeritError
from merit.graph import KINDS, PIPELINE_FILE, render
from merit.io.artifacts import REPORTS_DIR, Artifacts, atomic_write, read_json
from merit.launch import Job, clock, run_jobs, stage_name
from merit.methods import plan
from merit.studies import STUDIES

# DVC's remarks on what it did not do
_NOISE = (
    *("didn't change, skipping", "Data and pipelines are up to date"),
    *("Updating lock file", "Generating lock file", "Use `dvc push`"),
    "in RWLock-file",  # a killed run's lock, which DVC has removed
    *("git add", "To track the changes with git", "To enable auto staging", "core.autostage"),
)
PAGE = REPORTS_DIR / "index.html"
_SECONDS_BETWEEN_RECORDS = 20.0  # each record takes a core for some seconds


def repro() -> None:
    """Run what is out of date, and only that. A killed run resumes: finished branches are kept.

    Raises MeritError where the settings are wrong or a stage fails; where only MLflow could not be
    written, after everything else is finished.
    """
    params = load_params()
    experiments = {name: load_experiment(name) for name in params.experiments}
    refresh(params, experiments)
    if not pending():
        if _pages_are_old(experiments):  # a kill may have come between the last report and these
            _pages(experiments)
        print("Everything is up to date.")
        return
    with _mirror():
        _bring_up_to_date(params, experiments)
        print(time_by_stage(experiments))


def _bring_up_to_date(params: Params, experiments: Mapping[str, Experiment]) -> None:
    def of_all(kind: str) -> list[str]:
        return [stage_name(kind, name) for name in params.experiments]

    # bases take longest, the map's second one included: side by side, without what leads there
    _dvc_repro(of_all("data"), params.workers)
    _dvc_repro(pending(("base", "other_base")), params.workers, alone=True)
    _dvc_repro(of_all("partition"), params.workers)
    _restore(pending(("train",)))
    jobs = branch_jobs(experiments, pending(("train", "merge")))
    if jobs:
        num_workers = min(params.workers, len(jobs))
        print(f"{len(jobs)} branches and merges in {num_workers} processes", file=sys.stderr)
        with _Recorder() as recorder:
            run_jobs(jobs, num_workers, recorder.add)
    _dvc_repro(of_all("evaluate"), 1)  # each has its own workers: two at once took 4.9 GB
    _dvc_repro(pending(("study",)), params.workers, alone=True)  # none reads another's results
    _dvc_repro(of_all("report"), params.workers)
    _pages(experiments)


def _pages(experiments: Mapping[str, Experiment]) -> None:
    """The pages over all experiments; no stage of DVC's, as README.md is ours as well as theirs."""
    build_index = importlib.import_module("eval.report.build").build_index
    build_index(list(experiments.values()), REPORTS_DIR)
    PAGE.touch()  # the same page is not written again, but it is no older than its parts


def _pages_are_old(experiments: Mapping[str, Experiment]) -> bool:
    """Whether a report has been written since the pages over all of them."""
    parts = [Artifacts(name).report / "section.md" for name in experiments]
    return not PAGE.is_file() or any(
        part.is_file() and part.stat().st_mtime > PAGE.stat().st_mtime for part in parts
    )


def refresh(params: Params, experiments: Mapping[str, Experiment]) -> None:
    """Write dvc.yaml where it is not what the settings and the code ask for."""
    text = render(params, experiments)
    if not PIPELINE_FILE.is_file() or PIPELINE_FILE.read_text(encoding="utf-8") != text:
        atomic_write(PIPELINE_FILE, text)


def pending(kinds: Sequence[str] = ()) -> list[str]:
    """The stages of these kinds (all kinds where empty) whose records are out of date, sorted."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with _params_read_once(), Repo() as repo:
            status = repo.status()
    except DvcException as error:
        raise MeritError(f"`dvc status` failed: {error}") from None
    prefixes = tuple(f"{kind}-" for kind in kinds) or ("",)
    return sorted(name for name in status if name.startswith(prefixes))


def branch_jobs(experiments: Mapping[str, Experiment], names: Sequence[str]) -> list[Job]:
    """The jobs behind the stages `names`, and behind every merge that follows from them.

    DVC's status does not yet see that a merge is out of date when only its branch's settings have
    changed, so the merges downstream of a pending job are taken along. A branch costs its
    manifest's tokens; a merge costs next to nothing beside that.
    """
    jobs: list[Job] = []
    for name, experiment in experiments.items():
        planned = plan(experiment)
        due = set(names)
        for branch in planned.branches:
            if stage_name("train", name, branch) in due:
                tokens = float(read_json(Artifacts(name).manifest(branch))["num_tokens"])
                jobs.append(Job("train", name, branch, tokens))
        # models that others derive from come first, so that one pass follows every path
        for model in sorted(planned.models.values(), key=lambda model: model.rule == "shrunk"):
            after = tuple(
                [stage_name("train", name, branch) for branch in model.branches]
                + [
                    stage_name("merge", name, other)
                    for other in (model.source, model.match)
                    if other
                ]
            )
            job = Job("merge", name, model.id, 1.0, after)
            if job.name in due or due.intersection(after):
                due.add(job.name)
                jobs.append(job)
    return jobs


def time_by_stage(experiments: Mapping[str, Experiment]) -> str:
    """A table of the seconds and the peak memory that each kind of stage took when it last ran."""
    lines = [f"{'stage':<24}{'runs':>5}{'time':>9}{'peak MB':>9}"]
    for name, experiment in experiments.items():
        planned = plan(experiment)
        items: dict[str, Sequence[str | None]] = {kind: [None] for kind in KINDS}
        items |= {"train": list(planned.branches), "merge": list(planned.models)}
        items["study"] = list(STUDIES)
        for kind, those in items.items():
            folder = Artifacts(name).folder / "timings"
            files = [folder / f"{'-'.join(filter(None, (kind, item)))}.json" for item in those]
            timings = [read_json(file) for file in files if file.is_file()]
            if timings:
                seconds = sum(timing["seconds"] for timing in timings)
                memory = max(timing.get("peak_memory_mb") or 0 for timing in timings)
                label = f"{kind}-{name}"
                lines.append(f"{label:<24}{len(timings):>5}{clock(seconds):>9}{memory:>9.0f}")
    return "\n".join(lines)


@contextlib.contextmanager
def _mirror() -> Iterator[None]:
    """Carry the records into MLflow while the block runs, and once more after it.

    A process of its own pays for mlflow's import (seconds), and nothing in the block waits for it
    or fails with it. Raises MeritError, after the block, where the last pass failed.
    """
    command = [sys.executable, "-m", "merit", "track", "follow"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=_environment(), stderr=errors)
        try:
            yield
        finally:
            process.terminate()  # it takes this as the sign for the last pass
            process.wait()
        errors.seek(0)
        message = errors.read().rpartition("merit: error: ")[2].strip()
    if process.returncode:
        raise MeritError(f"all stages are finished, but not in MLflow:\n{message}")


# --- DVC ----------------------------------------------------------------------------------------


class _Recorder:
    """Records finished jobs in DVC from a thread, some at a time, while the workers go on.

    What a kill can lose is the batch since the last record.
    """

    def __enter__(self) -> _Recorder:
        self.batch: list[str] = []
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.running: Future[None] | None = None
        self.recorded = time.monotonic()
        return self

    def add(self, job: Job) -> None:
        self.batch.append(job.name)
        busy = self.running is not None and not self.running.done()
        if not busy and time.monotonic() - self.recorded > _SECONDS_BETWEEN_RECORDS:
            self._record()

    def _record(self) -> None:
        if self.running is not None:
            self.running.result()  # raises what the last record raised
        batch, self.batch = self.batch, []
        self.running = self.thread.submit(_commit, batch)
        self.recorded = time.monotonic()

    def __exit__(self, *_: object) -> None:
        """Whatever ended the launch, what has finished is recorded."""
        with self.thread:
            if self.batch:
                self._record()
            if self.running is not None:
                self.running.result()


@contextlib.contextmanager
def _params_read_once() -> Iterator[None]:
    """Inside, DVC parses a parameter file once, not once for each of a hundred stages."""
    from dvc.dependency import param

    load, read = param.load_path, {}

    def remembered(path: str, fs: object = None, **options: object) -> object:
        if path not in read:
            read[path] = load(path, fs, **options)
        return read[path]

    param.load_path = remembered
    try:
        yield
    finally:
        param.load_path = load


def _commit(names: Sequence[str]) -> None:
    """`dvc commit --force` of these stages, with one reading and one writing of dvc.lock.

    The command itself does both for every stage: with a hundred stages that takes minutes.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # that it writes dvc.lock is no news
    with _params_read_once(), Repo() as repo, repo.lock:
        stages = [stage for stage in repo.index.stages if stage.addressing in set(names)]
        try:
            for stage in stages:
                stage.save()
                stage.commit()
            if stages:
                stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
        except DvcException as error:
            raise MeritError(f"DVC cannot record {', '.join(names)}: {error}") from None


def _restore(names: Sequence[str]) -> None:
    """Check out, from DVC's run cache, the outputs of those stages that ran before as now.

    `dvc repro` does so by itself; its command line has no way to do only that, hence its API.
    """
    if not names:
        return
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    restored = []
    with Repo() as repo, repo.lock:
        for stage in repo.index.stages:
            if stage.addressing not in names:
                continue
            # as dvc.stage.run does; `restore` must be the one to save the dependencies' hashes,
            # since it first asks whether those in dvc.lock still hold
            stage.remove_outs(ignore_remove=False, force=False)
            with contextlib.suppress(RunCacheNotFoundError):
                repo.stage_cache.restore(stage)
                restored.append(stage.addressing)
    if restored:
        _commit(restored)
        print(f"{len(restored)} branches restored from DVC's cache", file=sys.stderr)


def _dvc_repro(targets: Sequence[str], num_workers: int, alone: bool = False) -> None:
    """`dvc repro` of every target, `num_workers` of them side by side, their output line by line.

    Targets must not share a stage upstream, which DVC locks even to look at it, unless they run
    `alone`: without what leads there. One that fails does not stop the others. Raises MeritError,
    naming those that failed.
    """
    options = ["--single-item"] if alone else []
    with ThreadPoolExecutor(num_workers) as pool:
        done = list(pool.map(lambda target: _dvc_repro_one([*options, target]), targets))
    failed = [target for target, succeeded in zip(targets, done, strict=True) if not succeeded]
    if failed:
        raise MeritError(f"`dvc repro {' '.join(failed)}` failed; the lines above say why")


def _dvc_repro_one(arguments: Sequence[str]) -> bool:
    """Whether `dvc repro <arguments>` succeeded. DVC's remarks on what it skipped are left out."""
    # DVC holds its lock while it looks and records, not while a stage runs
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *arguments]
    with subprocess.Popen(
        command,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # lines of progress: two changing lines would clash
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() and not any(remark in line for remark in _NOISE):
                print(line, end="", flush=True)
    return process.returncode == 0


def _environment() -> dict[str, str]:
    """This process's, with its own Python as `python` (the stages' command) and no telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
