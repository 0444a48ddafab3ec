"""Figures of the branches: training curves, and where the branches end in weight space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from merit.config import Experiment
from merit.config.branches import Model
from merit.errors import MeritError
from merit.eval.measuring.models import models_of
from merit.eval.report.style import (
    BLACK,
    GREY,
    MOST,
    VERMILION,
    band,
    legend,
    method_color,
    panels,
    scatter,
)
from merit.io.artifacts import Artifacts, read_json, read_jsonl
from merit.io.checkpoints import Checkpoint, check_same_tensors

GRID = 100  # points an epoch-fraction axis at which branch losses are averaged
WINDOW = 0.05  # share of the run that the running mean of the loss looks back


# --- training curves ----------------------------------------------------------------------------


def load_curves(experiment: Experiment, artifacts: Artifacts) -> pd.DataFrame:
    """Running mean of the training loss, for the first seed of every method of `report.curves`.

    Columns method, branch, step, epoch, num_tokens (that one branch's), loss. Branch "mean" is
    the mean over the method's branches at the same epoch, weighted by their tokens; its num_tokens
    are those of all branches together.
    """
    frames, models = [], models_of(experiment)
    for method in experiment.report.curves:
        model = models[method][0]
        curves, tokens = [], []
        for branch in model.branches:
            path = artifacts.branch(branch) / "records.jsonl"
            records = read_jsonl(path)
            if not records:
                raise MeritError(f"{path}: no records; train the branch again")
            curve = _curve(path, records)
            curves.append(curve)
            tokens.append(float(curve["num_tokens"].iloc[-1]))
            frames.append(curve.assign(method=method, branch=branch))
        if curves:
            frames.append(_mean_curve(curves, tokens).assign(method=method, branch="mean"))
    names = ["method", "branch", "step", "epoch", "num_tokens", "loss"]
    return pd.concat(frames)[names] if frames else pd.DataFrame(columns=names)


def _curve(path: Path, records: list[dict[str, float]]) -> pd.DataFrame:
    try:
        names = ("step", "epoch", "num_tokens", "loss")
        frame = pd.DataFrame({key: [float(r[key]) for r in records] for key in names})
    except KeyError as error:
        raise MeritError(f"{path}: a record has no key {error}; train the branch again") from None
    window = max(1, round(WINDOW * len(frame)))
    return frame.assign(loss=frame["loss"].rolling(window, min_periods=1).mean())


def _mean_curve(curves: list[pd.DataFrame], tokens: list[float]) -> pd.DataFrame:
    """Token-weighted mean over branches on a common grid of epochs, where all have records."""
    start = max(curve["epoch"].iloc[0] for curve in curves)
    end = min(curve["epoch"].iloc[-1] for curve in curves)
    epochs = np.linspace(start, end, GRID)

    def at(column: str) -> NDArray[np.float64]:
        return np.stack([np.interp(epochs, c["epoch"], c[column]) for c in curves])

    loss = np.average(at("loss"), axis=0, weights=tokens)
    return pd.DataFrame(
        {
            "step": at("step").max(axis=0).round(),  # branches run side by side: the longest counts
            "epoch": epochs,
            "num_tokens": at("num_tokens").sum(axis=0),
            "loss": loss,
        }
    )


def mean_losses(curves: pd.DataFrame) -> pd.DataFrame:
    """Column epoch, then a method's mean loss a column (empty past its last epoch)."""
    means = curves[curves["branch"] == "mean"]
    starts, ends = (means.groupby("method")["epoch"].agg(how) for how in ("min", "max"))
    epochs = np.linspace(starts.max(), ends.max(), GRID)
    columns = {
        str(method): np.interp(epochs, frame["epoch"], frame["loss"], right=np.nan)
        for method, frame in means.groupby("method", sort=False)
    }
    return pd.DataFrame({"epoch": epochs, **columns})


def draw_curves(experiment: Experiment, curves: pd.DataFrame) -> Figure:
    """Loss over epochs: a method's mean, and the range of its branches."""
    figure, (axes,) = panels(1, 1, 3.2, width=5.0)
    for method, frame in curves.groupby("method", sort=False):
        mean = frame[frame["branch"] == "mean"]
        branches = [
            np.interp(mean["epoch"], line["epoch"], line["loss"])
            for _, line in frame[frame["branch"] != "mean"].groupby("branch", sort=False)
        ]
        count = f", {len(branches)} branches" if len(branches) > 1 else ""
        color = method_color(experiment.methods[str(method)])
        label = f"{method}{count}"
        band(axes, mean["epoch"], branches, color=color, label=label, mean=mean["loss"])
    axes.set_title("Training loss: mean over a method's branches, and range")
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"loss per token, running mean of {WINDOW:.0%}")
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure


# --- branch displacements -----------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectories:
    """End points of the branches in the plane of their two leading displacement directions.

    Coordinates are <d, v_j> with d = theta - theta0, so the base is (0, 0); `share[j]` is the part
    of the branches' summed squared displacement along v_j.
    """

    method: str
    branches: NDArray[np.float64]  # (K, 2)
    merged: NDArray[np.float64]  # (2,)
    joint: NDArray[np.float64] | None  # (2,)
    joint_method: str | None
    share: NDArray[np.float64]  # (2,)


def load_trajectories(experiment: Experiment, artifacts: Artifacts, method: str) -> Trajectories:
    """PCA of the displacements theta_k - theta0 of the method's first seed, not centred.

    With D the (K, num_parameters) displacements and D D^T = U S^2 U^T, direction j is
    v_j = D^T u_j / s_j; only inner products are needed, so one tensor is in memory at a time.
    Sign: the branch that lies farthest along an axis lies on its positive side. Merging is linear
    (docs/method.md, eq. (14)), so the merged model's coordinates are the same weighted average.
    """
    model = models_of(experiment)[method][0]
    joint = _joint_model(experiment, method, model.seed)
    ids = [*model.branches, *(joint.branches if joint else ())]
    gram = displacement_gram(artifacts.base, [artifacts.branch(branch) for branch in ids])
    k = len(model.branches)
    values, vectors = np.linalg.eigh(gram[:k, :k])
    values, vectors = values[::-1][:2].clip(min=0), vectors[:, ::-1][:, :2]
    lengths = np.sqrt(values)
    usable = lengths > 1e-12 * max(float(lengths[0]), 1e-300)
    points = gram[:, :k] @ vectors / np.where(usable, lengths, np.inf)  # (points, at most 2)
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 1)))
        values = np.pad(values, (0, 1))
    largest = np.abs(points[:k]).argmax(axis=0)
    signs = np.where(points[largest, [0, 1]] < 0, -1.0, 1.0)
    points = points * signs
    merge = artifacts.model(model.id) / "merge.json"
    weights = np.array(read_json(merge).get("merge_weights", []), dtype=np.float64)
    if len(weights) != k:
        raise MeritError(f"{merge}: {len(weights)} merge weights for {k} branches; merge again")
    return Trajectories(
        method=method,
        branches=points[:k],
        merged=weights @ points[:k],
        joint=points[k] if joint else None,
        joint_method=joint.method if joint else None,
        share=values / max(float(np.trace(gram[:k, :k])), 1e-300),
    )


def displacement_gram(base: Path, branches: list[Path]) -> NDArray[np.float64]:
    """(K, K) inner products of theta_k - theta0, float64, tensor by tensor.

    Raises MeritError where a checkpoint cannot be read, or a branch's tensors differ from the other
    branches' or are not the base's.
    """
    gram = np.zeros((len(branches), len(branches)))
    start, opened = Checkpoint(base), [Checkpoint(path) for path in branches]
    for checkpoint in opened:
        check_same_tensors(checkpoint, start, set(opened[0].names))
    for name in opened[0].names:
        origin = _flat(start, name)
        deltas = np.stack([_flat(checkpoint, name) - origin for checkpoint in opened])
        gram += deltas @ deltas.T
    return gram


def _flat(checkpoint: Checkpoint, name: str) -> NDArray[np.float64]:
    return np.asarray(checkpoint.read(name).double().numpy().reshape(-1))


def _joint_model(experiment: Experiment, method: str, seed: int | None) -> Model | None:
    """The joint run of the same epochs, of the same seed where there is one."""
    found, epochs = models_of(experiment), experiment.methods[method].epochs
    alike = [
        model
        for name, joint in experiment.methods.items()
        if (joint.partition, joint.epochs) == ("joint", epochs)
        for model in found[name]
    ]
    return next((m for m in alike if m.seed == seed), alike[0] if alike else None)


def draw_trajectories(view: Trajectories) -> Figure:
    """Base, branches, merged and joint model in the PC1-PC2 plane of the displacements."""
    figure, (axes,) = panels(1, 1, 4.2, width=5.0)
    for x, y in view.branches:
        axes.plot((0, x), (0, y), color=GREY, lw=0.6, alpha=0.6)
    one = len(view.branches) > MOST  # more than can be told apart
    scatter(
        axes,
        view.branches,
        [f"branch{'es' if one else f' {k}'}" for k in range(len(view.branches))],
    )
    marks = [("base", np.zeros(2), GREY, "o"), ("merged", view.merged, BLACK, "*")]
    if view.joint is not None:
        axes.plot((0, view.joint[0]), (0, view.joint[1]), color=VERMILION, lw=0.8, ls="--")
        marks.append((str(view.joint_method), view.joint, VERMILION, "h"))
    for label, place, color, marker in marks:
        axes.plot(*place, marker, color=color, mec="white", mew=0.7, ms=8, label=label, ls="")
    axes.set_title(f"Displacement from the base: branches of {view.method}")
    axes.set_xlabel(f"PC1 ({view.share[0]:.0%} of the branches' squared length)")
    axes.set_ylabel(f"PC2 ({view.share[1]:.0%})")
    axes.set_aspect("equal", adjustable="datalim")
    legend(figure)
    return figure
