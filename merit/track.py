"""MLflow as a view of the records. mlflow is imported where it is used: it takes 4 s.

DVC's files are the truth. `sync` makes MLflow show what `merit.runs` reads from them: an experiment
a YAML, a run a model, below it a run a branch. A branch that several models share is one run, below
the first of them; every model links to its branches (tag `merit.branches`, and its note).

Runs are found by the tag `merit.key` and skipped where `merit.content_hash` is that of the records:
a second sync writes nothing, a deleted database is rebuilt, and a changed record updates its own
run, whose id stays, with the notes, tags and links that users have given it.

MLflow has no call that changes a parameter or takes back a point: a point logged again at the same
step stands beside the old one in every chart, and tables show the point of the highest step (of
those the latest), so that a longer, older curve would win over a shorter one. In a database, `sync`
therefore deletes the run's parameters, points and datasets by SQL before it logs those of the
records. A server (http) allows no such thing: there the old points and datasets stay, and where a
parameter has changed, `merit.changed_params` (JSON) says what it is now. Artifacts are replaced,
never taken away.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from merit.config import Experiment, Params
from merit.errors import MeritError
from merit.io.artifacts import ARTIFACTS_DIR, Artifacts, file_hash, value_hash
from merit.io.locks import exclusive
from merit.runs import Run, keys, mixture, runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

LOCK_TIMEOUT = 10.0  # seconds to wait for a locked database or a silent server
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100  # MLflow's limits
KEY, CONTENT_HASH, NOTE_HASH = "merit.key", "merit.content_hash", "merit.note_hash"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
MODEL_NOTE = (
    "Scores are percent on the test split. `loss_by_epoch` is the token-weighted mean of the "
    "branches' training loss at equal progress; its step is the percentage of an epoch."
)


class StoreError(MeritError):
    """MLflow's store fails; `reason` is one line."""

    def __init__(self, uri: str, error: Exception) -> None:
        self.reason = (str(error).strip().splitlines() or ["unknown error"])[0]
        super().__init__(
            f"{uri}: MLflow's store cannot be used: {self.reason}; put that right (`tracking.uri` "
            "in params.yaml?) and run `merit track sync`: no result is lost, MLflow only shows them"
        )


def sync(
    params: Params,
    experiments: Sequence[Experiment],
    *,
    strict: bool = True,
    root: Path = ARTIFACTS_DIR,
    timeout: float = LOCK_TIMEOUT,
) -> Counter[str]:
    """The commands `merit track sync` and, not strict, `merit track`, the pipeline's last stage.

    Makes MLflow show the records of `experiments`; prints and returns how many runs were "created",
    "updated", "deleted" and "unchanged". Outputs that do not exist yet are skipped. Runs of methods
    that are no longer in the YAML are deleted; if the method comes back, so do they. Raises
    MeritError where a record is unreadable and, if `strict`, where the store fails or another sync
    is running; otherwise that is one line on stderr.
    """
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    wanted = []
    for experiment in experiments:
        artifacts = Artifacts(experiment.name, root)
        shown = runs(experiment, artifacts)
        wanted.append((experiment, shown, mixture(experiment, artifacts)))
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
            f"MLflow at {params.tracking.uri} cannot be reached ({reason}); results are "
            "complete; `merit track sync` carries them over later",
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
    experiment_id = _experiment_id(client, experiment.name)
    known = _known(client, experiment_id)
    counts: Counter[str] = Counter()
    for key in set(known) - keys(experiment):
        if not _is_deleted(known[key]):
            client.delete_run(known[key].info.run_id)
            counts["deleted"] += 1
    new = {run.key for run in wanted} - set(known)
    for run in wanted:  # all ids come first: models and branches name each other
        if run.key in new:
            tags = {KEY: run.key}
            known[run.key] = client.create_run(experiment_id, run.start, tags, run.name)
        elif _is_deleted(known[run.key]):
            client.restore_run(known[run.key].info.run_id)
            known[run.key].data.tags.pop(CONTENT_HASH, None)  # what it holds may be old
    ids = {key: run.info.run_id for key, run in known.items()}
    for run in wanted:
        inputs = [trained_on] if trained_on and (run.parent or run.branches) else []
        tags = run.tags | {KEY: run.key} | _links(run, ids, experiment_id)
        values = [run.params, tags, [(p.key, p.step, p.value) for p in run.points]]
        files = {name: file_hash(path) for name, path in run.files.items()}
        content = value_hash([values, files, [one["digest"] for one in inputs]])
        if known[run.key].data.tags.get(CONTENT_HASH) == content:
            counts["unchanged"] += 1
            continue
        _write(client, run, known[run.key], tags, inputs)
        # last, so that a sync that was killed before this line is taken up again
        client.set_tag(ids[run.key], CONTENT_HASH, content)
        counts["created" if run.key in new else "updated"] += 1
    return counts


def _links(run: Run, ids: dict[str, str], experiment_id: str) -> dict[str, str]:
    """The tags that lead from a branch to its first model and from a model to its branches."""
    if run.parent:
        return {PARENT: ids[run.parent]}
    branches = {key.removeprefix("branch/"): ids[key] for key in run.branches}
    links = [f"[{name}](#/experiments/{experiment_id}/runs/{i})" for name, i in branches.items()]
    note = MODEL_NOTE + ("\n\nBranches: " + ", ".join(links) if links else "")
    return {"merit.branches": json.dumps(branches), NOTE: note, NOTE_HASH: value_hash(note)}


def _write(
    client: MlflowClient,
    run: Run,
    old: MlflowRun,
    tags: dict[str, str],
    inputs: list[dict[str, str]],
) -> None:
    """Put what the records say into the run `old`, whatever it holds."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    run_id, params = old.info.run_id, run.params
    note = old.data.tags.get(NOTE)
    if note and value_hash(note) != old.data.tags.get(NOTE_HASH):
        tags = {key: tag for key, tag in tags.items() if key != NOTE}  # a user's own
    if is_server(client.tracking_uri):
        changed = {k: v for k, v in params.items() if old.data.params.get(k, v) != v}
        params = {k: v for k, v in params.items() if k not in changed}
        tags = tags | ({"merit.changed_params": json.dumps(changed)} if changed else {})
    for key in old.data.tags:
        if key.startswith("merit.") and not tags.get(key):
            client.delete_tag(run_id, key)
    if not is_server(client.tracking_uri) and (old.data.params or old.data.metrics):
        _clear(client.tracking_uri, run_id, run.start)
    # MLflow's stores do not give NaN and infinity back as they were; such values stay records
    points = sorted(point for point in run.points if math.isfinite(point.value))
    metrics = [Metric(p.key, p.value, p.time, p.step) for p in points]
    for i in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[i : i + METRICS_PER_CALL])
    some = [Param(key, value) for key, value in params.items()]  # MLflow cuts what is too long
    for i in range(0, len(some), PARAMS_PER_CALL):
        client.log_batch(run_id, params=some[i : i + PARAMS_PER_CALL])
    tags = tags | {"mlflow.source.git.commit": _git_commit()}
    client.log_batch(run_id, tags=[RunTag(key, tag) for key, tag in tags.items() if tag])
    context = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(run_id, datasets=[DatasetInput(Dataset(**one), context) for one in inputs])
    for path, file in run.files.items():
        client.log_artifact(run_id, str(file), str(PurePosixPath(path).parent))
    client.set_terminated(run_id, "FINISHED", max((p.time for p in points), default=None))


def _clear(uri: str, run_id: str, start_time: int) -> None:
    """Delete what MLflow cannot change (see the module's docstring), in one transaction."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    inputs = "inputs WHERE source_type = 'DATASET' AND destination_id = :run"
    with create_engine(uri, poolclass=NullPool).begin() as connection:
        for statement in (
            "DELETE FROM params WHERE run_uuid = :run",
            "DELETE FROM metrics WHERE run_uuid = :run",
            "DELETE FROM latest_metrics WHERE run_uuid = :run",
            f"DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM {inputs})",
            f"DELETE FROM {inputs}",
            "UPDATE runs SET start_time = :start WHERE run_uuid = :run",
        ):
            connection.execute(text(statement), {"run": run_id, "start": start_time})


def _known(client: MlflowClient, experiment_id: str) -> dict[str, MlflowRun]:
    """The experiment's runs by key; a deleted one where there is no other."""
    from mlflow.entities import ViewType

    found = client.search_runs([experiment_id], "", ViewType.ALL, max_results=50_000)
    last_alive = sorted(found, key=_is_deleted, reverse=True)
    return {run.data.tags[KEY]: run for run in last_alive if KEY in run.data.tags}


def _is_deleted(run: MlflowRun) -> bool:
    return bool(run.info.lifecycle_stage == "deleted")


def _git_commit() -> str:
    """The commit that is checked out; "" outside of a git repository."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    with contextlib.suppress(OSError):  # git is not installed
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


# --- the store ----------------------------------------------------------------------------------


@contextlib.contextmanager
def open_store(uri: str, timeout: float = LOCK_TIMEOUT) -> Iterator[MlflowClient]:
    """A client of a store that can be written. Raises StoreError where the store fails."""
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
    try:
        if uri.startswith("sqlite:"):
            _probe(uri, timeout)
        yield mlflow.MlflowClient(tracking_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:  # OSError: requests' errors too
        raise StoreError(uri, error) from error


def _probe(uri: str, timeout: float) -> None:
    """Open the SQLite file for writing, or fail within `timeout`; MLflow itself would try for
    minutes. A file that does not exist is created."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if path := sqlite_path(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(uri, poolclass=NullPool, connect_args={"timeout": timeout})
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("SELECT COUNT(*) FROM sqlite_master")
        connection.rollback()


def is_server(uri: str) -> bool:
    return uri.startswith("http")


def sqlite_path(uri: str) -> Path | None:
    """The file behind sqlite:///<path>; None for memory, file: URIs and servers."""
    path = uri.removeprefix("sqlite:///")
    return None if path in (uri, ":memory:") or path.startswith("file:") else Path(path)


def _experiment_id(client: MlflowClient, name: str) -> str:
    """The id of the MLflow experiment `name`, created where it is absent or was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(client.tracking_uri)  # artifacts lie beside the database
        location = (path.parent.resolve() / "mlruns" / name).as_uri() if path else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens at the runs
        return str(client.create_experiment(name, location, kind))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
