"""Every figure of an experiment, in the order in which the page shows them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from merit.config import Experiment, load_experiment
from merit.eval.report import figures_partition, figures_scores, figures_training
from merit.eval.report.cells import AVERAGE, Cells, table_cells
from merit.eval.report.study_sections import draw_study
from merit.eval.report.style import save, styled
from merit.eval.results import Results, load_results
from merit.eval.studies import reported
from merit.eval.table_files import write_csv
from merit.io.artifacts import REPORTS_DIR, Artifacts

CAPTIONS = {
    "benchmarks": "Every method on every benchmark.",
    "average": "The average of every method against the base.",
    "similarity": "Cosine similarity of the task gradients, ordered by group.",
    "pca": (
        "Tasks along the PCA axes with the split lines; all names and groups are in "
        "`plots/partition.csv`."
    ),
    "tsne": "t-SNE of the task gradients.",
    "trajectories": "Where the branches end, with base, merged and joint model.",
    "training": "Training loss over epochs; every branch is in `plots/training.csv`.",
}


def write_figures(
    experiment: Experiment, artifacts: Artifacts, results: Results | None, out: Path
) -> dict[str, str]:
    """Figures to `out`/figures/, the numbers behind them to `out`/plots/ (for `dvc plots show`).

    Returns a figure's name -> its sentence for the page.
    """
    figures, tables = draw_figures(experiment, artifacts, results)
    save(figures, out / "figures")
    for name, frame in tables.items():
        write_csv(out / "plots" / f"{name}.csv", frame, "%.5g")
    return {name: CAPTIONS[name] for name in figures}


def draw_figures(
    experiment: Experiment, artifacts: Artifacts, results: Results | None
) -> tuple[dict[str, Figure], dict[str, pd.DataFrame]]:
    """The experiment's figures by name, and the numbers behind them; not those of its studies.

    A figure is left out if the experiment does not ask for it (`report.curves`,
    `report.partition`), has no benchmarks (then `results` is None) or no base to compare with.
    """
    found: dict[str, Figure | None] = {}
    tables: dict[str, pd.DataFrame] = {}
    with styled():
        if results:
            cells = table_cells(results)
            found["benchmarks"] = figures_scores.draw_benchmarks(experiment, results, cells)
            found["average"] = figures_scores.draw_average(experiment, results)
            tables["scores"] = _scores_frame(cells)
        if method := experiment.report.partition:
            view = figures_partition.load_partition(experiment, artifacts, method)
            found["similarity"] = figures_partition.draw_similarity(view)
            found["pca"] = figures_partition.draw_scatter(view)
            found["tsne"] = figures_partition.draw_tsne(view)
            ends = figures_training.load_trajectories(experiment, artifacts, method)
            found["trajectories"] = figures_training.draw_trajectories(ends)
            tables["partition"] = _partition_frame(view)
        if experiment.report.curves:
            curves = figures_training.load_curves(experiment, artifacts)
            found["training"] = figures_training.draw_curves(experiment, curves)
            tables |= {"training": curves, "training_mean": figures_training.mean_losses(curves)}
    return {name: figure for name, figure in found.items() if figure is not None}, tables


def export(name: str, kind: str, out: Path) -> None:
    """Redraw all figures of an experiment and its studies as pdf or svg, from stored results.

    Raises MeritError if a result is missing.
    """
    experiment, artifacts = load_experiment(name), Artifacts(name)
    for study in reported(experiment):
        save(draw_study(name, study, REPORTS_DIR), out, kind)
    asked = experiment.evaluation.benchmarks
    results = load_results(experiment, artifacts) if asked else None
    save(draw_figures(experiment, artifacts, results)[0], out, kind)


def _scores_frame(cells: Cells) -> pd.DataFrame:
    """A row a method: `score` is the average, then its interval and the single columns."""
    rows = []
    for method, row in cells.items():
        average, others = row[AVERAGE], {c: cell.mean for c, cell in row.items() if c != AVERAGE}
        score = {"score": average.mean, "score_low": average.low, "score_high": average.high}
        rows.append({"method": method, **score, **others})
    return pd.DataFrame(rows)


def _partition_frame(view: figures_partition.PartitionView) -> pd.DataFrame:
    axes = {f"pc{j + 1}": column for j, column in enumerate(view.embedding.T)}
    columns = {"task": view.tasks, "family": view.families, "group": view.groups, **axes}
    return pd.DataFrame(columns).iloc[view.order]
