"""What results are compared by: hashes of generated data, and the values of a smoke run.

Golden smoke runs lie in tests/golden/, one for every kind of machine whose base has been seen.
After a change that is meant to alter results, delete them and write one again:

    python -m tests.golden_values
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from merit.config import load_experiment
from merit.config.branches import plan
from merit.io.artifacts import KEY, Artifacts, file_hash, read_json, read_jsonl, write_json
from merit.run import smoke

GOLDEN = Path(__file__).parent / "golden"


def smoke_file(values: dict[str, Any]) -> Path:
    """Where a smoke run's values are kept: by its base, which is all that machines differ in."""
    return GOLDEN / f"smoke-{values['base_hash'][:8]}.json"


def smoke_values(folder: Path) -> dict[str, Any]:
    """What a finished smoke run in `folder` is compared by.

    `data`, `num_tokens` and `groups` of the methods that read no gradient are the same on every
    machine. The rest follows from `base_hash`: floating point may differ between machines.
    """
    paths = Artifacts(smoke.NAME, folder / "artifacts")
    experiment = load_experiment(smoke.NAME, folder / "experiments")
    branches = plan(experiment).branches
    manifests = {branch: read_json(paths.manifest(branch)) for branch in branches}
    return {
        "data": data_hashes(paths.data),
        "num_tokens": {branch: m["num_tokens"] for branch, m in manifests.items()},
        "groups": read_json(paths.partition / "partitions.json"),
        "base_hash": read_json(paths.base / "base.json")["base_hash"],
        "losses": {b: read_jsonl(paths.branch(b) / "records.jsonl")[-1]["loss"] for b in branches},
        "displacements": {
            branch: read_json(paths.branch(branch) / "summary.json")["displacement"]
            for branch in branches
        },
        "checkpoints": {
            branch: file_hash(paths.branch(branch) / "model.safetensors") for branch in branches
        },
        "scores": read_json(paths.evaluation / "scores.json")["scores"],
    }


def data_hashes(data: Path) -> dict[str, str]:
    """SHA-256 of the parts of the data stage's output, pictures by their pixels.

    A PNG's bytes depend on the compression library, its pixels do not.
    """
    return {
        "texts": _tree_hash(data, (".json", ".jsonl"), lambda path: path.read_bytes()),
        "images": _tree_hash(data, (".zip",), _pictures),
        "benchmarks": _tree_hash(data / "benchmarks", (".tsv",), _questions),
    }


def _tree_hash(folder: Path, suffixes: tuple[str, ...], content: Callable[[Path], bytes]) -> str:
    total = hashlib.sha256()
    files = (p for p in folder.rglob("*") if p.suffix in suffixes and p.name != KEY)
    for path in sorted(files):
        inner = hashlib.sha256(content(path)).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {inner}\n".encode())
    return total.hexdigest()


def _pictures(path: Path) -> bytes:
    """The members of an archive in their order, each by its name and the hash of its pixels."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    hashes = [(name, hashlib.sha256(_pixels(png)).hexdigest()) for name, png in members]
    return "\n".join(f"{name} {pixels}" for name, pixels in hashes).encode()


def _questions(path: Path) -> bytes:
    """A benchmark's rows with every image replaced by the hash of its pixels."""
    csv.field_size_limit(1 << 30)  # a cell holds an image
    lines = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            row["image"] = hashlib.sha256(_pixels(base64.b64decode(row["image"]))).hexdigest()
            lines.append(repr(sorted(row.items())))
    return "\n".join(lines).encode()


def _pixels(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png))
    return repr((image.mode, image.size)).encode() + image.tobytes()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="merit-smoke-") as made:
        smoke.run_all(Path(made))
        found = smoke_values(Path(made))
    write_json(smoke_file(found), found)
    print(f"{smoke_file(found)} written")
