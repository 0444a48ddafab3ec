"""MLflow's store: opened for writing, or refused with one message that says what to do.

The only module that imports mlflow, and only when a store is opened.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from merit.errors import MeritError

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_TIMEOUT = 10.0  # seconds to wait for a locked database or a silent server


@contextmanager
def open_store(uri: str, timeout: float = LOCK_TIMEOUT) -> Iterator[MlflowClient]:
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

    if path := sqlite_path(uri):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MeritError(_advice(uri, str(error))) from error
    engine = create_engine(uri, poolclass=NullPool, connect_args={"timeout": timeout})
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("SELECT COUNT(*) FROM sqlite_master")
        connection.rollback()


def sqlite_path(uri: str) -> Path | None:
    """The file behind sqlite:///<path>; None for memory, file: URIs and servers."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database if uri.startswith("sqlite:") else None
    if not database or database == ":memory:" or database.startswith("file:"):
        return None
    return Path(database)


def experiment_id_of(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the MLflow experiment `name`, created where it is absent or was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(uri)  # artifacts lie beside the database; a server has its own place
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
