"""A stage for tests of the executor: it writes what its item is called, or does worse."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from merit.errors import MeritError
from merit.io.artifacts import atomic_folder


def run(experiment: str, item: str | None = None) -> None:
    assert item is not None
    with open("calls.log", "a", encoding="utf-8") as log:
        log.write(f"{item}\n")
    behaviour = Path(f"{item}.does")
    match behaviour.read_text(encoding="utf-8").strip() if behaviour.is_file() else "":
        case "refuse":
            raise MeritError(f"{item}: the loss is nan")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "bug":
            raise ZeroDivisionError("a bug")
        case "stop":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
            Path("started").write_text(str(os.getpid()))
            time.sleep(600)
    with atomic_folder(Path("artifacts", experiment, "things", item)) as folder:
        (folder / "text").write_text(f"{item} by {os.environ.get('CUDA_VISIBLE_DEVICES', 'cpu')}\n")
