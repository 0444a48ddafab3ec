"""gradients: the mean gradient of every task at the base, strided or sketched.

Rows go to disk as they are finished, so that a killed run goes on where it was, and several
processes, on several machines with one file system, can divide the tasks.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.config import Experiment, Gradients, load_experiment
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    folder_hash,
    open_partial,
    partial_folder,
    read_array,
    read_json,
    value_hash,
    write_json,
)
from merit.io.progress import Progress
from merit.io.rows import create_rows, write_row
from merit.method.similarity import gradient_norm
from merit.train.dataset import IGNORED, TokenizedDataset

if TYPE_CHECKING:
    import torch

    from merit.method.gradients import Representation


@dataclass(frozen=True)
class BaseGradients:
    """theta0 with its trainable parameters and the encoded mixture: whatever takes gradients there.

    `owner` int32 (num_examples,): the index in `tasks` of every example's task.
    """

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    data: TokenizedDataset
    owner: np.ndarray
    tasks: list[str]
    batch_size: int

    @classmethod
    def load(cls, experiment: Experiment, paths: Artifacts) -> BaseGradients:
        """Raises MeritError where a file of the base or of the mixture cannot be read."""
        from merit.train.images import open_mixture
        from merit.train.model import load_model, set_trainable, use_one_thread

        use_one_thread()
        data = open_mixture(paths, experiment.encoding)
        owner = read_array(paths.encoded / "task_of_example.npy")
        tasks = [entry["task"] for entry in read_json(paths.encoded / "tasks.json")]
        model = load_model(paths.base, experiment.model)
        parameters = set_trainable(model, experiment.training.trainable)
        return cls(model, parameters, data, owner, tasks, experiment.gradients.batch_size)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def examples_of(self, task: int, limit: int, seed: int) -> np.ndarray:
        """At most `limit` of the task's examples, from the seed alone; the same at every call."""
        from merit.method.gradients import calibration_sample

        mine = np.flatnonzero(self.owner == task)
        return mine[calibration_sample(len(mine), limit, seed).numpy()]

    def losses(self, examples: np.ndarray) -> list[Callable[[], tuple[torch.Tensor, int]]]:
        """One function a batch, giving its mean loss and its number of loss-bearing tokens."""
        lengths = self.data.offsets[examples + 1] - self.data.offsets[examples]
        # batches of like lengths waste little on padding
        ordered = examples[np.argsort(lengths, kind="stable")]
        return [
            functools.partial(self._batch_loss, ordered[start : start + self.batch_size])
            for start in range(0, len(ordered), self.batch_size)
        ]

    def _batch_loss(self, indices: np.ndarray) -> tuple[torch.Tensor, int]:
        from merit.train.loss import forward_loss

        batch = self.data.batch(indices)
        bearing = int((batch["labels"][:, 1:] != IGNORED).sum())
        return forward_loss(self.model, batch, None), bearing

    def gradient(
        self, examples: np.ndarray, representation: Representation | None = None
    ) -> torch.Tensor:
        """float32: the gradient of the examples' mean loss per token; whole, (P,), by default."""
        from merit.method.gradients import Stride, mean_gradient

        return mean_gradient(self.losses(examples), self.parameters, representation or Stride(1))

    def task_gradient(
        self, task: int, limit: int, seed: int, representation: Representation | None = None
    ) -> torch.Tensor:
        """As `task_gradients`, of one representation; whole by default."""
        from merit.method.gradients import Stride

        return self.task_gradients(task, limit, seed, [representation or Stride(1)])[0]

    def task_gradients(
        self, task: int, limit: int, seed: int, representations: Sequence[Representation]
    ) -> list[torch.Tensor]:
        """The gradient of at most `limit` of a task's examples in every representation, one pass.

        Raises MeritError, naming the task, where it is not finite.
        """
        from merit.method.gradients import mean_gradients

        losses = self.losses(self.examples_of(task, limit, seed))
        found = mean_gradients(losses, self.parameters, representations)
        if not all(gradient.isfinite().all() for gradient in found):
            raise MeritError(f"task {self.tasks[task]!r}: its gradient at the base is not finite")
        return found


def representation_of(settings: Gradients) -> Representation:
    """What the settings keep of a gradient."""
    from merit.method.gradients import Sketch, Stride

    if settings.representation == "sketch":
        return Sketch(settings.sketch_size, settings.sketch_seed)
    return Stride(settings.stride)


def run(name: str, shard: str | None = None) -> None:
    """Write artifacts/<name>/gradients, or the share `shard`, "i/n", of its rows.

    Tasks that an earlier run has finished, whole or in shares, are not computed again.
    """
    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.gradients
    base = BaseGradients.load(experiment, paths)
    base_hash = read_json(paths.base / "base.json")["base_hash"]
    key = value_hash(
        {
            "gradients": settings.model_dump(mode="json"),
            "trainable": list(experiment.training.trainable),
            "base": base_hash,
            "encoded": folder_hash(paths.encoded),
        }
    )
    if shard:
        folder = open_partial(paths.gradients, key)
        try:
            extract(base, settings, folder, name, shard)
        except FileNotFoundError:
            if folder.exists():
                raise
            raise MeritError(
                f"{folder}: gone; another process has finished the stage or begun it anew"
            ) from None
        return
    with partial_folder(paths.gradients, key) as folder:
        extract(base, settings, folder, name)
        counts = np.bincount(base.owner, minlength=len(base.tasks))
        kept: dict[str, Any] = {"stride": settings.stride}
        if settings.representation == "sketch":
            kept = {"sketch_size": settings.sketch_size, "sketch_seed": settings.sketch_seed}
        write_json(
            folder / "tasks.json",
            kept
            | {
                "tasks": base.tasks,
                "norms": [read_json(path)["norm"] for path in _finished(folder, len(base.tasks))],
                "num_examples": np.minimum(counts, settings.num_examples).tolist(),
                "num_parameters": base.num_parameters,
                "base_hash": base_hash,
            },
        )
        shutil.rmtree(folder / FINISHED)


FINISHED = "finished"  # of a partial folder: a file for every task whose row is written


def _finished(folder: Path, num_tasks: int) -> list[Path]:
    return [folder / FINISHED / f"{task}.json" for task in range(num_tasks)]


def extract(
    base: BaseGradients, settings: Gradients, folder: Path, label: str, shard: str | None = None
) -> None:
    """Write the tasks' rows that the partial folder lacks, of one share of them if asked."""
    representation = representation_of(settings)
    rows, finished = folder / "gradients.npy", _finished(folder, len(base.tasks))
    create_rows(rows, len(finished), representation.size(base.num_parameters))
    mine = share(shard, len(finished))
    with Progress(f"{label}, gradients", len(mine)) as progress:
        for task in mine:
            if not finished[task].is_file():  # not even by another process meanwhile
                gradient = base.task_gradient(
                    task, settings.num_examples, settings.seed, representation
                )
                row = gradient.cpu().numpy()
                write_row(rows, task, row)
                write_json(finished[task], {"task": base.tasks[task], "norm": gradient_norm(row)})
            progress.advance()


def share(shard: str | None, num_tasks: int) -> range:
    """The tasks of share "i/n", every n-th from the i-th on, i = 1..n; all of them for None.

    Raises MeritError for another form.
    """
    if shard is None:
        return range(num_tasks)
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise MeritError(f"--shard: found {shard!r}, expected i/n with 1 <= i <= n, such as 2/8")
    return range(int(found[1]) - 1, num_tasks, int(found[2]))
