"""Full task gradients as long rows on disk; what strides, sketches and other draws make of them.

Rows are float32 (T, P), memory-mapped, and read in blocks.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from merit.config import Gradients
from merit.core.gradients import Representation, Sketch
from merit.core.similarity import cosine_matrix
from merit.progress import Progress
from merit.stages.gradients import AtBase

BLOCK = 1 << 20  # entries of a gradient that are widened to float64 at a time
Rows = NDArray[np.float32]


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


def sketched_cosines(gradients: Rows, sketch: Sketch) -> NDArray[np.float64]:
    """The cosine matrix of the gradients' sketches; they are linear, so of the means' as well."""
    rows = torch.zeros(len(gradients), sketch.buckets)
    for total, gradient in zip(rows, gradients, strict=True):
        sketch.add(total, torch.from_numpy(gradient), 0, 1.0)
    return cosine_matrix(rows.numpy())
