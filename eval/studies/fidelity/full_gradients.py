"""Cosines of full task gradients, and what strides, sketches and other draws make of them.

Where T x P float32 fit on a disk they lie there memory-mapped and are read in blocks (`exact`).
Beyond, every gradient is seen once and only sketches of it are kept (`sketched`): a large sketch
stands for the whole gradient and one of its strided entries for those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from merit.config import Gradients
from merit.eval.measuring.scores import sample_std
from merit.io.artifacts import Artifacts, read_array
from merit.io.progress import Progress
from merit.io.rows import scratch_rows
from merit.method.diagnostics import matrix_fidelity
from merit.method.gradients import Representation, Sketch, Stride
from merit.method.similarity import cosine_matrix, sketch_error
from merit.train.task_gradients import BaseGradients, representation_of

BLOCK = 1 << 20  # entries of a gradient that are widened to float64 at a time
Rows = NDArray[np.float32]
Array = NDArray[np.float64]
Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Cosines:
    """Cosine matrices (T, T): by stride (1: of whole gradients), by (size, seed) of a sketch.

    `norms` (T,) of whole gradients; `difference` as `stored_difference`.
    """

    by_stride: dict[int, Array]
    by_sketch: dict[tuple[int, int], Array]
    norms: Array
    difference: float


@dataclass(frozen=True)
class SketchedStride:
    """A sketch of every `every`-th entry: a representation, as both of its parts are linear."""

    every: int
    sketch: Sketch

    def size(self, num_parameters: int) -> int:
        return self.sketch.size(Stride(self.every).size(num_parameters))

    def add(self, total: torch.Tensor, entries: torch.Tensor, start: int, weight: float) -> None:
        kept = entries[-start % self.every :: self.every]
        self.sketch.add(total, kept, Stride(self.every).size(start), weight)


def exact(
    base: BaseGradients,
    gradients: Gradients,
    paths: Artifacts,
    strides: Sequence[int],
    sketches: Sequence[Sketch],
) -> Cosines:
    """From the full gradients of all tasks in scratch space: 4 T P bytes."""
    kept = read_array(paths.gradients / "gradients.npy")
    with scratch_rows(paths.folder, len(base.tasks), base.num_parameters) as rows:
        fill_gradients(rows, base, gradients)
        return Cosines(
            {every: cosine_matrix(rows[:, ::every]) for every in strides},
            {(s.buckets, s.seed): sketched_cosines(rows, s) for s in sketches},
            np.array([row_norm(row) for row in rows]),
            stored_difference(rows, kept, representation_of(gradients)),
        )


def sketched(
    base: BaseGradients,
    gradients: Gradients,
    paths: Artifacts,
    strides: Sequence[int],
    sketches: Sequence[Sketch],
    reference: Sketch,
) -> Cosines:
    """As `exact`, from one pass over the tasks that keeps only sketches.

    The `reference` sketch stands for a whole gradient and for its strided entries: with n signed
    sums cosines have the standard error of eq. (54), norms a relative one of 1 / sqrt(2 n). Its
    seed must be none of `sketches`', so that their errors are independent. Scratch space: 4 T n
    bytes for every stride; in memory are one strided gradient and T of the largest
    of `sketches`.
    """
    stored = representation_of(gradients)
    kept = read_array(paths.gradients / "gradients.npy")
    chosen: list[Representation] = [
        *(SketchedStride(every, reference) for every in strides),
        *sketches,
    ]
    difference = norm = 0.0
    num_tasks, num_parameters = len(base.tasks), base.num_parameters
    with ExitStack() as stack, Progress("sketches of the gradients", num_tasks) as progress:
        rows = [
            stack.enter_context(scratch_rows(paths.folder, num_tasks, r.size(num_parameters)))
            for r in chosen
        ]
        for task in range(num_tasks):
            *own, again = base.task_gradients(
                task, gradients.num_examples, gradients.seed, [*chosen, stored]
            )
            for row, values in zip(rows, own, strict=True):
                row[task] = values.cpu()
            difference += float(np.square(again.cpu().numpy() - kept[task], dtype=np.float64).sum())
            norm += float(np.square(kept[task], dtype=np.float64).sum())
            progress.advance()
        matrices = [cosine_matrix(row) for row in rows]
        norms = np.array([row_norm(row) for row in rows[list(strides).index(1)]])
    return Cosines(
        dict(zip(strides, matrices, strict=False)),
        {(s.buckets, s.seed): m for s, m in zip(sketches, matrices[len(strides) :], strict=True)},
        norms,
        math.sqrt(difference / norm),
    )


def fill_gradients(
    rows: Rows,
    base: BaseGradients,
    settings: Gradients,
    resample: int | None = None,
    representation: Representation | None = None,
) -> None:
    """Every task's gradient, whole by default, from the examples that the gradients stage takes.

    `resample` seeds a draw of as many of them with replacement.
    """
    label = "full gradients" if resample is None else f"resample {resample + 1}"
    with Progress(label, len(rows)) as progress:
        for task, row in enumerate(rows):
            examples = base.examples_of(task, settings.num_examples, settings.seed)
            if resample is not None:
                generator = np.random.default_rng([resample, task])
                examples = np.sort(generator.choice(examples, len(examples)))
            row[:] = base.gradient(examples, representation).cpu()
            progress.advance()


def stored_difference(gradients: Rows, kept: Rows, representation: Representation) -> float:
    """|R(G) - kept| / |kept|: what the stage stored against the full gradients, row by row."""
    difference = norm = 0.0
    for whole, row in zip(gradients, kept, strict=True):
        total = torch.zeros(len(row))
        representation.add(total, torch.from_numpy(whole), 0, 1.0)
        difference += float(np.square(total.numpy() - row, dtype=np.float64).sum())
        norm += float(np.square(row, dtype=np.float64).sum())
    return math.sqrt(difference / norm)


def row_norm(row: NDArray[np.float32]) -> float:
    """|row| in float64, block by block."""
    blocks = (row[None, start : start + BLOCK] for start in range(0, len(row), BLOCK))
    return float(np.linalg.norm([np.linalg.norm(b.astype(np.float64), axis=1)[0] for b in blocks]))


def sketched_cosines(gradients: Rows, sketch: Sketch) -> Array:
    """The cosine matrix of the gradients' sketches; they are linear, so of the means' as well."""
    rows = torch.zeros(len(gradients), sketch.buckets)
    for total, gradient in zip(rows, gradients, strict=True):
        sketch.add(total, torch.from_numpy(gradient), 0, 1.0)
    return cosine_matrix(rows.numpy())


def resampled_cosines(
    base: BaseGradients,
    settings: Gradients,
    paths: Artifacts,
    num_resamples: int,
    representation: Representation,
) -> list[Array]:
    """Cosine matrices of gradients from other draws of the examples."""
    found = []
    size = representation.size(base.num_parameters)
    with scratch_rows(paths.folder, len(base.tasks), size) as rows:
        for resample in range(num_resamples):
            fill_gradients(rows, base, settings, resample, representation)
            found.append(cosine_matrix(rows))
    return found


def predicted_rmse(full: Array, size: int) -> float:
    """Of sketched cosines, docs/method.md, eq. (54), over the pairs of tasks."""
    errors = sketch_error(full[np.triu_indices(len(full), k=1)], size)
    return float(np.sqrt(np.square(errors).mean()))


def spread(
    full: Array,
    found: Sequence[Array],
    exact: dict[int, Groups],
    grouped: Sequence[dict[int, Groups]],
) -> dict[str, Any]:
    """Means over draws of table 16's measures, and the adjusted Rand index of the partitions.

    `exact` and every one of `grouped` are the groups of r axes, by r. Spreads are the standard
    deviation over draws, None for one draw.
    """

    def over_draws(name: str, values: list[float]) -> dict[str, float | None]:
        return {name: float(np.mean(values)), f"{name}_std": sample_std(values)}

    measures = [matrix_fidelity(full, matrix) for matrix in found]
    cells: dict[str, Any] = {"draws": len(found)}
    for metric in measures[0]:
        cells |= over_draws(metric, [m[metric] for m in measures])
    for axes, groups in exact.items():
        scores = [float(adjusted_rand_score(groups, draw[axes])) for draw in grouped]
        cells |= over_draws(f"rand_index_{axes}d", scores)
    return cells
