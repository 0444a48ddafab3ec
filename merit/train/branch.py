"""train: one branch, from the base, as its manifest says."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.config import Encoding, Runtime, Training, load_experiment
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    file_hash,
    folder_hash,
    open_partial,
    partial_folder,
    read_array,
    read_json,
    value_hash,
    write_json,
    write_jsonl,
)
from merit.io.progress import Progress

if TYPE_CHECKING:
    import torch

    from merit.train.distributed import ProcessGroup


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/branches/<run>/<item>, unless another process is about to.

    A branch that `may_diverge` and does leaves a summary with the `failure`, and no checkpoint.
    Exits with status 75 where a signal asked it to stop: the same command goes on from there.
    """
    assert item is not None
    paths = Artifacts(name)
    manifest = read_json(paths.manifest(item))
    check_origin(paths, manifest)

    from merit.train.distributed import process_group
    from merit.train.model import use_one_thread

    use_one_thread()
    pace = load_experiment(name).training.model_dump(include={"checkpoint_minutes", "workers"})
    settings = Training.model_validate(manifest["training"] | pace)
    began = time.monotonic()
    partial = settings.lora is not None or "decoder" not in settings.trainable
    with process_group(settings.precision, partial) as group:
        summary = train_branch(paths, manifest, settings, group)
    if group.rank == 0:
        steps = f"{summary['num_steps']} steps in {time.monotonic() - began:.1f} s"
        tensors, entries = summary["num_trained_tensors"], summary["num_trained_parameters"]
        steps += f" ({tensors} trainable tensors, {entries:,} parameters)"
        print(f"{item}: {summary['failure'] or steps}")


def train_branch(
    paths: Artifacts, manifest: dict[str, Any], settings: Training, group: ProcessGroup
) -> dict[str, Any]:
    """Train as the manifest says, write the branch's folder, and return its summary."""
    import torch

    from merit.train.checkpoint import GO_ON, Checkpoints, stopping
    from merit.train.images import open_mixture
    from merit.train.loop import Diverged, Record, Stopped, train
    from merit.train.lora import add_adapters
    from merit.train.model import decoder, load_model, set_trainable

    item, optimizer = manifest["branch"], settings.optimizer
    data = open_mixture(paths, Encoding.model_validate(manifest["encoding"]))
    order = branch_order(paths, manifest)
    num_steps = -(-len(order) // optimizer.batch_size)
    model = load_model(paths.base, Runtime.model_validate(manifest["model"]))
    if settings.lora is not None:
        parameters = add_adapters(model, settings.lora, manifest["seed"])
    else:
        parameters = set_trainable(model, settings.trainable)
    if settings.gradient_checkpointing:
        decoder(model).activation_checkpointing_enable()
    counts = {
        "num_trained_tensors": len(parameters),
        "num_trained_parameters": sum(p.numel() for p in parameters.values()),
    }
    records: list[Record] = []
    timings: list[Record] = []
    failure = None
    with (
        branch_folder(paths.branch(item), manifest, group.rank) as folder,
        Progress(item, num_steps) as progress,
    ):
        minutes = settings.checkpoint_minutes
        checkpoints = Checkpoints(folder, minutes, records, timings, group.rank)
        stopping(checkpoints)

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
                settings=settings,
                num_examples=manifest["num_samples"],
                log=log,
                name_of=example_names(paths),
                checkpoints=checkpoints,
                group=group,
            )
        except Stopped as stopped:
            print(f"{stopped}; the same command goes on from here", file=sys.stderr)
            sys.exit(GO_ON)
        except Diverged as error:
            if not manifest["may_diverge"]:
                raise
            failure = str(error)
        summary: dict[str, Any] = {
            "branch": item,
            "num_steps": num_steps,
            "num_tokens": manifest["num_tokens"],
            "num_loss_tokens": manifest["num_loss_tokens"],
            **counts,
            "base_hash": manifest["base_hash"],
            "manifest_hash": value_hash(manifest),
            "failure": failure,
        }
        with torch.no_grad():
            whole = group.gathered(parameters) if failure is None else {}
            if group.rank == 0:
                for checkpoint in folder.glob("checkpoint-*"):
                    checkpoint.unlink()
                write_json(folder / "manifest.json", manifest)
                write_jsonl(folder / "records.jsonl", [dict(record) for record in records])
                write_jsonl(paths.timing(item), [dict(timing) for timing in timings])
                if failure is None:
                    summary["final_loss"] = records[-1]["loss"]
                    summary |= write_tensors(paths, settings, model, whole, folder)
                write_json(folder / "summary.json", summary)
    return summary


def write_tensors(
    paths: Artifacts,
    settings: Training,
    model: Any,
    parameters: dict[str, torch.nn.Parameter],
    folder: Path,
) -> dict[str, Any]:
    """The branch's checkpoint: the trained tensors, or its adapters; what the summary gains."""
    from merit.io.checkpoints import Checkpoint, save_tensors
    from merit.train.displacement import displacement
    from merit.train.lora import save_adapters
    from merit.train.model import stored_tensors

    if settings.lora is not None:
        path = save_adapters(model, parameters, settings.lora, folder)
        return {"checkpoint_hash": file_hash(path)}
    base = Checkpoint(paths.base)
    tensors = stored_tensors(model, parameters)
    save_tensors(tensors, folder / "model.safetensors")
    return {
        "displacement": displacement((t, base.read(n)) for n, t in tensors.items()),
        "checkpoint_hash": file_hash(folder / "model.safetensors"),
    }


@contextlib.contextmanager
def branch_folder(path: Path, manifest: dict[str, Any], rank: int) -> Iterator[Path]:
    """The branch's partial folder. The first process owns it; the others write checkpoints there.

    What decides the result decides the folder: a changed manifest starts anew. A branch that takes
    seconds and is killed leaves an empty folder, which the next one takes.
    """
    key = value_hash(manifest)
    if rank:
        yield open_partial(path, key)
        return
    with partial_folder(path, key, f"{manifest['branch']} is being trained") as folder:
        yield folder


def example_names(paths: Artifacts) -> Callable[[int], str]:
    """What an example is called in messages: its task and its line in the task's file."""

    def name(index: int) -> str:
        owner = read_array(paths.encoded / "task_of_example.npy")
        tasks = read_json(paths.encoded / "tasks.json")
        first = int(np.searchsorted(owner, owner[index]))
        return f"{tasks[owner[index]]['task']}, line {index - first + 1}"

    return name


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
    from merit.train.order import data_order

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
