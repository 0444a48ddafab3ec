"""MLflow as a view of the records, by its public API. mlflow is imported where it is used: that
takes 4 s.

`sync` makes MLflow show what `merit.runs` reads: an experiment per YAML, a run per method, below it
a run per model (seed), below that a run per branch.

MLflow cannot change a parameter or take back a point. A run is therefore found by two tags,
`merit.key` and the hash of its parameters, points, tags, files and mixture. If no run has both, or
its files are gone, a new one is logged with the notes and tags that users gave the old one, which
goes to MLflow's trash. The hash is set last: a run of a killed sync has none, and is logged again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

from merit.config import Experiment, Params
from merit.errors import MeritError
from merit.io.artifacts import ARTIFACTS_DIR, Artifacts, file_hash, value_hash
from merit.io.locks import exclusive
from merit.runs import Run, mixture, runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

LOCK_TIMEOUT = 10.0  # seconds to wait for a locked database or a silent server
METRICS_PER_CALL, PARAMS_PER_CALL = 800, 100  # MLflow's limits: 100 and 1,000 in all
KEY, CONTENT = "merit.key", "merit.content_hash"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"


class StoreError(MeritError):
    """MLflow's store fails; `reason` is one line."""

    def __init__(self, uri: str, error: Exception) -> None:
        self.reason = (str(error).strip().splitlines() or ["unknown error"])[0]
        super().__init__(
            f"{uri}: MLflow's store cannot be used: {self.reason}; put that right (`tracking.uri` "
            "in params.yaml?) and run `merit track`: no result is lost, MLflow only shows them"
        )


def sync(
    params: Params,
    experiments: Sequence[Experiment],
    *,
    strict: bool = True,
    root: Path = ARTIFACTS_DIR,
    timeout: float = LOCK_TIMEOUT,
) -> Counter[str]:
    """Make MLflow show the records of `experiments`; returns how many runs were "created" and so
    on.

    Results that do not exist yet are skipped; runs that the YAML no longer asks for are deleted.
    Raises MeritError if a record is unreadable and, if `strict`, if the store fails or another sync
    is running; otherwise that is one line on stderr.
    """
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    wanted = [
        (experiment, runs(experiment, paths), mixture(experiment, paths))
        for experiment in experiments
        for paths in [Artifacts(experiment.name, root)]
    ]
    try:
        with (
            exclusive(root / "mlflow", "MLflow is being written"),
            open_store(params.tracking.uri, timeout) as client,
        ):
            for one in wanted:
                counts += _mirror(client, *one)
        done = ", ".join(f"{counts[k]} {k}" for k in ("created", "updated", "deleted", "unchanged"))
        print(f"{params.tracking.uri}: runs: {done} ({time.monotonic() - begun:.1f} s)")
    except MeritError as error:  # the records have been read: it is the store or the lock
        if strict:
            raise
        reason = error.reason if isinstance(error, StoreError) else error
        print(
            f"MLflow at {params.tracking.uri} cannot be reached ({reason}); results are complete; "
            "`merit track` shows them later",
            file=sys.stderr,
        )
    return counts


# --- one experiment -----------------------------------------------------------------------------


def _mirror(
    client: MlflowClient,
    experiment: Experiment,
    wanted: Sequence[Run],
    trained_on: dict[str, str] | None,
) -> Counter[str]:
    experiment_id, shown = _open_experiment(client, experiment.name)
    ids: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for run in wanted:  # parents come first
        inputs = [trained_on] if trained_on and run.key != "base" else []
        content, versions = _content_hash(run, inputs), shown.pop(run.key, [])
        same = [old for old in versions if _shows(client, old, run, content, experiment_id)]
        tags = {PARENT: ids[run.parent]} if run.parent else {}
        if same:
            ids[run.key] = same[0].info.run_id
            moved = tags and same[0].data.tags.get(PARENT) != tags[PARENT]
            if moved:
                client.set_tag(ids[run.key], PARENT, tags[PARENT])
            counts["updated" if moved else "unchanged"] += 1
        else:
            tags |= {"mlflow.source.git.commit": _git_commit()} | run.tags
            tags |= _user_tags(versions[0]) if versions else {}
            new = client.create_run(experiment_id, run.start, {KEY: run.key}, run.name)
            ids[run.key] = new.info.run_id
            _log(client, ids[run.key], run, inputs, tags)
            client.set_tag(ids[run.key], CONTENT, content)
            counts["updated" if versions else "created"] += 1
        for old in versions:
            if old.info.run_id != ids[run.key]:
                client.delete_run(old.info.run_id)
    for old in (old for versions in shown.values() for old in versions):
        client.delete_run(old.info.run_id)
        counts["deleted"] += 1
    return +counts


def _open_experiment(client: MlflowClient, name: str) -> tuple[str, dict[str, list[MlflowRun]]]:
    """The id of the MLflow experiment and its runs by key, complete ones first.

    If the database has been moved and the folder of its artifacts is gone, the old experiment is
    renamed and deleted, and a new one takes its place.
    """
    path, found = sqlite_path(client.tracking_uri), client.get_experiment_by_name(name)
    location = (path.parent.resolve() / "mlruns" / name).as_uri() if path else None
    shown: dict[str, list[MlflowRun]] = {}
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        runs_there = client.search_runs([found.experiment_id], max_results=50_000)
        for run in sorted(runs_there, key=lambda run: CONTENT not in run.data.tags):
            if KEY in run.data.tags:
                shown.setdefault(run.data.tags[KEY], []).append(run)
        place = Path(unquote(found.artifact_location.removeprefix("file://")))
        if location in (None, found.artifact_location) or place.is_dir():
            return str(found.experiment_id), shown
        client.rename_experiment(found.experiment_id, f"{name}, moved ({found.experiment_id})")
        client.delete_experiment(found.experiment_id)
    kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens at the runs
    return str(client.create_experiment(name, location, kind)), shown


def _shows(
    client: MlflowClient, old: MlflowRun, run: Run, content: str, experiment_id: str
) -> bool:
    """Whether MLflow's run is what `run` says, with its files."""
    if (old.data.tags.get(CONTENT), old.info.experiment_id) != (content, experiment_id):
        return False
    there = {file.path for file in client.list_artifacts(old.info.run_id)} if run.files else set()
    return {PurePosixPath(path).parts[0] for path in run.files} <= there


def _content_hash(run: Run, inputs: Sequence[Mapping[str, str]]) -> str:
    """The hash of what MLflow cannot change."""
    files = {name: file_hash(path) for name, path in run.files.items()}
    points = [(p.key, p.step, p.value) for p in run.points]
    digests = [one["digest"] for one in inputs]
    return value_hash([run.name, run.params, run.tags, points, files, digests])


def _user_tags(run: MlflowRun) -> dict[str, str]:
    """A run's note and the tags that are neither ours nor MLflow's."""
    tags = run.data.tags
    return {k: tags[k] for k in tags if k == NOTE or not k.startswith(("merit.", "mlflow."))}


def _log(
    client: MlflowClient,
    run_id: str,
    run: Run,
    inputs: Sequence[Mapping[str, str]],
    tags: Mapping[str, str],
) -> None:
    """The run's points, parameters, tags, mixture and files."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    # MLflow's stores do not give NaN and infinity back as they were; such values stay records
    points = sorted(point for point in run.points if math.isfinite(point.value))
    metrics = [Metric(p.key, p.value, p.time, p.step) for p in points]
    params = [Param(key, value) for key, value in run.params.items()]  # MLflow cuts what is long
    shown = [RunTag(key, tag) for key, tag in tags.items() if tag]
    m, p = METRICS_PER_CALL, PARAMS_PER_CALL
    for i in range(max(math.ceil(len(metrics) / m), math.ceil(len(params) / p))):
        client.log_batch(run_id, metrics[i * m : i * m + m], params[i * p : i * p + p], shown)
        shown = []
    context = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**one), context) for one in inputs])
    for path, file in run.files.items():
        client.log_artifact(run_id, str(file), str(PurePosixPath(path).parent))
    client.set_terminated(run_id, "FINISHED", max((p.time for p in points), default=None))


@cache
def _git_commit() -> str:
    """The commit that is checked out; "" outside of a git repository."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    with contextlib.suppress(OSError):  # git is not installed
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


# --- the store ----------------------------------------------------------------------------------


@contextlib.contextmanager
def open_store(uri: str, timeout: float = LOCK_TIMEOUT) -> Iterator[MlflowClient]:
    """A client of a store that can be written. Raises StoreError if the store fails."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"  # MLflow takes no other value for yes
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(math.ceil(timeout)))
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):  # migrations, retries and tracebacks of what is said here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # OSError: requests' errors, too; ImportError: a database without its driver
    failures = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError)
    try:
        if uri.startswith("sqlite:///"):
            _probe(uri.removeprefix("sqlite:///"), timeout)
        yield mlflow.MlflowClient(tracking_uri=uri)
    except failures as error:
        raise StoreError(uri, error) from error


def _probe(place: str, timeout: float) -> None:
    """Fail within `timeout` if SQLite's file cannot be written: MLflow would try for minutes."""
    is_uri = place.startswith("file:")
    if not is_uri:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(place, timeout, isolation_level=None, uri=is_uri)
    with contextlib.closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT COUNT(*) FROM sqlite_master")
        connection.rollback()


def is_server(uri: str) -> bool:
    return uri.startswith("http")


def sqlite_path(uri: str) -> Path | None:
    """The file behind sqlite:///<path>; None for memory, file: URIs and servers."""
    path = uri.removeprefix("sqlite:///")
    return None if path in (uri, ":memory:") or path.startswith("file:") else Path(path)
