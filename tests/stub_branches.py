"""A workspace whose branches are trained by a stub in bin/merit, for the tests of `merit launch`.

What a branch does stands in behaviour/<branch>: the words of STUB. Its attempts are counted in
attempts/<branch>, and what GPUs an attempt saw stands in gpus/<branch>.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from merit.config import PARAMS_FILE, Params
from merit.io.artifacts import Artifacts, read_json, value_hash, write_json

ROOT = Path(__file__).parent.parent
NAME = "mini_vision"
STUB = """#!{python} -SE
import hashlib, json, os, pathlib, signal, sys, time

stage, experiment, branch = sys.argv[1:]
folder = pathlib.Path("artifacts", experiment)
behaviour = pathlib.Path("behaviour", branch)
words = behaviour.read_text().split() if behaviour.exists() else ["train"]
attempts = pathlib.Path("attempts", branch)
attempt = int(attempts.read_text()) + 1 if attempts.exists() else 1
attempts.write_text(str(attempt))
pathlib.Path("gpus", branch).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
print(f"{{branch}}: {{attempt}}/2, about 00:01 left", flush=True)

if "stops" in words:  # on USR2 or TERM: a checkpoint, and status 75
    checkpoint = pathlib.Path("checkpoint", branch)

    def stop(number, _):
        for again in (signal.SIGUSR2, signal.SIGTERM):  # or a second one would end the exit
            signal.signal(again, signal.SIG_IGN)
        checkpoint.write_text(signal.Signals(number).name)
        sys.exit(75)

    signal.signal(signal.SIGUSR2, stop)
    signal.signal(signal.SIGTERM, stop)
    if not checkpoint.exists():
        pathlib.Path("up", branch).touch()
        time.sleep(60)
if "waits" in words:
    pathlib.Path("up", branch).touch()
    deadline = time.time() + 60
    while not pathlib.Path("go").exists() and time.time() < deadline:
        time.sleep(0.02)
if "tires" in words and attempt <= int(words[1]):  # exits with 75 by itself, so often
    sys.exit(75)
if "fails" in words:
    print("merit: error: the loss is nan", file=sys.stderr)
    sys.exit(2)
if "dies" in words:
    os.killpg(0, signal.SIGKILL)
if "idles" in words:
    sys.exit(0)
manifest = json.loads((folder / "partition" / "manifests" / f"{{branch}}.json").read_text())
output = folder / "branches" / branch.rpartition("-")[0] / branch
output.mkdir(parents=True, exist_ok=True)
text = json.dumps(manifest, sort_keys=True).encode()
summary = {{"manifest_hash": hashlib.sha256(text).hexdigest()}}
(output / "summary.json").write_text(json.dumps(summary))
"""


class Stubs:
    """The workspace, which must be the current folder while branches are launched."""

    def __init__(self, folder: Path, **launch: object) -> None:
        self.folder = folder
        self.paths = Artifacts(NAME, folder / "artifacts")
        others = shutil.ignore_patterns("dvc.*")  # a test that uses DVC has a pipeline of its own
        shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=others)
        values = yaml.safe_load((ROOT / PARAMS_FILE).read_text(encoding="utf-8"))
        self.params = Params.model_validate(values | {"launch": launch})
        text = yaml.safe_dump(self.params.model_dump(mode="json"))
        (folder / PARAMS_FILE).write_text(text, encoding="utf-8")
        for name in ("behaviour", "attempts", "gpus", "checkpoint", "up", "bin"):
            (folder / name).mkdir()
        (folder / "bin" / "merit").write_text(STUB.format(python=sys.executable), encoding="utf-8")
        (folder / "bin" / "merit").chmod(0o755)
        write_json(self.paths.base / "base.json", {})

    def branch(self, name: str, behaviour: str = "train") -> str:
        """One of the experiment's branches, which will do so."""
        (self.folder / "behaviour" / name).write_text(behaviour, encoding="utf-8")
        write_json(self.paths.manifest(name), {"branch": name})
        return name

    def finished(self, name: str) -> bool:
        summary = self.paths.branch(name) / "summary.json"
        wanted = value_hash(read_json(self.paths.manifest(name)))
        return summary.is_file() and read_json(summary)["manifest_hash"] == wanted

    def attempts(self, name: str) -> int:
        return int(self.note("attempts", name) or 0)

    def note(self, kind: str, name: str) -> str:
        path = self.folder / kind / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def log(self, name: str) -> str:
        return (self.paths.launch / f"{name}.log").read_text(encoding="utf-8")

    def jobs(self) -> dict[str, dict[str, str]]:
        path = self.paths.launch / "jobs.json"
        return read_json(path) if path.exists() else {}

    def wait_for(self, *names: str) -> None:
        """Until the branches have come to the point where they wait."""
        until(lambda: all((self.folder / "up" / name).exists() for name in names))


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
