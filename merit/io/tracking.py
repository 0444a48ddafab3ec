"""MLflow as a view of the records (merit.io.store alone imports mlflow, when it is used).

DVC's files are the truth. `sync` makes MLflow show exactly what `merit.io.runs` reads from them:
one MLflow experiment per YAML, a parent run per model, a child run per branch. Every run carries
`merit.key` and `merit.content_hash`, so that a second sync writes nothing, a changed record updates
its own run, and a deleted database is rebuilt whole. `follow` does the same every few seconds while
the pipeline runs, and shows the step records of running branches as they come.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from merit.config import Experiment, Params
from merit.errors import MeritError
from merit.io import runs
from merit.io.artifacts import ARTIFACTS_DIR, Artifacts
from merit.io.runs import Point, Run
from merit.io.store import LOCK_TIMEOUT, experiment_id_of, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

POLL_SECONDS = 5.0
METRICS_PER_BATCH = 1000  # MLflow's limits for one call
ITEMS_PER_BATCH = 100
KEY, CONTENT_HASH, PARENT = "merit.key", "merit.content_hash", "mlflow.parentRunId"


@dataclass
class Counts:
    """What a sync did, in runs."""

    created: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def prepare(uri: str, names: Sequence[str], *, timeout: float = LOCK_TIMEOUT) -> None:
    """Create the database and one MLflow experiment per name, where they are absent.

    To be called once before processes that share the store start. Raises MeritError where the
    store cannot be written.
    """
    with open_store(uri, timeout) as client:
        for name in names:
            experiment_id_of(client, uri, name)


def sync(
    params: Params,
    experiments: Sequence[Experiment],
    *,
    root: Path = ARTIFACTS_DIR,
    timeout: float = LOCK_TIMEOUT,
) -> Counts:
    """Make MLflow show the records of `experiments`; outputs that do not exist yet are skipped.

    Runs of methods that are no longer in the YAML are deleted; runs that are live are left alone.
    Raises MeritError where a record is unreadable or the store cannot be used.
    """
    uri = params.tracking.uri
    with open_store(uri, timeout) as client:
        total = Counts()
        for experiment in experiments:
            view = _View(client, experiment_id_of(client, uri, experiment.name))
            total += _mirror(view, experiment, root, live=False)
        return total


def follow(
    params: Params,
    experiments: Sequence[Experiment],
    *,
    stop: threading.Event | None = None,
    root: Path = ARTIFACTS_DIR,
    poll: float = POLL_SECONDS,
    timeout: float = LOCK_TIMEOUT,
) -> Counts:
    """Mirror every `poll` seconds, running branches too, until `stop` or the parent process ends.

    A store that fails for a while (locked, unreachable) is reported once and tried again; the last
    pass, after the end, raises MeritError where it still fails. It reconciles finished branches
    with their records; branches that were left unfinished get the status KILLED.
    """
    uri = params.tracking.uri
    parent = os.getppid()
    stop = stop or threading.Event()
    views: dict[str, _View] = {}
    total = Counts()
    reported = ""
    while True:
        last = stop.is_set() or os.getppid() != parent
        try:
            with open_store(uri, timeout) as client:
                for experiment in experiments:
                    name = experiment.name
                    if last or name not in views:
                        views[name] = _View(client, experiment_id_of(client, uri, name))
                    total += _mirror(views[name], experiment, root, live=not last)
                    if last:
                        views[name].end_live_runs()
            reported = ""
        except (MeritError, OSError) as error:  # OSError: a file that was just replaced
            if last:
                raise
            views.clear()
            if str(error) != reported:
                reported = str(error)
                print(f"MLflow mirror, will try again: {reported}", file=sys.stderr, flush=True)
        if last:
            return total
        deadline = time.monotonic() + poll
        while time.monotonic() < deadline and os.getppid() == parent:
            if stop.wait(min(0.5, poll)):
                break


def main_sync(params: Params, experiments: Sequence[Experiment]) -> None:
    """The command `merit track sync`: mirror once and say what was done."""
    start = time.monotonic()
    counts = sync(params, experiments)
    print(
        f"{params.tracking.uri}: {counts.created} runs created, {counts.updated} updated, "
        f"{counts.deleted} deleted, {counts.unchanged} unchanged "
        f"({time.monotonic() - start:.1f} s)"
    )


def main_follow(params: Params, experiments: Sequence[Experiment]) -> None:
    """The command `merit track follow`: mirror until SIGTERM, SIGINT or the parent's end."""
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    follow(params, experiments, stop=stop)


# --- one experiment -----------------------------------------------------------------------------


class _View:
    """The runs of one MLflow experiment, read once and kept up to date by what is written here."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.known: dict[str, MlflowRun] = {}
        token = None
        while True:
            page = client.search_runs([experiment_id], max_results=1000, page_token=token)
            for run in page:
                if key := run.data.tags.get(KEY):
                    if key in self.known:  # two mirrors at once: one copy is enough
                        client.delete_run(run.info.run_id)
                    else:
                        self.known[key] = run
            if not (token := page.token):
                return

    def delete(self, key: str) -> None:
        self.client.delete_run(self.known.pop(key).info.run_id)

    def end_live_runs(self) -> None:
        """Status KILLED for runs that nothing continues."""
        for run in self.known.values():
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "KILLED")
                # without a hash, the next pass looks at it again
                self.client.delete_tag(run.info.run_id, CONTENT_HASH)

    def put(self, run: Run) -> Counts:
        """Bring one run up to date: by adding what is missing, or where MLflow holds anything that
        the records do not (parameters and points cannot be changed there), by replacing it."""
        parent_id = self.known[run.parent].info.run_id if run.parent else None
        old = self.known.get(run.key)
        if old and old.data.tags.get(CONTENT_HASH) == run.content_hash:
            if parent_id and old.data.tags.get(PARENT) != parent_id:
                self.client.set_tag(old.info.run_id, PARENT, parent_id)
                old.data.tags[PARENT] = parent_id
                return Counts(updated=1)
            return Counts(unchanged=1)
        points = run.points()
        present = self._present(old) if old else set()
        wanted = {(p.key, p.step, p.value) for p in points}
        if old and (present - wanted or not old.data.params.items() <= run.params.items()):
            self.delete(run.key)
            old, present = None, set()
        run_id = old.info.run_id if old else self._create(run, points)
        missing = [p for p in points if (p.key, p.step, p.value) not in present]
        params = run.params if old is None else _without(run.params, old.data.params)
        tags = run.tags | ({PARENT: parent_id} if parent_id else {})
        self._log(run_id, missing, params, tags)
        for path, content in run.files.items():
            if isinstance(content, str):
                self.client.log_text(run_id, content, path)
            else:
                folder = PurePosixPath(path).parent
                self.client.log_artifact(run_id, str(content), str(folder) if folder.name else None)
        if run.live:
            self.client.update_run(run_id, status="RUNNING")
        else:
            times = [p.time for p in points if p.time]
            self.client.set_terminated(run_id, "FINISHED", max(times, default=None))
        # last, so that a pass that was killed before this line is taken up again
        self.client.set_tag(run_id, CONTENT_HASH, run.content_hash)
        self.known[run.key] = self.client.get_run(run_id)
        return Counts(updated=1) if old else Counts(created=1)

    def _present(self, old: MlflowRun) -> set[tuple[str, int, float]]:
        return {
            (key, metric.step, metric.value)
            for key in old.data.metrics
            for metric in self.client.get_metric_history(old.info.run_id, key)
        }

    def _create(self, run: Run, points: list[Point]) -> str:
        times = [p.time for p in points if p.time]
        tags = {KEY: run.key}
        if commit := runs.git_commit():
            tags["mlflow.source.git.commit"] = commit
        created = self.client.create_run(
            self.experiment_id, start_time=min(times, default=None), tags=tags, run_name=run.name
        )
        return str(created.info.run_id)

    def _log(
        self, run_id: str, points: list[Point], params: dict[str, str], tags: dict[str, str]
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time.time())
        metrics = [Metric(p.key, p.value, p.time or now, p.step) for p in sorted(points)]
        for chunk in _chunks(metrics, METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=chunk)
        # MLflow itself cuts values at 6,000 (parameters) and 8,000 characters (tags)
        some: list[Param]
        others: list[RunTag]
        param_chunks = _chunks([Param(k, v) for k, v in params.items()], ITEMS_PER_BATCH)
        tag_chunks = _chunks([RunTag(k, v) for k, v in tags.items()], ITEMS_PER_BATCH)
        for some, others in zip_longest(param_chunks, tag_chunks, fillvalue=[]):
            self.client.log_batch(run_id, params=some, tags=others)


def _mirror(view: _View, experiment: Experiment, root: Path, live: bool) -> Counts:
    counts = Counts()
    for key in sorted(set(view.known) - runs.keys(experiment)):
        view.delete(key)
        counts.deleted += 1
    for run in runs.runs(experiment, Artifacts(experiment.name, root), live=live):
        counts += view.put(run)
    return counts


def _without(values: dict[str, str], known: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if key not in known}


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
