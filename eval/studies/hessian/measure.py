"""Do directions of gradient conflict lie along the loss's curvature? (table 21; docs/method.md 13)

The Hessian is that of the mean of four task losses (each a mean per token, so that a task with long
answers counts no more than another), at theta0, over the trainable parameters. Sets of long rows
(Lanczos' basis, gradients, eigenvectors) are memory-mapped scratch space: in memory are a few flat
vectors at a time. Exact products need attention that can be differentiated twice, so the model runs
in the "eager" implementation throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merit.config import Experiment
from merit.eval.measuring.scores import Row
from merit.eval.studies.hessian import Hessian
from merit.io.artifacts import Artifacts
from merit.io.progress import Progress
from merit.io.rows import scratch_rows
from merit.method.gradients import Representation
from merit.method.hessian import (
    abs_cosines,
    alignment_z_score,
    conflict_directions,
    hvp_central_difference,
    hvp_exact,
    lanczos,
    max_abs_cos,
    principal_angles,
    quadrant_tasks,
)
from merit.method.similarity import cosine_matrix, pca
from merit.train.task_gradients import BaseGradients, representation_of

TOLERANCE = 0.05  # relative difference up to which the paper's central differences stand
BLOCK = 2**20  # entries of a flat vector that are moved at a time


@dataclass(frozen=True)
class Curvature:
    """Gradient and Hessian products of the mean of several tasks' losses; flat vectors are (P,)."""

    base: BaseGradients
    examples: Sequence[NDArray[np.int64]]  # of each task

    @cached_property
    def placed(self) -> tuple[Tensor, Tensor]:
        """(theta, theta0): the parameters, from now on parts of one flat tensor, and a copy."""
        tensors = list(self.base.parameters.values())
        theta = torch.nn.utils.parameters_to_vector(tensors).detach()
        torch.nn.utils.vector_to_parameters(theta, tensors)
        return theta, theta.clone()

    def gradient_along(self, v: Tensor, t: Tensor) -> Tensor:
        """The gradient at theta0 + t v; the model's parameters are theta0 again afterwards."""
        theta, theta0 = self.placed
        parts = zip(theta.split(BLOCK), theta0.split(BLOCK), v.split(BLOCK), strict=True)
        for part, origin, direction in parts:
            torch.add(origin, direction.to(origin) * t.to(origin), out=part)
        try:
            total = self.base.gradient(self.examples[0])
            for mine in self.examples[1:]:
                total += self.base.gradient(mine)
            return total.div_(len(self.examples)).to(v.device)
        finally:
            theta.copy_(theta0)

    def product(self, v: Tensor) -> Tensor:
        """H v by double backward, batch by batch."""
        tensors = list(self.base.parameters.values())
        direction = v.to(tensors[0].device)
        total = torch.zeros_like(direction)
        for mine in self.examples:
            num_tokens = int(self.base.data.num_loss_tokens()[mine].sum())
            for compute in self.base.losses(mine):
                loss, count = compute()
                product = hvp_exact(lambda loss=loss: loss, tensors, direction)  # type: ignore[misc]
                total += product * (count / (num_tokens * len(self.examples)))
        return total.to(v.device)


def measure(experiment: Experiment, paths: Artifacts, settings: Hessian) -> dict[str, Any]:
    """Table 21, the three tiers, and how far the paper's central differences can be trusted."""
    base = BaseGradients.load(experiment, paths)
    base.model.set_attn_implementation("eager")
    base.model.float()  # in bfloat16 the central differences' step would be rounded away
    with ExitStack() as scratch:

        def empty(num_rows: int, num_entries: int) -> Tensor:
            rows = scratch_rows(paths.folder, num_rows, num_entries)
            return torch.from_numpy(scratch.enter_context(rows))

        return _measure(base, experiment, settings, empty)


def _measure(
    base: BaseGradients,
    experiment: Experiment,
    settings: Hessian,
    empty: Callable[[int, int], Tensor],
) -> dict[str, Any]:
    """`empty` gives room for rows that are too long for memory."""
    seed, num_tasks, dim = experiment.gradients.seed, len(base.tasks), base.num_parameters
    kept = representation_of(experiment.gradients)

    def task_gradient(task: int, representation: Representation | None = None) -> Tensor:
        return base.task_gradient(task, settings.num_examples, seed, representation)

    rows = empty(num_tasks, kept.size(dim))
    with Progress("gradients for the cosine matrix", num_tasks) as progress:
        for task in range(num_tasks):
            rows[task] = task_gradient(task, kept)
            progress.advance()
    embedding = pca(cosine_matrix(rows.numpy()), 2, "double").embedding
    chosen = quadrant_tasks(torch.from_numpy(embedding))
    gradients = empty(len(chosen), dim)
    for row, task in zip(gradients, chosen, strict=True):
        row.copy_(task_gradient(task))
    directions = {
        name: conflict_directions(gradients, centred, out=empty(3, dim))
        for name, centred in (("raw", False), ("centered", True))
    }

    curvature = Curvature(
        base, [base.examples_of(task, settings.num_examples, seed) for task in chosen]
    )

    def difference(v: Tensor, epsilon: float = settings.epsilon) -> Tensor:
        return hvp_central_difference(lambda t: curvature.gradient_along(v, t), v, epsilon)

    spectra: dict[str, tuple[Tensor, Tensor]] = {}
    with Progress("Lanczos", 2 * settings.num_steps) as progress:
        for name, product in (("exact", curvature.product), ("central_difference", difference)):

            def counted(v: Tensor, product: Any = product) -> Tensor:
                progress.advance()
                return product(v)

            spectra[name] = lanczos(
                counted, dim, settings.num_steps, num_vectors=settings.num_eigenvectors, empty=empty
            )
    eigenvalues, eigenvectors = spectra["exact"]
    products = empty(len(eigenvectors), dim)
    for row, v in zip(products, eigenvectors, strict=True):
        row.copy_(curvature.product(v))
    pairs = list(zip(products, eigenvalues, eigenvectors, strict=True))
    residuals = torch.stack([(hv - value.float() * v).norm() for hv, value, v in pairs])
    residuals = residuals / eigenvalues.abs().float()
    errors = [relative_difference(difference(v), hv) for hv, _, v in pairs]
    used = "central_difference" if float(np.mean(errors)) <= TOLERANCE else "exact"

    table = alignment_table(directions, spectra, used, settings.num_random)
    leading = spectra[used][1]
    by_task = []
    with Progress("tasks against eigenvectors", num_tasks) as progress:
        for task in range(num_tasks):  # one full gradient at a time
            by_task.append(float(max_abs_cos(task_gradient(task)[None], leading)[0]))
            progress.advance()
    null = alignment_z_score(directions["raw"], leading, num_samples=settings.num_random)
    aligned = {
        "random task gradient": by_task,
        "gradient of the four tasks": [by_task[task] for task in chosen],
        **{
            f"pca conflict direction{ending}": max_abs_cos(directions[name], leading).tolist()
            for name, ending in (("raw", ""), ("centered", ", double-centred"))
        },
    }
    tiers = tier_table((null.null_mean, null.null_std, settings.num_random), aligned)
    mean_of = {row["direction"]: row["mean_max_abs_cos"] for row in tiers}
    summary = {
        **{row["metric"]: row["value"] for row in table},
        "used": used,
        "epsilon": settings.epsilon,
        "hvp_relative_difference_mean": float(np.mean(errors)),
        "hvp_relative_difference_max": float(np.max(errors)),
        "residual_max": float(residuals.max()),
        "num_parameters": dim,
        "num_tasks": num_tasks,
        "tasks": [base.tasks[task] for task in chosen],
        "random_vector": mean_of["random unit vector"],
        "task_gradient": mean_of["random task gradient"],
        "own_gradient": mean_of["gradient of the four tasks"],
        "pca_direction": mean_of["pca conflict direction"],
        "tasks_at_least_as_aligned": float(
            np.mean(np.array(by_task) >= mean_of["pca conflict direction"])
        ),
    }
    random = torch.randn(dim, generator=torch.Generator().manual_seed(1))
    random = random / random.norm()
    probes = {
        "first_eigenvector": (eigenvectors[0], products[0]),
        "last_eigenvector": (eigenvectors[-1], products[-1]),
        "random_vector": (random, curvature.product(random)),
    }
    steps = [
        {
            "epsilon": epsilon,
            **{n: relative_difference(difference(v, epsilon), hv) for n, (v, hv) in probes.items()},
        }
        for epsilon in (settings.epsilon * 10.0**-k for k in range(4))
    ]
    return {
        "tables": {
            "table21_hessian_pca_alignment": table,
            "figure_hessian_three_tier": tiers,
            "hessian_epsilon": steps,
        },
        "summary": summary,
        "abs_cosines": {name: abs_cosines(d, leading).tolist() for name, d in directions.items()},
        "eigenvalues": {name: pair[0].tolist() for name, pair in spectra.items()},
        "residuals": residuals.tolist(),
        "tiers": aligned,
    }


def relative_difference(ours: Tensor, exact: Tensor) -> float:
    """||ours - exact|| / ||exact||."""
    return float((ours - exact).norm() / exact.norm())


def alignment_table(
    directions: dict[str, Tensor],
    spectra: dict[str, tuple[Tensor, Tensor]],
    used: str,
    num_random: int,
) -> list[Row]:
    """Table 21: `value` is that of the Hessian products in use, a column for either kind."""
    columns: dict[str, dict[str, float]] = {}
    for kind, (_, eigenvectors) in spectra.items():
        cells: dict[str, float] = {}
        for name, rows in directions.items():
            top = max_abs_cos(rows, eigenvectors)
            angles = principal_angles(rows, eigenvectors)
            z = alignment_z_score(rows, eigenvectors, num_samples=num_random)
            cells |= {
                f"{name}_max_abs_cos": float(top.max()),
                f"{name}_mean_top1_abs_cos": float(top.mean()),
                **{
                    f"{name}_{rank}_principal_angle_deg": float(angles[i])
                    for i, rank in enumerate(("leading", "second", "third"))
                },
                f"{name}_z_score": z.z_score,
            }
        columns[kind] = cells
    return [
        {"metric": metric, "value": columns[used][metric]}
        | {kind: cells[metric] for kind, cells in columns.items()}
        for metric in columns[used]
    ]


def tier_table(null: tuple[float, float, int], aligned: dict[str, list[float]]) -> list[Row]:
    """The figure's tiers: mean of max |cos| with an eigenvector, its spread, how many there are.

    `null` is (mean, standard deviation, number) of Gaussian random vectors. The four tasks' own
    gradients are a tier that the paper lacks: the Hessian is that of these tasks' loss, which
    favours whatever is made of their gradients over another task's.
    """
    rows = [("random unit vector", *null)]
    rows += [(n, float(np.mean(x)), float(np.std(x, ddof=1)), len(x)) for n, x in aligned.items()]
    columns = ("direction", "mean_max_abs_cos", "std", "n")
    return [dict(zip(columns, row, strict=True)) for row in rows]
