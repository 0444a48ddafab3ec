"""gradients: the mean gradient of every task at the base, strided."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merit.config import Experiment, load_experiment
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, read_array, read_json, write_json
from merit.progress import Progress
from merit.training.encoded import IGNORED, Encoded

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AtBase:
    """theta0 with its trainable parameters and the encoded mixture: whatever takes gradients there.

    `owner` int32 (num_examples,): the index in `tasks` of every example's task.
    """

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    data: Encoded
    owner: np.ndarray
    tasks: list[str]
    batch_size: int

    @classmethod
    def load(cls, experiment: Experiment, paths: Artifacts) -> AtBase:
        """Raises MeritError where a file of the base or of the mixture cannot be read."""
        from merit.training.models import load_model, set_trainable, use_one_thread

        use_one_thread()
        data = Encoded.load(paths.encoded)
        owner = read_array(paths.encoded / "task_of_example.npy")
        tasks = [entry["task"] for entry in read_json(paths.encoded / "tasks.json")]
        model = load_model(paths.base)
        parameters = set_trainable(model, experiment.training.trainable)
        return cls(model, parameters, data, owner, tasks, experiment.gradients.batch_size)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def examples_of(self, task: int, limit: int, seed: int) -> np.ndarray:
        """At most `limit` of the task's examples, from the seed alone; the same at every call."""
        from merit.core.gradients import calibration_sample

        mine = np.flatnonzero(self.owner == task)
        return mine[calibration_sample(len(mine), limit, seed)]

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
        from merit.training.loss import forward_loss

        batch = self.data.batch(indices)
        bearing = int((batch["labels"][:, 1:] != IGNORED).sum())
        return forward_loss(self.model, batch, None), bearing

    def gradient(self, examples: np.ndarray, stride: int = 1) -> torch.Tensor:
        """float32 (ceil(P / stride),): the gradient of the examples' mean loss per token."""
        from merit.core.gradients import mean_gradient

        return mean_gradient(self.losses(examples), self.parameters, stride)

    def task_gradient(self, task: int, limit: int, seed: int, stride: int = 1) -> torch.Tensor:
        """The gradient of at most `limit` of a task's examples.

        Raises MeritError, naming the task, where it is not finite.
        """
        gradient = self.gradient(self.examples_of(task, limit, seed), stride)
        if not gradient.isfinite().all():
            raise MeritError(f"task {self.tasks[task]!r}: its gradient at the base is not finite")
        return gradient


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/gradients."""
    from merit.core.gradients import kept_entries

    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.gradients
    base = AtBase.load(experiment, paths)
    num_kept = kept_entries(base.parameters, settings.stride)
    rows = np.empty((len(base.tasks), num_kept), dtype=np.float32)
    with Progress(f"{name}, gradients", len(base.tasks)) as progress:
        for i in range(len(base.tasks)):
            rows[i] = base.task_gradient(i, settings.num_examples, settings.seed, settings.stride)
            progress.advance()
    counts = np.minimum(np.bincount(base.owner, minlength=len(rows)), settings.num_examples)
    with atomic_folder(paths.gradients) as folder:
        np.save(folder / "gradients.npy", rows)
        write_json(
            folder / "tasks.json",
            {
                "tasks": base.tasks,
                "norms": [float(np.linalg.norm(row.astype(np.float64))) for row in rows],
                "num_examples": counts.tolist(),
                "stride": settings.stride,
                "num_parameters": base.num_parameters,
            },
        )
