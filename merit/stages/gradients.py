"""gradients: the mean gradient of every task at the base, strided."""

from __future__ import annotations

import functools

import numpy as np

from merit.config import load_experiment
from merit.data.encode import IGNORED, Encoded
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, read_array, read_json, write_json
from merit.progress import Progress


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/gradients."""
    import torch

    from merit.core.gradients import calibration_sample, kept_entries, mean_gradient
    from merit.models import load_model, set_trainable
    from merit.training import forward_loss

    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.gradients
    torch.set_flush_denormal(True)
    data = Encoded.load(paths.encoded)
    owner = read_array(paths.encoded / "task_of_example.npy")
    tasks = [entry["task"] for entry in read_json(paths.encoded / "tasks.json")]
    model = load_model(paths.base)
    parameters = set_trainable(model, experiment.training.trainable)
    rows = np.empty((len(tasks), kept_entries(parameters, settings.stride)), dtype=np.float32)
    counts = []

    def batch_loss(indices: np.ndarray) -> tuple[torch.Tensor, int]:
        batch = data.batch(indices)
        return forward_loss(model, batch, None), int((batch["labels"][:, 1:] != IGNORED).sum())

    with Progress("gradients", len(tasks)) as progress:
        for i, task in enumerate(tasks):
            mine = np.flatnonzero(owner == i)
            sample = mine[calibration_sample(len(mine), settings.num_examples, settings.seed)]
            # batches of like lengths waste little on padding
            sample = sample[
                np.argsort(data.offsets[sample + 1] - data.offsets[sample], kind="stable")
            ]
            losses = [
                functools.partial(batch_loss, sample[start : start + settings.batch_size])
                for start in range(0, len(sample), settings.batch_size)
            ]
            rows[i] = mean_gradient(losses, parameters, settings.stride).numpy()
            if not np.isfinite(rows[i]).all():
                raise MeritError(f"task {task!r}: its gradient at the base is not finite")
            counts.append(len(sample))
            progress.advance()
    with atomic_folder(paths.gradients) as folder:
        np.save(folder / "gradients.npy", rows)
        write_json(
            folder / "tasks.json",
            {
                "tasks": tasks,
                "norms": [float(np.linalg.norm(row.astype(np.float64))) for row in rows],
                "num_examples": counts,
                "stride": settings.stride,
                "num_parameters": sum(p.numel() for p in parameters.values()),
            },
        )
