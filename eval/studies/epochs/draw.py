"""epochs_displacement, epochs_loss and epochs_perturbation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from merit.eval.measuring.scores import interval
from merit.eval.report.style import GREEN, GREY, VERMILION, error_bars, new_figure, save, styled

LOOKS: dict[str, dict[str, Any]] = {
    "joint": {"color": VERMILION, "marker": "s", "ms": 4, "lw": 1.2},
    "merged": {"color": GREEN, "marker": "o", "ms": 4, "lw": 1.2},
}


def draw(result: dict[str, Any], folder: Path) -> None:
    rows = result["tables"]["table01_merge_readiness"]
    with styled():
        _draw_displacement(rows, folder)
        _draw_loss(rows, result["summary"]["loss_base"], folder)
        _draw_perturbation(result, folder)


def _lines(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    for kind, look in LOOKS.items():
        axes.plot(
            [row["epoch"] for row in rows],
            [row[f"{key}_{kind}"] for row in rows],
            label=kind,
            **look,
        )
    axes.set_xlabel("epochs")
    axes.set_xticks([row["epoch"] for row in rows])


def _draw_displacement(rows: list[dict[str, Any]], folder: Path) -> None:
    figure = new_figure(6.4, 2.8)
    distance, ratio = figure.subplots(1, 2)
    _lines(distance, rows, "displacement")
    distance.set_title("Distance from the base")
    distance.set_ylabel("|theta - theta0|")
    distance.set_ylim(bottom=0)
    distance.legend()
    ratio.plot(
        [row["epoch"] for row in rows], [row["displacement_ratio"] for row in rows], "ko-", ms=4
    )
    ratio.set_title("Joint over merged")
    ratio.set_xlabel("epochs")
    ratio.set_xticks([row["epoch"] for row in rows])
    ratio.set_ylim(bottom=0)
    save(figure, folder / "figures", "epochs_displacement")


def _draw_loss(rows: list[dict[str, Any]], loss_base: float, folder: Path) -> None:
    figure = new_figure(6.4, 2.8)
    loss, score = figure.subplots(1, 2)
    _lines(loss, rows, "train_loss")
    loss.axhline(loss_base, color=GREY, lw=0.8, ls="--", label="base")
    loss.set_title("Loss on the training mixture")
    loss.set_ylabel("mean next-token loss")
    loss.set_ylim(bottom=0, top=1.35 * max(loss_base, loss.get_ylim()[1]))
    loss.legend(ncols=3, loc="upper center")
    _lines(score, rows, "score")
    score.errorbar(
        [row["epoch"] for row in rows],
        [row["score_merged"] for row in rows],
        yerr=error_bars(interval(row, "score_gap") for row in rows),
        color=GREEN,
        lw=0,
        elinewidth=0.8,
        capsize=3,
        label="95 % interval of merged - joint",
    )
    score.set_title("Held-out score")
    score.legend()
    score.set_ylabel("average over benchmarks")
    save(figure, folder / "figures", "epochs_loss")


def _draw_perturbation(result: dict[str, Any], folder: Path) -> None:
    """Loss increase over sigma (the area below is the flatness AUC), a panel an epoch."""
    rows, noise = result["tables"]["table01_merge_readiness"], result["tables"]
    figure = new_figure(1.2 + 2.2 * len(rows), 2.8)
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row, (joint, merged) in zip(panels, rows, result["models"], strict=True):
        for kind, model in (("joint", joint), ("merged", merged)):
            mine = [r for r in noise["epochs_perturbation"] if r["model"] == model]
            axes.errorbar(
                [0.0, *(r["sigma"] for r in mine)],
                [0.0, *(r["delta_loss"] for r in mine)],
                yerr=[0.0, *(r["delta_loss_std"] or 0.0 for r in mine)],
                capsize=2,
                label=f"{kind}: AUC {row[f'flatness_auc_{kind}']:.3g}",
                **LOOKS[kind],
            )
        axes.set_title(f"{row['epoch']:g} epoch{'' if row['epoch'] == 1 else 's'}")
        axes.set_xlabel("sigma of the weight noise")
        axes.set_xticks(
            result["summary"]["sigmas"], [f"{s:g}" for s in result["summary"]["sigmas"]]
        )
        axes.legend(loc="upper left")
    panels[0].set_ylabel("increase of the loss")
    save(figure, folder / "figures", "epochs_perturbation")
