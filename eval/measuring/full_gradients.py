"""Full task gradients as long rows on disk; what strides, sketches and other draws make of them.

Rows are float32 (T, P), memory-mapped, and read in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from merit.config import Gradients
from merit.core.diagnostics import matrix_fidelity
from merit.core.gradients import Representation, Sketch
from merit.core.similarity import cosine_matrix, sketch_error
from merit.io.artifacts import Artifacts
from merit.io.rows import scratch_rows
from merit.progress import Progress
from merit.stages.gradients import AtBase

BLOCK = 1 << 20  # entries of a gradient that are widened to float64 at a time
Rows = NDArray[np.float32]
Array = NDArray[np.float64]
Groups = NDArray[np.int64]


def fill_gradients(
    rows: Rows,
    base: AtBase,
    settings: Gradients,
    resample: int | None = None,
) -> None:
    """Every task's whole gradient (P,) from the examples that the gradients stage takes.

    `resample` seeds a draw of as many of them with replacement.
    """
    label = "full gradients" if resample is None else f"resample {resample + 1}"
    with Progress(label, len(rows)) as progress:
        for task, row in enumerate(rows):
            examples = base.examples_of(task, settings.num_examples, settings.seed)
            if resample is not None:
                generator = np.random.default_rng([resample, task])
                examples = np.sort(generator.choice(examples, len(examples)))
            row[:] = base.gradient(examples).cpu()
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
    base: AtBase, settings: Gradients, paths: Artifacts, num_resamples: int
) -> list[Array]:
    """Cosine matrices of full gradients from other draws of the calibration examples."""
    found = []
    with scratch_rows(paths.folder, len(base.tasks), base.num_parameters) as rows:
        for resample in range(num_resamples):
            fill_gradients(rows, base, settings, resample)
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
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return {name: float(np.mean(values)), f"{name}_std": std}

    measures = [matrix_fidelity(full, matrix) for matrix in found]
    cells: dict[str, Any] = {"draws": len(found)}
    for metric in measures[0]:
        cells |= over_draws(metric, [m[metric] for m in measures])
    for axes, groups in exact.items():
        scores = [float(adjusted_rand_score(groups, draw[axes])) for draw in grouped]
        cells |= over_draws(f"rand_index_{axes}d", scores)
    return cells
