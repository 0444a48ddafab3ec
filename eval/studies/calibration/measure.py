"""calibration: how many examples a task's mean gradient needs (table 11; docs/method.md 12).

The paper compares the gradient of n of a task's examples with that of 1000. Where tasks hold fewer
(the mini study's hold about 70 each), the examples of a family of tasks are pooled. A family mixes
tasks and answer styles, so its gradients spread more than one task's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.scores import mean_interval, sample_std
from merit.eval.studies.calibration import Calibration
from merit.io.artifacts import Artifacts, read_json
from merit.io.progress import Progress
from merit.io.rows import scratch_rows
from merit.train.task_gradients import BaseGradients, representation_of

TABLE = "table11_calibration"
CLAIMED = 200  # examples; the paper's claim (C11) is about these
BLOCK = 1 << 20  # entries of a gradient that are widened to float64 at a time


def measure(experiment: Experiment, paths: Artifacts, settings: Calibration) -> dict[str, Any]:
    """Table 11 from one pass over `reference` examples per unit and draw.

    Gradients are represented as the method's own are. The n examples are part of the reference's,
    as in the paper, whose cosine at n = 1000 is 1.
    Raises MeritError where no unit holds `reference` examples.
    """
    base = BaseGradients.load(experiment, paths)
    units = _units(base, paths, settings)
    sizes = [*sorted(set(settings.sizes)), settings.reference]
    num_tokens = base.data.num_loss_tokens()
    representation = representation_of(experiment.gradients)
    cosines = np.empty((len(units), settings.num_draws, len(sizes)))
    num_entries = representation.size(base.num_parameters)
    with (
        scratch_rows(paths.folder, len(sizes), num_entries) as rows,
        Progress(f"calibration over {len(units)} units", cosines.size) as progress,
    ):
        for unit, draw in np.ndindex(len(units), settings.num_draws):
            pool = list(units.values())[unit]
            chosen = np.random.default_rng([draw, unit]).permutation(pool)

            def sums(order: NDArray[np.int64] = chosen[: settings.reference]) -> Iterable[Tensor]:
                for part in np.split(order, sizes[:-1]):
                    yield base.gradient(part, representation) * int(num_tokens[part].sum())
                    progress.advance()

            cosines[unit, draw] = cosines_to_last(sums(), rows)
    table = calibration_table(cosines, sizes)
    row = min(table[:-1], key=lambda row: abs(row["n"] - CLAIMED))
    keys = ("n", "num_units", "num_draws", "mean_cosine", "std", "low", "high", "std_draws")
    summary = {
        "reference": settings.reference,
        "unit": settings.unit,
        "stride": experiment.gradients.stride,
        **{key: row[key] for key in keys},
    }
    return {
        "tables": {TABLE: table},
        "summary": summary,
        "units": {name: cosines[i].mean(axis=0).round(6).tolist() for i, name in enumerate(units)},
        "sizes": sizes,
    }


def _units(
    base: BaseGradients, paths: Artifacts, settings: Calibration
) -> dict[str, NDArray[np.int64]]:
    """The examples of every task, or of every family, that has `reference` of them, by name."""
    names = np.array(base.tasks)
    if settings.unit == "family":
        entries = read_json(paths.mixture / "tasks.json")
        family = {entry["task"]: entry["family"] for entry in entries}
        names = np.array([family[task] for task in base.tasks])
    owners = names[base.owner]
    found, sizes = np.unique(owners, return_counts=True)
    kept = found[sizes >= settings.reference]
    if not len(kept):
        advice = " or set `unit: family`" if settings.unit == "task" else ""
        raise MeritError(
            f"studies.calibration: no {settings.unit} holds {settings.reference} examples, the "
            f"largest has {max(sizes)}; lower `reference`{advice}"
        )
    return {str(name): np.flatnonzero(owners == name) for name in kept}


def cosines_to_last(parts: Iterable[Tensor], rows: NDArray[np.float32]) -> list[float]:
    """cos(S_j, S_J) of the running sums S_j = p_1 + ... + p_j, j = 1..J, of vectors (P,).

    With p_j = (summed token gradients of the j-th share of the examples), S_j points as the mean
    gradient of all examples up to there. Sums in float32, kept in `rows` (J, P), which may be
    memory-mapped; products in float64, block by block.
    """
    running = torch.from_numpy(rows)
    for j, part in enumerate(parts):
        running[j] = running[j - 1] + part.cpu() if j else part
    last = running[-1]
    return [*(cosine(row, last) for row in running[:-1]), 1.0]  # without the rounding


def cosine(a: Tensor, b: Tensor) -> float:
    """cos(a, b) of vectors (P,): the sum of (a / |a|) (b / |b|) in float64, block by block."""

    def norm(x: Tensor) -> Tensor:
        return torch.stack([block.double().norm() for block in x.split(BLOCK)]).norm()

    norm_a, norm_b = norm(a), norm(b)
    return sum(
        float(((x.double() / norm_a) * (y.double() / norm_b)).sum())
        for x, y in zip(a.split(BLOCK), b.split(BLOCK), strict=True)
    )


def calibration_table(cosines: NDArray[np.float64], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Table 11 from cosines (units, draws, sizes).

    `mean_cosine` and `std` are over units, each the mean of its draws; low and high the 95 % t
    interval of that mean; `std_draws` the standard deviation over draws, averaged over units. A
    spread over one unit or one draw is None.
    """
    num_units, num_draws, _ = cosines.shape
    rows = []
    parts = zip(sizes, cosines.mean(axis=1).T, np.moveaxis(cosines, 2, 0), strict=True)
    for n, values, draws in parts:
        mean, low, high = mean_interval(values)
        rows.append(
            {
                "n": n,
                "mean_cosine": mean,
                "std": sample_std(values),
                "low": low,
                "high": None if high is None else min(1.0, high),
                "std_draws": float(draws.std(axis=1, ddof=1).mean()) if num_draws > 1 else None,
                "num_units": num_units,
                "num_draws": num_draws,
            }
        )
    return rows
