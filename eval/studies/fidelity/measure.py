"""fidelity: strided and sketched against full gradients, and their norms (tables 16 and 19).

The full gradients of all tasks, T x P float32, lie memory-mapped on disk where that is at most
`max_scratch_gb`. At 3B parameters and 136 tasks it would be 1.7 TB: large sketches stand for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.scores import Row
from merit.eval.studies.fidelity import Fidelity
from merit.eval.studies.fidelity.full_gradients import (
    exact,
    predicted_rmse,
    resampled_cosines,
    sketched,
    spread,
)
from merit.io.artifacts import Artifacts, read_json
from merit.method.diagnostics import matrix_fidelity, norm_concentration
from merit.method.gradients import Sketch, Stride
from merit.method.partition import merit_groups
from merit.method.similarity import pca
from merit.train.task_gradients import BaseGradients

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
DRAWN_PAIRS = 2000  # of the pairs of tasks in the scatter plot: what result.json holds stays small


def measure(experiment: Experiment, paths: Artifacts, settings: Fidelity) -> dict[str, Any]:
    """Tables 16 and 19 from the full gradients of all tasks at the base; strides and sketches."""
    stored = read_json(paths.gradients / "tasks.json")
    base = BaseGradients.load(experiment, paths)
    if base.tasks != stored["tasks"]:
        raise MeritError(f"{paths.gradients}: made for other tasks; run the gradients stage again")
    stride, whole = experiment.gradients.stride, base.num_parameters
    if max(settings.strides) == stride == 1:
        raise MeritError("studies.fidelity.strides: give a stride above 1")
    strides = sorted({1, stride, *settings.strides})
    seeds = range(settings.num_sketches)
    sketches = [Sketch(size, seed) for size in settings.sketch_sizes for seed in seeds]
    gradients = experiment.gradients
    if fits := 4 * len(base.tasks) * whole <= settings.max_scratch_gb * 1e9:
        reference: Sketch | Stride = Stride(1)
        cosines = exact(base, gradients, paths, strides, sketches)
    else:
        reference = Sketch(settings.reference_size, seed=settings.num_sketches)
        cosines = sketched(base, gradients, paths, strides, sketches, reference)
    resampled = resampled_cosines(base, gradients, paths, settings.num_resamples, reference)

    counts = np.array([e["num_samples"] for e in read_json(paths.encoded / "tasks.json")])
    num_axes = _num_axes(experiment, len(base.tasks))
    matrices = dict(cosines.by_stride)
    full = matrices.pop(1)

    def groups_of(matrix: Array, axes: int) -> Groups:
        return merit_groups(pca(matrix, axes).embedding, counts, base.tasks, axes)[0]

    groups = {n: groups_of(matrix, num_axes) for n, matrix in cosines.by_stride.items()}
    table16 = fidelity_table(full, matrices, groups, stride)
    table19 = norm_table(cosines.norms, settings.trims)
    finest = range(min(2, num_axes), num_axes + 1)  # merit-2d and finer

    def row(name: str, num_entries: int, found: Sequence[Array], error: float | None) -> Row:
        grouped = [{axes: groups_of(m, axes) for axes in finest} for m in (full, *found)]
        return {
            "gradients": name,
            "num_entries": num_entries,
            **spread(full, found, grouped[0], grouped[1:]),
            "predicted_rmse": error,
        }

    table = [row(f"stride {n}", -(-whole // n), [matrix], None) for n, matrix in matrices.items()]
    for size in settings.sketch_sizes:
        found = [cosines.by_sketch[size, seed] for seed in seeds]
        table.append(row(f"sketch {size}", size, found, predicted_rmse(full, size)))
    if settings.num_resamples:
        table.append(row("resampled examples", whole, resampled, None))

    by_metric = {row["metric"]: row for row in table16}
    by_norm = {row.pop("metric"): row for row in norm_table(cosines.norms, settings.trims)}
    own = ("pearson", "spearman", "mean_absolute_difference", "rmse", "tasks_in_another_group")
    summary = {
        "stride": stride,
        "num_tasks": len(base.tasks),
        "num_parameters": whole,
        **{metric: by_metric[metric]["value"] for metric in own},
        **{f"{m}_std_error": by_metric[m]["std_error"] for m in ("pearson", "spearman")},
        "num_axes": num_axes,
        "stored_relative_difference": cosines.difference,
        **{
            f"{metric}_{column}": value
            for metric in ("coefficient_of_variation", "max_over_min")
            for column, value in by_norm[metric].items()
        },
        **({} if fits else {"reference_size": settings.reference_size}),
    }
    rows, columns = np.triu_indices(len(full), k=1)
    order = np.random.default_rng(0).permutation(len(rows))[:DRAWN_PAIRS]
    pairs = (rows[order], columns[order])
    return {
        "tables": {
            "table16_stride5_fidelity": table16,
            "table19_gradient_norms": table19,
            "gradient_representations": table,
        },
        "summary": summary,
        "pairs": {
            "full": np.round(full[pairs], 5).tolist(),
            "strided": np.round(matrices[stride][pairs], 5).tolist(),
        },
        "norms": cosines.norms.tolist(),
        "trims": settings.trims,
    }


def _num_axes(experiment: Experiment, num_tasks: int) -> int:
    """r of the experiment's finest MERIT partition; 3, as in the paper, where it has none."""
    axes = [m.axes for m in experiment.methods.values() if m.partition == "merit" and m.axes]
    return min(max(axes, default=3), num_tasks.bit_length() - 1)


def moved_share(ours: Groups, theirs: Groups) -> float:
    """Share of the tasks in another group, under the best matching of the two sides' groups.

    Groups are numbered by the sides of the axes they lie on, and an axis may change its sign.
    """
    size = int(max(ours.max(), theirs.max())) + 1
    together = np.zeros((size, size), dtype=np.int64)
    np.add.at(together, (ours, theirs), 1)
    return 1.0 - int(together[linear_sum_assignment(-together)].sum()) / len(ours)


def fidelity_errors(reference: Array, approximation: Array) -> dict[str, float]:
    """Standard errors of table 16's measures: the jackknife over tasks.

    se^2 = (T - 1)/T sum_t (m_(t) - mean m)^2, m_(t) without task t: pairs that share a task are not
    independent, so the number of pairs would understate the error.
    """
    num_tasks = len(reference)
    left_out = []
    for task in range(num_tasks):
        rest = np.delete(np.arange(num_tasks), task)
        block = np.ix_(rest, rest)
        left_out.append(matrix_fidelity(reference[block], approximation[block]))
    return {
        metric: math.sqrt((num_tasks - 1) * float(np.var([m[metric] for m in left_out])))
        for metric in left_out[0]
    }


def fidelity_table(
    full: Array, strided: dict[int, Array], groups: dict[int, Groups], stride: int
) -> list[Row]:
    """Table 16: `value` (with its standard error) is the stage's stride, a column every other."""
    measures: dict[int, dict[str, float]] = {
        every: {
            **matrix_fidelity(full, matrix),
            "tasks_in_another_group": moved_share(groups[1], groups[every]),
        }
        for every, matrix in strided.items()
    }
    errors = fidelity_errors(full, strided[stride])
    return [
        {
            "metric": metric,
            "value": value,
            "std_error": errors.get(metric),
            **{f"stride_{every}": measures[every][metric] for every in strided},
            "num_tasks": len(full),
        }
        for metric, value in measures[stride].items()
    ]


def norm_table(norms: Array, trims: Sequence[float]) -> list[Row]:
    """Table 19: a column per trim, raw first."""
    columns = {
        "raw" if trim == 0 else f"trimmed_{100 * trim:g}pct": norm_concentration(norms, trim)
        for trim in sorted({0.0, *trims})
    }
    return [
        {"metric": metric, **{name: values[metric] for name, values in columns.items()}}
        for metric in columns["raw"]
    ]
