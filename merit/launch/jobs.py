"""One branch's command, the files that say how it goes, and whether it is finished."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from merit.io.artifacts import Artifacts, read_json, value_hash

STOPPED = os.EX_TEMPFAIL  # 75, the exit status of a training that was stopped and can go on
# The command, whose exit status is in the file $0 when it has ended. The shell outlives the
# signals that stop a training, since the status comes after them.
SHELL = 'trap : TERM USR2; "$@"; code=$?; echo $code > "$0.tmp"; mv "$0.tmp" "$0"; exit $code'


@dataclass(frozen=True)
class Work:
    """One branch to be trained by a command, from the repository's root."""

    experiment: str
    branch: str
    command: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return Artifacts(self.experiment).launch

    @property
    def log(self) -> Path:
        """What the command prints; attempts one below the other."""
        return self.folder / f"{self.branch}.log"

    @property
    def status(self) -> Path:
        """Its exit status; missing before it ends, and where it died."""
        return self.folder / f"{self.branch}.status"

    @property
    def shell(self) -> list[str]:
        """The command as it is started: it leaves its exit status behind."""
        return ["sh", "-c", SHELL, str(self.status), *self.command]

    def clear(self, again: bool) -> None:
        """Before an attempt: no status; the words of another one follow those of the first."""
        if not again:
            self.log.unlink(missing_ok=True)
        self.status.unlink(missing_ok=True)

    def exit_status(self) -> int | None:
        """None while it runs, and where it died without one."""
        try:
            return int(self.status.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def finished(self) -> bool:
        """Whether the branch's output is that of its present manifest."""
        paths = Artifacts(self.experiment)
        summary = paths.branch(self.branch) / "summary.json"
        if not summary.is_file():
            return False
        present = value_hash(read_json(paths.manifest(self.branch)))
        return read_json(summary).get("manifest_hash") == present

    def progress(self) -> str:
        """The last "step/steps" of the log; "" where there is none."""
        found = re.findall(rf"^{re.escape(self.branch)}: (\d+/\d+)", self.tail(), re.MULTILINE)
        return found[-1] if found else ""

    def last_words(self) -> str:
        """The log's last line; "" where there is none."""
        lines = self.tail().strip().splitlines()
        return lines[-1] if lines else ""

    def tail(self, num_bytes: int = 4096) -> str:
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - num_bytes))
            return file.read().decode("utf-8", errors="replace")
        return ""


def train_command(experiment: str, branch: str, num_gpus: int) -> tuple[str, ...]:
    """The plain stage, or with several GPUs the stage as so many ranks of torchrun."""
    stage = ("train", experiment, branch)
    if num_gpus < 2:
        return ("bin/merit", *stage)
    return (sys.executable, "-m", "merit.launch.ranks", str(num_gpus), *stage)


def environment() -> dict[str, str]:
    """This process's, with its own Python first on the path, as bin/merit looks for one there; and
    without the process that `make repro` forks stages from.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    kept = {key: value for key, value in os.environ.items() if key != "MERIT_FORK"}
    return {**kept, "PATH": path}


def ending(status: int) -> str:
    """An exit status in words."""
    if status <= 128:
        return f"ended with exit status {status}"
    number = status - 128
    why = " (out of memory?)" if number == signal.SIGKILL else ""
    return f"was ended by signal {number}{why}"
