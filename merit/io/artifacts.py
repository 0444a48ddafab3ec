"""Every path of an experiment's artifacts, atomic writes and provenance.

The layout (all under artifacts/<experiment>/, each a DVC output; <experiment>-<base> likewise):

    data/               pretraining/, mixture/, benchmarks/
    base/               theta0 as a Hugging Face folder, records.jsonl, base.json
    encoded/            the mixture's token ids and cached vision features, memory-mapped
    gradients/          gradients.npy (num_tasks, kept entries), tasks.json (order, norms)
    partition/          similarity.npy, embedding.npy, tables, manifests/<branch>.json
    branches/<run>/<branch>/  model.safetensors (trained tensors only), manifest.json,
                        records.jsonl, summary.json
    models/<id>/        the merged model as a Hugging Face folder, merge.json
    evaluation/         questions/, answers/<model>.json, predictions/<model>.jsonl, scores.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from merit.errors import MeritError
from merit.io.disk import check_file, writing
from merit.io.locks import exclusive, lock_folder
from merit.io.texts import jsonl_records, parse_json, read_text

ARTIFACTS_DIR = Path("artifacts")
REPORTS_DIR = Path("reports")
KEY = "key.json"  # beside an item's result: what it was made from (merit.run.store)
WORK = ".work"  # of an experiment's folder: unfinished results


class Artifacts:
    """The paths of one experiment."""

    def __init__(self, experiment: str, root: Path = ARTIFACTS_DIR) -> None:
        self.experiment, self.folder = experiment, root / experiment
        self.data = self.folder / "data"
        self.mixture = self.data / "mixture"
        self.base = self.folder / "base"
        self.encoded = self.folder / "encoded"
        self.gradients = self.folder / "gradients"
        self.partition = self.folder / "partition"
        self.evaluation = self.folder / "evaluation"
        self.questions = self.evaluation / "questions"
        # what a judge was asked and answered: no output, but replayed where it is
        self.judgements = self.folder / "judgements.jsonl"
        self.report = REPORTS_DIR / experiment

    def manifest(self, branch: str) -> Path:
        return self.partition / "manifests" / f"{branch}.json"

    def branch(self, branch: str) -> Path:
        """A model's branches share a folder, so that DVC can make the model depend on it."""
        run = re.sub(r"-[gs]\d+$", "", branch)
        return self.folder / "branches" / run / branch

    def model(self, model: str) -> Path:
        return self.folder / "models" / model

    def answers(self, model: str) -> Path:
        return self.evaluation / "answers" / f"{model}.json"

    def predictions(self, model: str) -> Path:
        return self.evaluation / "predictions" / f"{model}.jsonl"

    def timing(self, branch: str) -> Path:
        """Wall-clock records of a branch's steps: no output, they differ from run to run."""
        return self.folder / "timings" / f"{branch}.jsonl"


def study_folder(experiment: str, study: str) -> Path:
    """Where a study's result, tables and figures lie; committed to git."""
    return REPORTS_DIR / "studies" / experiment / study


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A fresh folder that takes `path`'s place only when the block ends without an error.

    A killed or failed writer leaves what stood at `path` as it was. What a killed one has written
    is removed by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        with lock_folder(temporary), writing(path):
            # under a name that others may remove only once it is locked
            temporary = temporary.rename(temporary.with_name(f"{temporary.name}.new"))
            yield temporary
            _share(temporary)
            _take_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left(path: Path) -> None:
    """Remove the folders of writers of `path` that were killed: nobody has them locked."""
    left = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.new")
    for other in path.parent.iterdir():
        if left.fullmatch(other.name):
            with contextlib.suppress(OSError), lock_folder(other, needed=True):
                shutil.rmtree(other, ignore_errors=True)


def _take_place(new: Path, path: Path) -> None:
    """Move `new` to `path`. An older folder there is removed last, and back if that fails."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # a killed process left it
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give the folder's files, of which safetensors' are private, the mode that the umask allows:
    mkdir has applied it to the folder.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(mode)


def work_place(path: Path) -> Path:
    """Where unfinished work on `path` is kept: artifacts/<experiment>/.work/..., for other paths
    beside them. DVC empties a stage's outputs before it runs the stage; it never sees this folder.
    """
    if path.parts[0] == ARTIFACTS_DIR.name and len(path.parts) > 2:
        return Path(*path.parts[:2], WORK, *path.parts[2:])
    return path


def open_partial(path: Path, key: str) -> Path:
    """The folder that holds the unfinished work on `path` with this key, made if it is missing.

    `key` is a hash of all that decides the result; folders of other keys, left by killed writers,
    are removed. Several processes may fill one folder, each its own files.
    """
    place = work_place(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.parent / f".{place.name}.{key[:16]}"
    stale = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{16}}")
    for other in place.parent.iterdir():
        if other != partial and stale.fullmatch(other.name):
            shutil.rmtree(other, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    return partial


@contextlib.contextmanager
def partial_folder(path: Path, key: str, what: str = "is being written") -> Iterator[Path]:
    """As `atomic_folder`, for long work: what a killed or failed block has left is there again.

    The block finds in the folder whatever an earlier one with the same `key` wrote, and skips it;
    it must write every file whole (`atomic_write`) or know how far it came. The folder takes
    `path`'s place when the block ends without an error.
    Raises MeritError, saying `what` is done, where another process is at the same work.
    """
    with exclusive(work_place(path), what):
        partial = open_partial(path, key)
        with writing(path):
            yield partial
        _share(partial)
        path.parent.mkdir(parents=True, exist_ok=True)
        _take_place(partial, path)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing; a file that holds these bytes already is not touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with writing(path):
            temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented, key-sorted JSON with a final newline: the same value is the same bytes."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises MeritError that names the file where it is missing or not JSON."""
    return parse_json(read_text(path), str(path))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Raises MeritError that names the file and the line where one is not a JSON object."""
    return list(jsonl_records(path))


def read_array(path: Path) -> np.ndarray:
    """A memory-mapped array. Raises MeritError that names the file where it cannot be read."""
    check_file(path)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MeritError(f"{path}: file not found") from None
    except PermissionError:
        raise
    except Exception as error:  # numpy evaluates the header: anything may come of a broken one
        raise MeritError(f"{path}: truncated, or not a .npy array of numbers ({error})") from None
    if not isinstance(found, np.ndarray):  # .npz, or another zip: torch.save's
        raise MeritError(f"{path}: an archive; save the one array in it with numpy.save")
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises MeritError for a pipe or a device."""
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(path: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files, its key apart."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p != path / KEY)
    return value_hash([[str(p.relative_to(path)), file_hash(p)] for p in files])


def value_hash(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
