"""train: one branch, from the base, as its manifest says."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    """Write the folder of branch `item`, unless another process is about to.

    A branch that `may_diverge` and does leaves a summary with the `failure`, and no checkpoint.
    Exits with status 75 if a signal asked it to stop: the same command resumes it.
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
    with process_group() as group:
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

    from merit.train.attention import choose_attention
    from merit.train.checkpoint import Checkpoints, Log, stop_on_signal
    from merit.train.images import open_mixture
    from merit.train.loop import Diverged, train
    from merit.train.lora import add_adapters
    from merit.train.model import load_model, recompute_layers, set_trainable

    branch = manifest["branch"]
    data = open_mixture(paths, Encoding.model_validate(manifest["encoding"]))
    order = branch_order(paths, manifest)
    num_steps = -(-len(order) // settings.optimizer.batch_size)
    runtime = Runtime.model_validate(manifest["model"])
    model = load_model(paths.base, runtime)
    choose_attention(model, runtime.attention, settings.precision == "bfloat16")
    if settings.lora is not None:
        parameters = add_adapters(model, settings.lora, manifest["seed"])
    else:
        parameters = set_trainable(model, settings.trainable)
    if settings.gradient_checkpointing:
        recompute_layers(model, settings.gradient_checkpointing)
    summary: dict[str, Any] = {
        "branch": branch,
        "num_steps": num_steps,
        "num_tokens": manifest["num_tokens"],
        "num_loss_tokens": manifest["num_loss_tokens"],
        "num_trained_tensors": len(parameters),
        "num_trained_parameters": sum(p.numel() for p in parameters.values()),
        "base_hash": manifest["base_hash"],
        "manifest_hash": value_hash(manifest),
        "failure": None,
    }
    with (
        branch_folder(paths.branch(branch), manifest, group.rank) as folder,
        Progress(branch, num_steps) as progress,
        stop_on_signal() as stop,
    ):
        log, minutes = Log(progress), settings.checkpoint_minutes
        try:
            train(
                model,
                parameters,
                data,
                order,
                settings.optimizer,
                what=f"branch {branch}",
                settings=settings,
                num_examples=manifest["num_samples"],
                log=log,
                name_of=example_names(paths),
                checkpoints=Checkpoints(folder, minutes, log.records, log.timings, stop, group),
                group=group,
            )
        except Diverged as error:
            if not manifest["may_diverge"]:
                raise
            summary["failure"] = str(error)
        with torch.no_grad():
            failed = summary["failure"] is not None
            trained = {} if failed else group.gathered(parameters)
            if group.rank == 0:
                for checkpoint in folder.glob("checkpoint*"):
                    shutil.rmtree(checkpoint)
                write_json(folder / "manifest.json", manifest)
                write_jsonl(folder / "records.jsonl", [dict(record) for record in log.records])
                write_jsonl(paths.timing(branch), [dict(timing) for timing in log.timings])
                if not failed:
                    summary["final_loss"] = log.records[-1]["loss"]
                    summary |= write_tensors(paths, settings, model, trained, folder)
                write_json(folder / "summary.json", summary)
    return summary


def write_tensors(
    paths: Artifacts,
    settings: Training,
    model: Any,
    parameters: dict[str, torch.nn.Parameter],
    folder: Path,
) -> dict[str, Any]:
    """Write the branch's trained tensors or adapters; return what the summary gains."""
    from merit.io.checkpoints import Checkpoint, save_tensors
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


def displacement(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """||theta - theta0||_2 over (theta, theta0) tensor pairs, in float64 (docs/method.md 12)."""
    return sum(float((a.double() - b.double()).square().sum()) for a, b in pairs) ** 0.5


@contextmanager
def branch_folder(path: Path, manifest: dict[str, Any], rank: int) -> Iterator[Path]:
    """The branch's partial folder. The first process owns it; the others write checkpoints there.

    Its key is the manifest's hash, so a changed manifest starts again. A branch that takes seconds
    and is killed leaves an empty folder, which the next run takes.
    """
    key = value_hash(manifest)
    if rank:
        yield open_partial(path, key)
        return
    with partial_folder(path, key, f"{manifest['branch']} is being trained") as folder:
        yield folder


def example_names(paths: Artifacts) -> Callable[[int], str]:
    """What an example is called in messages: its task and its line in the task's file."""

    from merit.train.dataset import example_tasks

    def name(index: int) -> str:
        task_of, tasks = example_tasks(paths.encoded)
        first = int(np.searchsorted(task_of, task_of[index]))
        return f"{tasks[task_of[index]]}, line {index - first + 1}"

    return name


def check_origin(paths: Artifacts, manifest: dict[str, Any]) -> None:
    """Raises MeritError if the base or the encoded mixture is not the manifest's."""
    hashes = {
        "base": (paths.base, read_json(paths.base / "base.json")["base_hash"]),
        "encoded": (paths.encoded, folder_hash(paths.encoded)),
    }
    for what, (folder, current) in hashes.items():
        planned = manifest[f"{what}_hash"]
        if current != planned:
            raise MeritError(
                f"{paths.manifest(manifest['branch'])}: key `{what}_hash`: the branch is planned "
                f"from {what} {planned[:12]}, {folder} holds {current[:12]}; run "
                f"`merit run {paths.experiment}`, or `dvc checkout`"
            )


def branch_order(paths: Artifacts, manifest: dict[str, Any]) -> np.ndarray:
    """The branch's examples (indices into the encoded mixture) in training order."""
    from merit.train.batches import data_order
    from merit.train.dataset import example_tasks

    task_of, tasks = example_tasks(paths.encoded)
    chosen = [i for i, task in enumerate(tasks) if task in manifest["tasks"]]
    indices = np.flatnonzero(np.isin(task_of, chosen))
    return indices[data_order(len(indices), manifest["epochs"], manifest["seed"])]
