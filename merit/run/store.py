"""Results by key: an item's outputs, the record of what they were made from, and a store of both.

An item is what a stage makes at once: a branch, a model, a model's answers, a study, or all of the
stage's results. Its record (key.json) is written after its outputs and names every file with its
size and hash. The store, artifacts/<experiment>/.store, holds hard links to every finished item, so
that a setting that is changed back, or outputs that DVC has removed, cost nothing. It may be
deleted.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.errors import MeritError
from merit.io.artifacts import atomic_folder, file_hash, read_json, value_hash, write_json

STORE = ".store"
Key = Mapping[str, str]


class NotReady(MeritError):
    """An input of an item is not there yet."""


@dataclass(frozen=True)
class Item:
    """One result of a stage: its outputs, and the record in one of them or beside them."""

    experiment: str
    stage: str
    name: str  # of the branch, model or study; "" for a stage with one result
    outputs: tuple[Path, ...]
    record: Path

    @property
    def label(self) -> str:
        return f"{self.stage} {self.name}".strip()

    def read_record(self) -> dict[str, Any] | None:
        """{"key", "files", "hash"}, or None if the item was never finished."""
        return read_record(self.record) if self.record.is_file() else None

    def files(self) -> Iterator[tuple[str, Path]]:
        """(name in the record, file) of all outputs, the record apart."""
        for output in self.outputs:
            inside = sorted(output.rglob("*")) if output.is_dir() else [output]
            for file in inside:
                if file.is_file() and file != self.record:
                    yield str(file.relative_to(output.parent)), file

    def is_whole(self, record: Mapping[str, Any]) -> bool:
        """Whether the recorded files are there with their sizes."""
        sizes = {name: file.stat().st_size for name, file in self.files()}
        return sizes == {name: size for name, (size, _) in record["files"].items()}

    def is_current(self, key: Key) -> bool:
        record = self.read_record()
        return record is not None and record["key"] == key and self.is_whole(record)

    def changed(self, key: Key) -> str:
        """Why the item is out of date, in words; "" if it is current."""
        record = self.read_record()
        if record is None:
            return "not there yet"
        parts = [part for part in key if record["key"].get(part) != key[part]]
        if parts:
            return f"changed: {', '.join(parts)}"
        return "" if self.is_whole(record) else "its files are not those of its record"

    def damage(self, below: str = "") -> str:
        """What is not as the record says, in words; "" if every file has its recorded bytes.

        `below`: only of files whose names begin with it. Every one is read, a second for a GB.
        """
        record = self.read_record()
        if record is None:
            return f"{self.record}: file not found"
        found = {name: file for name, file in self.files() if name.startswith(below)}
        recorded = {n: sha for n, (_, sha) in record["files"].items() if n.startswith(below)}
        with ThreadPoolExecutor() as pool:
            hashes = dict(zip(found, pool.map(file_hash, found.values()), strict=True))
        for name in sorted(recorded | hashes):
            if recorded.get(name) != hashes.get(name):
                return f"{self.outputs[0].parent / name}: not what its record says"
        return ""

    def check(self, below: str = "") -> None:
        """Raises MeritError, naming the file, unless every file has its recorded bytes."""
        if why := self.damage(below):
            raise MeritError(f"{why}; {advice(self.outputs[0])}")

    def finish(self, key: Key, stored: bool = True) -> None:
        """Write the record of the outputs that have just been made, and store them."""
        files = {name: [file.stat().st_size, file_hash(file)] for name, file in self.files()}
        write_json(self.record, {"key": key, "files": files, "hash": hash_of_files(files)})
        if stored:
            self.put(key)

    def remove(self) -> None:
        for output in self.outputs:
            remove(output)

    # --- the store ------------------------------------------------------------------------------

    def place(self, key: Key) -> Path:
        store = Path("artifacts", self.experiment, STORE)
        return store / self.stage / (self.name or "all") / value_hash(dict(key))[:24]

    def put(self, key: Key) -> None:
        """Link the outputs into the store, unless they are there."""
        place = self.place(key)
        if not place.is_dir():
            with atomic_folder(place) as new:
                for output in self.outputs:
                    link(output, new / output.name)

    def take(self, key: Key) -> bool:
        """Bring the item of this key back from the store, if it is there and undamaged."""
        place = self.place(key)
        if not place.is_dir():
            return False
        self.remove()
        for output in self.outputs:
            link(place / output.name, output)
        try:
            why = self.damage()
        except MeritError as error:
            why = str(error)
        if why:
            print(f"in the store: {why}; it is made again", file=sys.stderr)
            self.remove()
            remove(place)
        return not why

    def adopt(self) -> None:
        """Store a finished item that came from elsewhere: DVC's cache or another machine."""
        record = self.read_record()
        if record and self.is_whole(record):
            self.put(record["key"])


_copied = False


def link(source: Path, target: Path) -> None:
    """Hard links to a file or to all files of a folder; copies on a file system without them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    global _copied
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        if not _copied:
            print(f"{target}: no hard links here, so results are stored as copies", file=sys.stderr)
            _copied = True
        shutil.copyfile(source, target)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prune(root: Path, expected: Sequence[Path]) -> list[Path]:
    """Remove what lies below `root` and is not expected there; returns what was removed."""
    removed = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path in expected or path.name.startswith("."):
            continue
        if path.is_dir() and any(path in other.parents for other in expected):
            removed += prune(path, expected)
        else:
            remove(path)
            removed.append(path)
    return removed


def hash_of(record: Path, below: str = "") -> str:
    """The hash of a finished item, or of its files whose names begin with `below`.

    Raises NotReady if the item is not there.
    """
    if not record.is_file():
        raise NotReady(f"{record.parent} is not there yet")
    found = read_record(record)
    return hash_of_files(found["files"], below) if below else found["hash"]


def hash_of_files(files: Mapping[str, Any], below: str = "") -> str:
    """Over the names and hashes of a record's files."""
    return value_hash(sorted((n, sha) for n, (_, sha) in files.items() if n.startswith(below)))


def read_record(path: Path) -> dict[str, Any]:
    """{"key", "files", "hash"}. Raises MeritError, naming the file, where it is no such record."""
    try:
        found = read_json(path)
        if isinstance(found["key"], dict) and found["hash"] == hash_of_files(found["files"]):
            return found
    except (MeritError, TypeError, KeyError, ValueError, AttributeError):
        pass
    raise MeritError(f"{path}: damaged; {advice(path)}")


def advice(damaged: Path) -> str:
    return f"bring a good copy back (`dvc checkout`), or remove {damaged}, and it is made again"
