"""gradients: the mean gradient of every task at the base, strided or sketched.

Rows go to disk as they are finished, so that an interrupted run resumes at the next unfinished
task, and several processes, on several machines with one file system, can share the tasks.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merit.config import Experiment, Gradients, load_experiment
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    folder_hash,
    open_partial,
    partial_folder,
    read_json,
    value_hash,
    write_json,
)
from merit.io.progress import Progress
from merit.io.rows import create_rows, write_row
from merit.method.gradients import (
    Representation,
    Sketch,
    Stride,
    calibration_sample,
    mean_gradient,
    mean_gradients,
)
from merit.method.similarity import gradient_norm
from merit.train.batches import BatchDataset, packed_rows
from merit.train.dataset import IGNORED, Batch, TokenizedDataset, example_tasks
from merit.train.images import open_mixture
from merit.train.loss import forward_loss
from merit.train.model import load_model, set_trainable, use_one_thread

PACK_TOKENS = 8192  # of a row, where training does not say
FINISHED = "finished"  # in a partial folder: a file for every task whose row is written


@dataclass(frozen=True)
class BaseGradients:
    """Gradients at theta0: the model, its trainable parameters and the tokenized mixture.

    `owner` int32 (num_examples,): the index in `tasks` of every example's task.
    """

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    data: TokenizedDataset
    owner: np.ndarray
    tasks: list[str]
    batch_size: int
    pack_tokens: int | None = None  # rows of at most as many in place of padded batches
    workers: int = 0  # processes that read images ahead

    @classmethod
    def load(cls, experiment: Experiment, paths: Artifacts) -> BaseGradients:
        """Raises MeritError if a file of the base or of the mixture cannot be read."""
        use_one_thread()
        data = open_mixture(paths, experiment.encoding)
        owner, tasks = example_tasks(paths.encoded)
        model = load_model(paths.base, experiment.model)
        parameters = set_trainable(model, experiment.training.trainable)
        settings, size = experiment.training, experiment.gradients.batch_size
        # a GPU attends to packed rows at no cost; on a CPU batches are those of every other one
        packs = model.config.get_text_config()._attn_implementation == "varlen"
        tokens = (settings.pack_tokens or PACK_TOKENS) if packs else None
        workers = settings.workers if data.read_images else 0
        return cls(model, parameters, data, owner, tasks, size, tokens, workers)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def examples_of(self, task: int, limit: int, seed: int) -> np.ndarray:
        """At most `limit` of the task's examples, from the seed only; the same at every call."""
        indices = np.flatnonzero(self.owner == task)
        return indices[calibration_sample(len(indices), limit, seed).numpy()]

    def losses(self, examples: np.ndarray) -> list[Callable[[], tuple[Tensor, int]]]:
        """One function per batch, giving its mean loss and its number of supervised tokens."""
        batches = BatchDataset(self.data, self.rows(examples), self.pack_tokens is not None)
        return [functools.partial(self._loss, batches, i) for i in range(len(batches))]

    def losses_ahead(self, examples: np.ndarray) -> Iterator[Callable[[], tuple[Tensor, int]]]:
        """`losses`, once and in order, their batches read ahead by `workers`."""
        batches = BatchDataset(self.data, self.rows(examples), self.pack_tokens is not None)
        for batch in batches.read(self.workers):
            yield functools.partial(self._batch_loss, batch)

    def rows(self, examples: np.ndarray) -> list[np.ndarray]:
        """The examples of each batch, of similar lengths to waste little on padding; or packed."""
        lengths = self.data.offsets[examples + 1] - self.data.offsets[examples]
        if self.pack_tokens is not None:
            return [examples[row] for row in packed_rows(lengths, self.pack_tokens)]
        ordered = examples[np.argsort(lengths, kind="stable")]
        size = self.batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _loss(self, batches: BatchDataset, index: int) -> tuple[Tensor, int]:
        batch = batches[index]
        if isinstance(batch, MeritError):
            raise batch
        return self._batch_loss(batch)

    def _batch_loss(self, batch: Batch) -> tuple[Tensor, int]:
        num_targets = int((batch["labels"][:, 1:] != IGNORED).sum())
        return forward_loss(self.model, batch, None), num_targets

    def gradient(
        self, examples: np.ndarray, representation: Representation | None = None
    ) -> Tensor:
        """float32: the gradient of the examples' mean loss per token; whole, (P,), by default."""
        return mean_gradient(self.losses(examples), self.parameters, representation or Stride(1))

    def task_gradient(
        self, task: int, limit: int, seed: int, representation: Representation | None = None
    ) -> Tensor:
        """`task_gradients` in one representation; whole by default."""
        return self.task_gradients(task, limit, seed, [representation or Stride(1)])[0]

    def task_gradients(
        self, task: int, limit: int, seed: int, representations: Sequence[Representation]
    ) -> list[Tensor]:
        """The gradient of at most `limit` of a task's examples in every representation, one pass.

        Raises MeritError, naming the task, if it is not finite.
        """
        losses = self.losses_ahead(self.examples_of(task, limit, seed))
        gradients = mean_gradients(losses, self.parameters, representations)
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise MeritError(f"task {self.tasks[task]!r}: its gradient at the base is not finite")
        return gradients


def representation_of(settings: Gradients) -> Representation:
    """What the settings keep of a gradient."""
    if settings.representation == "sketch":
        return Sketch(settings.sketch_size, settings.sketch_seed)
    return Stride(settings.stride)


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/gradients, or the share `item`, "i/n", of its rows.

    Tasks that an earlier run has finished, all or shares of them, are not computed again.
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
    if item:
        folder = open_partial(paths.gradients, key)
        try:
            extract(base, settings, folder, name, item)
        except FileNotFoundError:
            if folder.exists():
                raise
            raise MeritError(
                f"{folder}: gone; another process has finished the stage or begun it again"
            ) from None
        return
    with partial_folder(paths.gradients, key) as folder:
        extract(base, settings, folder, name)
        counts = np.bincount(base.owner, minlength=len(base.tasks))
        about: dict[str, Any] = {"stride": settings.stride}
        if settings.representation == "sketch":
            about = {"sketch_size": settings.sketch_size, "sketch_seed": settings.sketch_seed}
        write_json(
            folder / "tasks.json",
            about
            | {
                "tasks": base.tasks,
                "norms": [read_json(path)["norm"] for path in _finished(folder, len(base.tasks))],
                "num_examples": np.minimum(counts, settings.num_examples).tolist(),
                "num_parameters": base.num_parameters,
                "base_hash": base_hash,
            },
        )
        shutil.rmtree(folder / FINISHED)


def _finished(folder: Path, num_tasks: int) -> list[Path]:
    return [folder / FINISHED / f"{task}.json" for task in range(num_tasks)]


def extract(
    base: BaseGradients, settings: Gradients, folder: Path, label: str, part: str | None = None
) -> None:
    """Write the rows that the partial folder lacks, all or those of the share `part`."""
    representation = representation_of(settings)
    rows, finished = folder / "gradients.npy", _finished(folder, len(base.tasks))
    create_rows(rows, len(finished), representation.size(base.num_parameters))
    tasks = share(part, len(finished))
    with Progress(f"{label}, gradients", len(tasks)) as progress:
        for task in tasks:
            if not finished[task].is_file():  # by another process meanwhile, perhaps
                gradient = base.task_gradient(
                    task, settings.num_examples, settings.seed, representation
                )
                row = gradient.cpu().numpy()
                write_row(rows, task, row)
                write_json(finished[task], {"task": base.tasks[task], "norm": gradient_norm(row)})
            progress.advance()


def share(part: str | None, num_tasks: int) -> range:
    """The tasks of share "i/n", every n-th from the i-th on, i = 1..n; all of them for None.

    Raises MeritError for another form.
    """
    if part is None:
        return range(num_tasks)
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise MeritError(
            f"share of the tasks: found {part!r}, expected i/n with 1 <= i <= n, such as 2/8"
        )
    return range(int(match[1]) - 1, num_tasks, int(match[2]))
