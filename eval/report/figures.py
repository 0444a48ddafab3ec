"""Every figure of an experiment, as PNG and PDF, in the order in which the page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from merit.config import Experiment
from merit.eval.report import figures_partition, figures_scores, figures_training
from merit.eval.report.cells import AVERAGE, Cells
from merit.eval.report.style import save, styled
from merit.eval.results import Results
from merit.io.artifacts import Artifacts, atomic_write


@dataclass(frozen=True)
class FigureFile:
    """A figure that was written: its file stem and one sentence for the page."""

    name: str
    caption: str


def write_figures(
    experiment: Experiment, artifacts: Artifacts, results: Results, cells: Cells, out: Path
) -> list[FigureFile]:
    """Figures to `out`/figures/, the numbers behind them to `out`/plots/ (for `dvc plots show`).

    A figure is left out where the experiment does not ask for it (`report.curves`,
    `report.partition`) or has no base to compare with.
    """
    written: list[FigureFile] = []

    def keep(name: str, caption: str, figure: Figure | None) -> None:
        if figure is not None:
            save(figure, out / "figures", name)
            written.append(FigureFile(name, caption))

    with styled():
        keep(
            "benchmarks",
            "Every method on every benchmark.",
            figures_scores.draw_benchmarks(experiment, results, cells),
        )
        keep(
            "average",
            "The average of every method against the base.",
            figures_scores.draw_average(experiment, results),
        )
        _write_csv(out / "plots" / "scores.csv", _scores_frame(cells))
        method = experiment.report.partition
        if method is not None:
            view = figures_partition.load_partition(experiment, artifacts, method)
            keep(
                "similarity",
                "Cosine similarity of the task gradients, ordered by group.",
                figures_partition.draw_similarity(view),
            )
            keep(
                "pca",
                "Tasks along the PCA axes with the split lines; all names and groups are in "
                "`plots/partition.csv`.",
                figures_partition.draw_scatter(view),
            )
            keep("tsne", "t-SNE of the task gradients.", figures_partition.draw_tsne(view))
            _write_csv(out / "plots" / "partition.csv", _partition_frame(view))
            trajectories = figures_training.load_trajectories(experiment, artifacts, method)
            keep(
                "trajectories",
                "Where the branches end, with base, merged and joint model.",
                figures_training.draw_trajectories(trajectories),
            )
        if experiment.report.curves:
            curves = figures_training.load_curves(experiment, artifacts)
            keep(
                "training",
                "Training loss over epochs and tokens.",
                figures_training.draw_curves(experiment, curves),
            )
            _write_csv(out / "plots" / "training.csv", curves)
            _write_csv(out / "plots" / "training_mean.csv", figures_training.mean_losses(curves))
    return written


def _scores_frame(cells: Cells) -> pd.DataFrame:
    """A row a method: `score` is the average, then its interval and the single columns."""
    return pd.DataFrame(
        [
            {
                "method": method,
                "score": row[AVERAGE].mean,
                "score_low": row[AVERAGE].low,
                "score_high": row[AVERAGE].high,
                **{column: cell.mean for column, cell in row.items() if column != AVERAGE},
            }
            for method, row in cells.items()
        ]
    )


def _partition_frame(view: figures_partition.PartitionView) -> pd.DataFrame:
    axes = {f"pc{j + 1}": column for j, column in enumerate(view.embedding.T)}
    columns = {"task": view.tasks, "family": view.families, "group": view.groups, **axes}
    return pd.DataFrame(columns).iloc[view.order]


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    atomic_write(path, frame.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
