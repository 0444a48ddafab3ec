"""Processes of DVC, which run a chunk of stages in order: with what environment and on what GPUs.

A stage is forked from a process that has torch loaded (merit.forkserver) unless it may ask the hub.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

from merit.errors import MeritError
from merit.launch.local import Slots

RAN = re.compile(r"^Running stage '(.+)':")
# what DVC says at length when it has nothing to say
NOISE = (
    *("didn't change, skipping", "To track the changes", "git add", "To enable auto staging"),
    *("core.autostage", "Use `dvc push`", "Updating lock file", "Generating lock file"),
    "Data and pipelines are up to date",
)
Chunk = list[str]  # stages of one process of DVC, in their order


def stale(targets: Sequence[str]) -> set[str]:
    """The stages that DVC finds changed, of these targets (all by default)."""
    result = subprocess.run(
        [*dvc(), "--wait-for-lock", "status", "--json", *targets],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if result.returncode:
        raise MeritError(f"`dvc status` failed:\n{result.stderr.strip()}")
    return set(json.loads(result.stdout))


class Places:
    """Where chunks run: the GPUs of a slot, those of experiments that use one; forked or alone.

    Args: slots: the GPUs of each, as CUDA_VISIBLE_DEVICES names them; on_gpu, alone: experiments.
    """

    def __init__(self, slots: Slots, on_gpu: Container[str], alone: Container[str]) -> None:
        self.free: Queue[list[str]] = Queue()
        for gpus in slots:
            self.free.put(gpus)
        self.on_gpu, self.alone = on_gpu, alone

    @contextmanager
    def place(self, chunk: Chunk) -> Iterator[dict[str, str]]:
        """The chunk's environment; waits until a slot is free."""
        x = experiment_of(chunk[0])
        variables = environment()
        if x in self.alone:  # the hub's client of the process that stages are forked from is off
            variables.pop("MERIT_FORK", None)
        if x not in self.on_gpu:
            yield variables
            return
        gpus = self.free.get()
        try:
            yield variables | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        finally:
            self.free.put(gpus)


def dvc_repro(chunk: Chunk, variables: Mapping[str, str]) -> bool:
    """Whether it succeeded. The stages' own lines are passed on, DVC's chatter is not."""
    command = [*dvc(), "--wait-for-lock", "repro", "--single-item", *chunk]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            chatter = line.startswith("> ") or any(words in line for words in NOISE)
            if line.strip() and not chatter and not RAN.match(line):
                print(line, end="", flush=True)
    return process.returncode == 0


def dvc() -> list[str]:
    return [sys.executable, "-m", "dvc"]


def environment() -> dict[str, str]:
    """This process's, with its own Python first on the path and no telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}


@contextmanager
def fork_server(code: Path = Path()) -> Iterator[None]:
    """A process with torch loaded, which the stages are forked from while the block runs.

    Args: code: the repository whose code it loads.
    """
    with tempfile.TemporaryDirectory(prefix="merit-") as folder:
        path = str(Path(folder) / "socket")
        command = "import sys; from merit.forkserver import serve; serve(sys.argv[1])"
        process = subprocess.Popen([sys.executable, "-c", command, path], cwd=code)
        os.environ["MERIT_FORK"] = path
        try:
            yield
        finally:
            del os.environ["MERIT_FORK"]
            process.terminate()
            process.wait()


def experiment_of(stage: str) -> str:
    """experiments/mini_vision/dvc.yaml:score -> mini_vision; "" of what is over all."""
    return Path(stage.rpartition(":")[0]).parent.name
