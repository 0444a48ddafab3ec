"""MLflow's UI on the loopback."""

from __future__ import annotations

import os
import socket
import sys

from merit.config import Params
from merit.errors import MeritError
from merit.io.store import LOCK_TIMEOUT, open_store, sqlite_path

HOST = "127.0.0.1"
CHART_VIEW = "workflowType=machine_learning&compareRunsMode=CHART"


def serve(params: Params, port: int) -> None:
    """The command `merit ui`: print where the experiments' charts are, then be MLflow's server.

    It listens on 127.0.0.1 alone. Raises MeritError where nothing has been tracked yet, where the
    port is taken, or where `tracking.uri` is a server already.
    """
    uri = params.tracking.uri
    if uri.startswith("http"):
        raise MeritError(f"params.yaml: key `tracking.uri`: a server already: open {uri}")
    nothing = f"{uri}: nothing has been tracked yet; `make repro` does (or `merit track sync`)"
    path = sqlite_path(uri)
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
    with open_store(uri, LOCK_TIMEOUT) as client:
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
