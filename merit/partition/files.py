"""Groups from anybody's gradients: `merit partition --gradients` and `merit extend`.

No experiment is needed: a .npy file with one gradient per row, and the tasks' names and sizes. What
is written is a folder (docs/formats.md) that `extend` adds further tasks to, from O(T m) products.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merit.errors import MeritError
from merit.io.artifacts import atomic_folder, atomic_write, read_array, read_json, write_json
from merit.method.partition import merit_groups
from merit.method.similarity import (
    Pca,
    cosines_and_norms,
    extend_cosine_matrix,
    gradient_norm,
    inner_products,
    pca,
)

Matrix = tuple[np.ndarray, np.ndarray]  # cosines (T, T), norms (T,)


@dataclass(frozen=True)
class Rows:
    """A file of gradients (T, D), memory-mapped, with its tasks in the order of the rows."""

    path: Path
    gradients: np.ndarray
    names: list[str]
    counts: np.ndarray  # (T,) samples

    @property
    def kept(self) -> dict[str, Any]:
        """Which entries of which model's gradients these are, if the gradients stage wrote them."""
        beside = self.path.parent / "tasks.json"
        stored = read_json(beside) if beside.is_file() else {}
        if not isinstance(stored, dict):
            return {}
        keys = ("stride", "sketch_size", "sketch_seed", "num_parameters", "base_hash")
        return {key: stored[key] for key in keys if key in stored}


def partition_files(gradients: Path, tasks: Path, axes: int, out: Path) -> None:
    """Write `out`: similarity, PCA and the 2^axes groups of the tasks (Algorithm 1, steps 1 to 3).

    Raises MeritError if a file cannot be used or `out` exists already.
    """
    rows = read_rows(gradients, tasks)
    similarity, norms = _with_path(gradients, lambda: cosines_and_norms(rows.gradients))
    write_groups(out, similarity, norms, [rows], axes)


def extend_files(folder: Path, gradients: Path, tasks: Path, out: Path) -> None:
    """Write `out`: a folder of `merit partition --gradients`, or of this, with further tasks.

    Only products with the new gradients are computed; the groups are those of all tasks.
    Raises MeritError if a file cannot be used or `out` exists already.
    """
    stored, old = read_groups(folder)
    new = read_rows(gradients, tasks)
    width = old[0].gradients.shape[1]
    if new.gradients.shape[1] != width or new.kept != stored["kept"]:
        found, expected = (
            ", ".join(f"{key} {value}" for key, value in {"entries": n, **kept}.items())
            for n, kept in ((new.gradients.shape[1], new.kept), (width, stored["kept"]))
        )
        raise MeritError(
            f"{gradients}: found {found}; {folder} was made of {expected}: take the new gradients "
            "with the same model and settings"
        )
    both = sorted({name for rows in old for name in rows.names} & set(new.names))
    if both:
        raise MeritError(f"{tasks}: task {both[0]!r} is in {folder} already; rename or remove it")
    similarity, norms = _with_path(
        gradients,
        lambda: extend_cosine_matrix(
            read_array(folder / "similarity.npy"),
            np.array([task["norm"] for task in stored["tasks"]]),
            [rows.gradients for rows in old],
            new.gradients,
        ),
    )
    write_groups(out, similarity, norms, [*old, new], stored["axes"])


def read_rows(gradients: Path, tasks: Path) -> Rows:
    """The gradients with their tasks. Raises MeritError, naming the file, if they do not match."""
    array = read_array(gradients)
    if array.ndim != 2 or array.dtype.kind != "f" or not array.size:
        raise MeritError(
            f"{gradients}: found {array.dtype} of shape {array.shape}; expected floating-point "
            "numbers, one gradient per row"
        )
    entries = read_json(tasks)
    if not isinstance(entries, list):
        raise MeritError(f"{tasks}: expected a list of tasks, found {type(entries).__name__}")
    names, counts = [], []
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, str):
            entry = {"task": entry, "num_samples": 1}
        name, count = (
            (entry.get("task"), entry.get("num_samples")) if isinstance(entry, dict) else (None, 0)
        )
        if not isinstance(name, str) or type(count) is not int:
            raise MeritError(
                f"{tasks}, entry {number}: found {entry!r}, expected a name or "
                '{"task": name, "num_samples": number}'
            )
        names.append(name)
        counts.append(count)
    if len(names) != len(array):
        raise MeritError(f"{tasks}: {len(names)} tasks for the {len(array)} rows of {gradients}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise MeritError(f"{tasks}: task {twice!r} is named twice")
    return Rows(gradients, array, names, np.array(counts))


def write_groups(
    out: Path, similarity: np.ndarray, norms: np.ndarray, files: Sequence[Rows], axes: int
) -> None:
    """similarity.npy, embedding.npy, pca.json, splits.json, groups.csv and tasks.json."""
    if out.exists():
        raise MeritError(f"{out}: there already; remove it or name another folder")
    names = [name for rows in files for name in rows.names]
    counts = np.concatenate([rows.counts for rows in files])
    if not 1 <= axes <= math.log2(len(names)):
        raise MeritError(f"--axes {axes}: {2**axes} groups cannot be made of {len(names)} tasks")
    components = pca(similarity, axes)
    groups, splits = merit_groups(components.embedding, counts, names, axes)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("task", "num_samples", "group"), *zip(names, counts, groups, strict=True)])
    with atomic_folder(out) as folder:
        write_similarity(folder, similarity, components)
        write_json(folder / "splits.json", [vars(split) for split in splits])
        atomic_write(folder / "groups.csv", table.getvalue())
        tasks = [
            {"task": name, "num_samples": int(count), "norm": float(norm), "group": int(group)}
            for name, count, norm, group in zip(names, counts, norms, groups, strict=True)
        ]
        where = [
            # relative: the folders can be moved together
            {"file": os.path.relpath(rows.path, out), "num_tasks": len(rows.names)}
            for rows in files
        ]
        write_json(
            folder / "tasks.json",
            {"axes": axes, "gradients": where, "kept": files[0].kept, "tasks": tasks},
        )


def write_similarity(folder: Path, similarity: np.ndarray, components: Pca) -> None:
    """similarity.npy, embedding.npy and pca.json."""
    np.save(folder / "similarity.npy", similarity)
    np.save(folder / "embedding.npy", components.embedding)
    explained = {
        "eigenvalues": components.eigenvalues.tolist(),
        "explained": components.explained.tolist(),
        "num_axes": components.embedding.shape[1],
    }
    write_json(folder / "pca.json", explained)


def read_groups(folder: Path) -> tuple[dict[str, Any], list[Rows]]:
    """tasks.json of a folder of `write_groups`, and the files of gradients it was made of.

    Raises MeritError if a file is missing or has changed.
    """
    stored = read_json(folder / "tasks.json") if (folder / "tasks.json").is_file() else None
    if not isinstance(stored, dict) or not {"axes", "gradients", "kept", "tasks"} <= set(stored):
        raise MeritError(f"{folder}: not a folder of `merit partition --gradients`")
    similarity, files, start = read_array(folder / "similarity.npy"), [], 0
    for entry in stored["gradients"]:
        path = Path(os.path.normpath(folder / entry["file"]))
        array = read_array(path)
        stop = start + entry["num_tasks"]
        tasks = stored["tasks"][start:stop]
        known = [task["norm"] for task in tasks], similarity[start, start:stop]
        if array.ndim != 2 or len(array) != len(tasks) or not _same(array, *known):
            raise MeritError(f"{path}: not the gradients that {folder} was made of")
        counts = np.array([task["num_samples"] for task in tasks])
        files.append(Rows(path, array, [task["task"] for task in tasks], counts))
        start += len(tasks)
    return stored, files


def _same(array: np.ndarray, norms: Sequence[float], cosines: np.ndarray) -> bool:
    """Whether every row has its norm, and its cosine with the first row."""
    found = np.array([gradient_norm(row) for row in array])
    products = inner_products(array[:1], array)[0]
    return bool(
        np.allclose(found, norms, rtol=1e-6, atol=0)
        and np.allclose(products / found / found[0], cosines, rtol=0, atol=1e-6)
    )


def _with_path(path: Path, compute: Callable[[], Matrix]) -> Matrix:
    """compute(); an error about a task's gradient names its file."""
    try:
        return compute()
    except ValueError as error:
        raise MeritError(f"{path}: {error} (tasks are counted from 0)") from None
