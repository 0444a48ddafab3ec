"""encode: the mixture as arrays; if asked for, its images as the frozen vision part sees them.

Task by task, in as many processes as `encoding.workers`; an interrupted run resumes at the next
unfinished task. Each process has one task's tokens in memory at a time.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Encoding, Experiment, load_experiment
from merit.data.examples import Example, iter_examples
from merit.data.images import has_image
from merit.data.tasks import task_file
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_write,
    file_hash,
    partial_folder,
    read_json,
    value_hash,
    write_json,
)
from merit.io.progress import Progress
from merit.io.rows import create_array
from merit.train.dataset import ARRAYS, NUMBERS, TokenizedDataset, array_file
from merit.train.images import image_reader, vision_features
from merit.train.model import image_embeddings, load_model, load_processor, use_one_thread
from merit.train.tokenize import encode_examples

# arrays that lie one task's behind the other: {name: (their offsets, type)}
FLAT: dict[str, tuple[str, type]] = {
    "tokens": ("offsets", np.int32),
    "loss_mask": ("offsets", np.bool_),
    "image_ids": ("image_offsets", np.int32),
}
PARTS = "tasks"  # the folder of the encoded tasks until all are there


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/encoded."""
    experiment, paths = load_experiment(name), Artifacts(name)
    tasks = [entry["task"] for entry in read_json(paths.mixture / "tasks.json")]
    settings = experiment.encoding
    hashes = {task: file_hash(task_file(paths.mixture, task)) for task in tasks}
    base = read_json(paths.base / "base.json")["base_hash"]
    key = value_hash([hashes, base, settings.model_dump(mode="json", exclude={"workers"})])
    with partial_folder(paths.encoded, key) as folder:
        (folder / PARTS).mkdir(exist_ok=True)
        encode_tasks(paths, tasks, settings, folder / PARTS, name)
        join_tasks(tasks, folder)
        if settings.cache_images:
            cache_images(experiment, paths, folder)
        shutil.rmtree(folder / PARTS)


def task_examples(mixture: Path, task: str) -> Iterator[Example]:
    """The task's examples, one in memory at a time.

    Raises MeritError for a file that is empty or malformed, and for an image that does not exist.
    """
    path = task_file(mixture, task)
    for number, example in enumerate(iter_examples(path), start=1):
        for image in example.images:
            if not has_image(mixture / image):
                raise MeritError(f"{path}, line {number}: image {mixture / image} does not exist")
        yield example


# --- task by task ---------------------------------------------------------------------------------


def encode_tasks(
    paths: Artifacts, tasks: Sequence[str], settings: Encoding, folder: Path, label: str
) -> None:
    """Write <number>.npz for every task that has none yet."""
    todo = [i for i in range(len(tasks)) if not (folder / f"{i}.npz").is_file()]
    encode = partial(encode_task, paths.mixture, paths.base, settings, folder, tasks)
    with Progress(f"{label}, encode", len(tasks)) as progress:
        progress.advance(len(tasks) - len(todo))
        if settings.workers == 1 or len(todo) < 2:
            for number in todo:
                encode(number)
                progress.advance()
            return
        with ProcessPoolExecutor(min(settings.workers, len(todo))) as pool:
            for _ in pool.map(encode, todo):
                progress.advance()


def encode_task(
    mixture: Path, base: Path, settings: Encoding, folder: Path, tasks: Sequence[str], number: int
) -> None:
    """Write one task's arrays, as an uncompressed archive."""
    processor = _processor(base, (base / "base.json").stat().st_mtime_ns)
    examples = list(task_examples(mixture, tasks[number]))
    paths = sorted({image for example in examples for image in example.images})
    read = image_reader(mixture, processor, settings)
    grids = read.grids(paths) if read else np.zeros((0, 3), dtype=np.int32)
    ids = {path: i for i, path in enumerate(paths)}
    data = encode_examples(examples, processor, ids, grids, settings)
    content = io.BytesIO()
    arrays = {name: getattr(data, name) for name in (*ARRAYS, *NUMBERS)}
    np.savez(content, **arrays)
    atomic_write(folder / f"{number}.npz", content.getvalue())


@cache
def _processor(base: Path, state: int) -> Any:
    """The base's processor, loaded once per process."""
    return load_processor(base)


# --- all together -----------------------------------------------------------------------------


def join_tasks(tasks: Sequence[str], folder: Path) -> None:
    """Write the tasks' arrays one behind the other into memory-mapped files, and tasks.json.

    An image that several tasks show is one row of `grids` and `paths`, which are sorted by path.
    """
    archives = [folder / PARTS / f"{i}.npz" for i in range(len(tasks))]
    parts = [_load(path, ("offsets", "image_offsets", "paths", "grids")) for path in archives]
    paths, first, inverse = np.unique(
        np.concatenate([part["paths"] for part in parts]), return_index=True, return_inverse=True
    )
    rows = np.split(inverse, np.cumsum([len(part["paths"]) for part in parts])[:-1])
    counts = [len(part["offsets"]) - 1 for part in parts]
    small = {
        "paths": paths,
        "grids": np.concatenate([part["grids"] for part in parts])[first],
        "task_of_example": np.repeat(np.arange(len(tasks), dtype=np.int32), counts),
        "feature_offsets": np.zeros(1, dtype=np.int64),
        "features": np.zeros((0, 0), dtype=np.float32),
    }
    for name in ("offsets", "image_offsets"):
        lengths = np.concatenate([np.diff(part[name]) for part in parts])
        small[name] = np.concatenate([[0], np.cumsum(lengths)])
    for name, array in small.items():
        np.save(folder / f"{name}.npy", array)
    bounds, whole = {}, {}
    for name, (offsets, kind) in FLAT.items():
        bounds[name] = np.cumsum([0, *(part[offsets][-1] for part in parts)]).tolist()
        shape = (bounds[name][-1],)
        whole[name] = create_array(array_file(folder, name), np.dtype(kind), shape)
    entries = []
    for i, task in enumerate(tasks):
        part = _load(archives[i], tuple(FLAT))
        part["image_ids"] = rows[i][part["image_ids"]]
        for name, values in part.items():
            whole[name][bounds[name][i] : bounds[name][i + 1]] = values
        entries.append(
            {
                "task": task,
                "num_samples": counts[i],
                "num_tokens": len(part["tokens"]),
                "num_loss_tokens": int(part["loss_mask"].sum()),
            }
        )
    del whole  # written out
    write_json(folder / "meta.json", {k: int(v) for k, v in _load(archives[0], NUMBERS).items()})
    write_json(folder / "tasks.json", entries)


def _load(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in names}


def cache_images(experiment: Experiment, paths: Artifacts, folder: Path) -> None:
    """Write features.npy and feature_offsets.npy: every image as the decoder sees it."""
    read = image_reader(paths.mixture, load_processor(paths.base), experiment.encoding)
    data = TokenizedDataset.load(folder)
    if read is None or not len(data.paths):
        return
    use_one_thread()
    model = load_model(paths.base, experiment.model)
    images = [data.path_of(i) for i in range(len(data.paths))]
    counts = data.grids.prod(axis=1) // data.merge_size**2
    shape = (int(counts.sum()), model.config.text_config.hidden_size)
    rows = create_array(folder / "features.npy", np.dtype(np.float32), shape)
    place = 0
    for part in vision_features(read, images, partial(image_embeddings, model)):
        rows[place : place + len(part)] = part
        place += len(part)
    np.save(folder / "feature_offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
