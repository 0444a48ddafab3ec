"""The command `merit ui`: MLflow's own UI, with links to the experiments' charts."""

from __future__ import annotations

import os
import sys

from merit.config import Params
from merit.errors import MeritError
from merit.track import is_server, open_store, sqlite_path

HOST = "127.0.0.1"
CHART_VIEW = "workflowType=machine_learning&compareRunsMode=CHART"


def serve(params: Params, port: int) -> None:
    """Print where the experiments' charts are, then be MLflow's server.

    It listens only on 127.0.0.1. Raises MeritError where nothing has been tracked yet, or where
    `tracking.uri` is a server already.
    """
    uri = params.tracking.uri
    if is_server(uri):
        raise MeritError(f"params.yaml: key `tracking.uri`: a server already: open {uri}")
    nothing = f"{uri}: nothing has been tracked yet; `merit track` does it"
    if (path := sqlite_path(uri)) and not path.is_file():
        raise MeritError(nothing)
    with open_store(uri) as client:
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
