"""train: one branch, from the base, as its manifest says."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from merit.config import Optimizer
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    exclusive,
    file_hash,
    folder_hash,
    read_array,
    read_json,
    value_hash,
    write_json,
    write_jsonl,
)
from merit.progress import Progress
from merit.training.encoded import Encoded


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/branches/<run>/<item>, unless another process is about to.

    A branch that `may_diverge` and does leaves a summary with the `failure`, and no checkpoint.
    """
    assert item is not None
    paths = Artifacts(name)
    manifest = read_json(paths.manifest(item))
    check_origin(paths, manifest)
    with exclusive(paths.branch(item), f"{item} is being trained"):
        train_branch(paths, item, manifest)


def train_branch(paths: Artifacts, item: str, manifest: dict[str, Any]) -> None:
    data = Encoded.load(paths.encoded)
    order = branch_order(paths, manifest)

    import torch

    from merit.core.diagnostics import displacement
    from merit.io.checkpoints import Checkpoint, save_tensors
    from merit.training.loop import Record, train
    from merit.training.models import load_model, set_trainable, stored_tensors, use_one_thread

    use_one_thread()
    model = load_model(paths.base)
    parameters = set_trainable(model, manifest["trainable"])
    optimizer = Optimizer.model_validate(manifest["optimizer"])
    records: list[Record] = []
    timings: list[Record] = []
    began = time.monotonic()
    num_steps = -(-len(order) // optimizer.batch_size)
    failure = None
    with Progress(item, num_steps) as progress:

        def log(record: Record, timing: Record) -> None:
            records.append(record)
            timings.append(timing)
            progress.advance(int(record["step"]) - progress.n)

        try:
            train(
                model,
                parameters,
                data,
                order,
                optimizer,
                what=f"branch {item}",
                num_examples=manifest["num_samples"],
                log=log,
            )
        except MeritError as error:  # the loop's own: its loss or its parameters are not finite
            if not manifest["may_diverge"]:
                raise
            failure = str(error)
    summary: dict[str, Any] = {
        "branch": item,
        "num_steps": num_steps,
        "num_tokens": manifest["num_tokens"],
        "num_loss_tokens": manifest["num_loss_tokens"],
        "base_hash": manifest["base_hash"],
        "manifest_hash": value_hash(manifest),
    }
    base = Checkpoint(paths.base / "model.safetensors")
    with torch.no_grad(), atomic_folder(paths.branch(item)) as folder:
        write_json(folder / "manifest.json", manifest)
        write_jsonl(folder / "records.jsonl", [dict(record) for record in records])
        write_jsonl(paths.timing(item), [dict(timing) for timing in timings])
        if failure is None:
            tensors = stored_tensors(model, parameters)
            save_tensors(tensors, folder / "model.safetensors")
            summary |= {
                "final_loss": records[-1]["loss"],
                "displacement": displacement((t, base.read(n)) for n, t in tensors.items()),
                "checkpoint_hash": file_hash(folder / "model.safetensors"),
            }
        write_json(folder / "summary.json", summary | {"failure": failure})
    print(f"{item}: {failure or f'{num_steps} steps in {time.monotonic() - began:.1f} s'}")


def check_origin(paths: Artifacts, manifest: dict[str, Any]) -> None:
    """Raises MeritError where the base or the encoded mixture is not the manifest's."""
    there = {
        "base": (paths.base, read_json(paths.base / "base.json")["base_hash"]),
        "encoded": (paths.encoded, folder_hash(paths.encoded)),
    }
    for what, (folder, found) in there.items():
        wanted = manifest[f"{what}_hash"]
        if found != wanted:
            raise MeritError(
                f"{paths.manifest(manifest['branch'])}: key `{what}_hash`: the branch is planned "
                f"from {what} {wanted[:12]}, {folder} holds {found[:12]}; run `dvc repro` without "
                "--single-item, or `dvc checkout`"
            )


def branch_order(paths: Artifacts, manifest: dict[str, Any]) -> np.ndarray:
    """The branch's examples (indices into the encoded mixture) in training order."""
    from merit.training.loop import data_order

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
