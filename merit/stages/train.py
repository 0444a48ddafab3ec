"""train: one branch, from the base, on its group's tasks."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from merit.config import load_experiment
from merit.data.encode import Encoded
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    file_hash,
    read_array,
    read_json,
    value_hash,
    write_json,
    write_jsonl,
)
from merit.io.runs import live_file
from merit.progress import Progress


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/branches/<item>."""
    if item is None:
        raise MeritError("train: name the branch, as in `merit train mini_vision merit-3d-s1-g0`")
    experiment, paths = load_experiment(name), Artifacts(name)
    known = sorted(path.stem for path in paths.manifest(item).parent.glob("*.json"))
    if known and item not in known:
        raise MeritError(f"train: {name} has no branch {item!r}; it has {', '.join(known)}")
    manifest = read_json(paths.manifest(item))
    data = Encoded.load(paths.encoded)
    order = branch_order(paths, manifest)

    import torch

    from merit.core.diagnostics import displacement
    from merit.io.checkpoints import Checkpoint, save_tensors
    from merit.models import load_model, set_trainable, stored_tensors, use_one_thread
    from merit.training import Record, train

    use_one_thread()
    model = load_model(paths.base)
    parameters = set_trainable(model, experiment.training.trainable)
    records: list[Record] = []
    timings: list[Record] = []
    live = live_file(paths, item)
    live.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    num_steps = -(-len(order) // manifest["batch_size"])
    with live.open("w", encoding="utf-8") as stream, Progress(item, num_steps) as progress:

        def log(record: Record, timing: Record) -> None:
            records.append(record)
            timings.append(timing)
            stream.write(json.dumps({**record, **timing}) + "\n")
            stream.flush()
            progress.advance(int(record["step"]) - progress.done)

        train(
            model,
            parameters,
            data,
            order,
            experiment.training.optimizer,
            what=f"branch {item}",
            batch_size=manifest["batch_size"],
            num_examples=manifest["num_samples"],
            log=log,
        )
    base = Checkpoint(paths.base / "model.safetensors")
    with torch.no_grad(), atomic_folder(paths.branch(item)) as folder:
        tensors = stored_tensors(model, parameters)
        save_tensors(tensors, folder / "model.safetensors")
        write_jsonl(folder / "records.jsonl", [dict(record) for record in records])
        write_jsonl(folder / "timing.jsonl", [dict(timing) for timing in timings])
        write_json(
            folder / "summary.json",
            {
                "branch": item,
                "num_steps": num_steps,
                "num_tokens": manifest["num_tokens"],
                "num_loss_tokens": manifest["num_loss_tokens"],
                "final_loss": records[-1]["loss"],
                "displacement": displacement((t, base.read(n)) for n, t in tensors.items()),
                "base_hash": file_hash(paths.base / "model.safetensors"),
                "manifest_hash": value_hash(manifest),
                "training_hash": value_hash(experiment.training.model_dump(mode="json")),
                "checkpoint_hash": file_hash(folder / "model.safetensors"),
            },
        )
    live.unlink(missing_ok=True)
    print(f"{item}: {num_steps} steps in {time.monotonic() - began:.1f} s")


def branch_order(paths: Artifacts, manifest: dict[str, Any]) -> np.ndarray:
    """The branch's examples (indices into the encoded mixture) in training order."""
    from merit.training import data_order

    owner = read_array(paths.encoded / "task_of_example.npy")
    tasks = [entry["task"] for entry in read_json(paths.encoded / "tasks.json")]
    wanted = set(manifest["tasks"])
    unknown = wanted - set(tasks)
    if unknown:
        raise MeritError(
            f"{paths.manifest(manifest['branch'])}: unknown tasks {sorted(unknown)[:3]}; "
            "run the partition stage again"
        )
    mine = np.flatnonzero(np.isin(owner, [i for i, task in enumerate(tasks) if task in wanted]))
    if len(mine) == 0:
        raise MeritError(
            f"{paths.manifest(manifest['branch'])}: its tasks have zero examples; run the "
            "partition stage again"
        )
    return mine[data_order(len(mine), manifest["epochs"], manifest["seed"])]
