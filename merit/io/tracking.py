"""MLflow as a view of the records (the only module that imports mlflow, and only when it is used).

DVC's files are the truth. `sync` makes MLflow show exactly what `merit.io.runs` reads from them:
one MLflow experiment per YAML, a parent run per model, a child run per branch. Every run carries
`merit.key` and `merit.content_hash`, so that a second sync writes nothing, a changed record updates
its own run, and a deleted database is rebuilt whole. `follow` does the same every few seconds while
the pipeline runs, and shows the step records of running branches as they come.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from merit.config import Experiment, Params
from merit.errors import MeritError
from merit.io import runs
from merit.io.artifacts import ARTIFACTS_DIR, Artifacts
from merit.io.runs import Point, Run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

LOCK_TIMEOUT = 10.0  # seconds to wait for a locked database or a silent server
POLL_SECONDS = 5.0
METRICS_PER_BATCH = 1000  # MLflow's limits for one call
ITEMS_PER_BATCH = 100
HOST = "127.0.0.1"
CHART_VIEW = "workflowType=machine_learning&compareRunsMode=CHART"
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
    with _store(uri, timeout) as client:
        for name in names:
            _experiment_id(client, uri, name)


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
    with _store(uri, timeout) as client:
        total = Counts()
        for experiment in experiments:
            view = _View(client, _experiment_id(client, uri, experiment.name))
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
            with _store(uri, timeout) as client:
                for experiment in experiments:
                    name = experiment.name
                    if last or name not in views:
                        views[name] = _View(client, _experiment_id(client, uri, name))
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


def serve(params: Params, port: int) -> None:
    """The command `merit ui`: print where the experiments' charts are, then be MLflow's server.

    It listens on 127.0.0.1 alone. Raises MeritError where nothing has been tracked yet, where the
    port is taken, or where `tracking.uri` is a server already.
    """
    uri = params.tracking.uri
    if uri.startswith("http"):
        raise MeritError(f"params.yaml: key `tracking.uri`: a server already: open {uri}")
    nothing = f"{uri}: nothing has been tracked yet; `make repro` does (or `merit track sync`)"
    path = _sqlite_path(uri)
    if path and not path.is_file():
        raise MeritError(nothing)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise MeritError(
                f"port {port} of {HOST} cannot be used ({error}); choose another: "
                f"`merit ui --port {port + 1}`"
            ) from None
    with _store(uri, LOCK_TIMEOUT) as client:
        found = [client.get_experiment_by_name(name) for name in params.experiments]
    if not any(found):
        raise MeritError(nothing)
    for experiment in filter(None, found):
        charts = f"experiments/{experiment.experiment_id}/runs?{CHART_VIEW}"
        print(f"{experiment.name}: http://{HOST}:{port}/#/{charts}")
    print("Ctrl-C stops the server.", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, command)  # it takes this process's place, and with it every signal


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


# --- the store ----------------------------------------------------------------------------------


@contextmanager
def _store(uri: str, timeout: float) -> Iterator[MlflowClient]:
    """A client of a store that can be written; any failure of the store is one MeritError."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"  # MLflow takes no other value for yes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(math.ceil(timeout)))
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
        from requests import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        for name in (
            "mlflow",
            "alembic",
        ):  # migrations, retries and tracebacks of what is said below
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if uri.startswith("sqlite:"):
            _probe(uri, timeout)
        yield mlflow.MlflowClient(tracking_uri=uri)
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise MeritError(_advice(uri, str(error))) from error


def _probe(uri: str, timeout: float) -> None:
    """Open the SQLite file for writing, or fail within `timeout`; MLflow itself would try for
    minutes. A file that does not exist is created."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if path := _sqlite_path(uri):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MeritError(_advice(uri, str(error))) from error
    engine = create_engine(uri, poolclass=NullPool, connect_args={"timeout": timeout})
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("SELECT COUNT(*) FROM sqlite_master")
        connection.rollback()


def _sqlite_path(uri: str) -> Path | None:
    """The file behind sqlite:///<path>; None for memory, file: URIs and servers."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database if uri.startswith("sqlite:") else None
    if not database or database == ":memory:" or database.startswith("file:"):
        return None
    return Path(database)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        path = _sqlite_path(uri)  # artifacts lie beside the database; a server has its own place
        location = (path.parent.resolve() / "mlruns" / name).as_uri() if path else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens at the runs
        return str(client.create_experiment(name, artifact_location=location, tags=kind))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _advice(uri: str, reason: str) -> str:
    """What failed, what to do, and that the results are safe."""
    lowered = reason.lower()
    if "locked" in lowered:
        advice = "another process holds the database: stop it (`make ui`, another mirror) or wait"
    elif "readonly" in lowered or "read-only" in lowered:
        advice = "make the file and its folder writable, or set `tracking.uri` to another place"
    elif "not a database" in lowered or "malformed" in lowered:
        advice = "the file is damaged: delete it"
    elif "out-of-date" in lowered:
        advice = "another MLflow version wrote it: delete it (or run `mlflow db upgrade`)"
    elif uri.startswith("http"):
        advice = "start the server, or correct `tracking.uri` in params.yaml"
    else:
        advice = "check `tracking.uri` in params.yaml"
    first_line = reason.strip().splitlines()[0] if reason.strip() else "unknown error"
    return (
        f"{uri}: MLflow's store cannot be used: {first_line}\n"
        f"To do: {advice}; then `merit track sync`. "
        "No result is lost: the records under artifacts/ are the truth, MLflow only shows them."
    )
