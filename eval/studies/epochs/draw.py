"""epochs: distance, loss and score of joint and merged models; epochs_perturbation."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merit.eval.measuring.scores import interval
from merit.eval.report.style import GREEN, GREY, VERMILION, error_bars, legend, panels

LOOKS: dict[str, dict[str, Any]] = {
    "joint": {"color": VERMILION, "marker": "s"},
    "merged": {"color": GREEN, "marker": "o"},
}
BARS: dict[str, Any] = {"elinewidth": 0.8, "capsize": 2}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    rows = result["tables"]["table01_merge_readiness"]
    figure, (distance, loss, score) = panels(1, 3, 2.6, sharex=True)
    _lines(distance, rows, "displacement", "Distance from the base", "|theta - theta0|")
    _lines(loss, rows, "train_loss", "Loss on the mixture", "loss per token")
    loss.axhline(result["summary"]["loss_base"], color=GREY, lw=0.8, ls="--", label="base")
    _lines(score, rows, "score", "Benchmarks", "average score (%)")
    bars = error_bars(interval(row, "score_gap") for row in rows)
    epochs, merged = [row["epoch"] for row in rows], [row["score_merged"] for row in rows]
    label = "95 % interval of merged - joint"
    score.errorbar(epochs, merged, bars, color=GREEN, ls="", label=label, **BARS)
    for axes in (distance, loss):
        axes.set_ylim(bottom=0)
    legend(figure)
    return {"epochs": figure, "epochs_perturbation": _draw_perturbation(result)}


def _lines(axes: Axes, rows: list[dict[str, Any]], key: str, title: str, label: str) -> None:
    epochs = [row["epoch"] for row in rows]
    for kind, look in LOOKS.items():
        axes.plot(epochs, [row[f"{key}_{kind}"] for row in rows], label=kind, **look)
    axes.set(title=title, ylabel=label, xlabel="epochs")
    axes.set_xticks(epochs)


def _draw_perturbation(result: dict[str, Any]) -> Figure:
    """Loss increase over sigma (the area below is the flatness AUC), a panel per epoch."""
    rows, noise = result["tables"]["table01_merge_readiness"], result["tables"]
    sigmas = result["summary"]["sigmas"]
    figure, grid = panels(1, len(rows), 2.8, width=2.25 * max(len(rows), 2), sharey=True)
    for axes, row, (joint, merged) in zip(grid, rows, result["models"], strict=True):
        for kind, model in (("joint", joint), ("merged", merged)):
            mine = [r for r in noise["epochs_perturbation"] if r["model"] == model]
            axes.errorbar(
                [0.0, *(r["sigma"] for r in mine)],
                [0.0, *(r["delta_loss"] for r in mine)],
                [0.0, *(r["delta_loss_std"] or 0.0 for r in mine)],
                label=kind, **LOOKS[kind], **BARS,
            )  # fmt: skip
        areas = ", ".join(f"{kind} {row[f'flatness_auc_{kind}']:.3f}" for kind in LOOKS)
        axes.set_title(f"{row['epoch']:g} epoch{'' if row['epoch'] == 1 else 's'}\nAUC: {areas}")
        axes.set_xlabel("sigma of the weight noise")
        axes.set_xticks(sigmas, [f"{s:g}" for s in sigmas])
    grid[0].set_ylabel("increase of the loss")
    legend(figure)
    return figure
