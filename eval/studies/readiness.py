"""readiness: is the base merge-ready? Asked before anything is claimed of MERIT (paper, section 4).

The paper's claims are about a base from which fine-tuning stays inside one basin. Whether it does
is measured on joint training and random splits alone, no MERIT model takes part:

    (a) no barrier on the straight paths between a random split's branches, and to their average;
    (b) every branch of a random split has a lower loss on the whole mixture than the base;
    (c) joint training moves the trained parameters by at most a tenth of the base's norm;
    (d) random splits are at most one point worse than joint training, on the validation questions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.report import style
from eval.studies.compare import Scores, difference
from eval.studies.loss import Losses, Meter, base_vector, branch_vectors, model_vector, open_meter
from eval.studies.runs import Candidate, score_models, study_folder
from merit.config import Experiment, JointMethod, RandomMethod, load_params
from merit.config_studies import Readiness, Thresholds
from merit.core.diagnostics import barrier
from merit.errors import MeritError
from merit.io.artifacts import Artifacts
from merit.io.checkpoints import Checkpoint
from merit.methods import Model, plan
from merit.progress import Progress

Row = dict[str, Any]

CONDITIONS = {
    "a": "no barrier: largest barrier, share of the mean loss at the path's ends",
    "b": "every branch learns: worst branch's loss on the mixture, share of the base's",
    "c": "joint training stays near: displacement, share of the base's norm",
    "d": "splitting at random costs little: random - joint, points on validation",
}


@dataclass(frozen=True)
class Split:
    """One random split's branches and their average, each a vector (P,) as in `Meter`."""

    name: str
    branches: list[torch.Tensor]
    merged: torch.Tensor


def measure(experiment: Experiment, paths: Artifacts, settings: Readiness) -> dict[str, Any]:
    """Losses, barriers, displacements and validation scores; the verdict in `summary`."""
    joints, randoms = reference_models(experiment, settings)
    meter = open_meter(experiment, paths, settings.num_examples)
    base = base_vector(meter, paths)
    found = geometry(
        meter,
        base,
        {model.id: model_vector(meter, paths, model.id) for model in joints},
        [
            Split(m.id, branch_vectors(meter, paths, m), model_vector(meter, paths, m.id))
            for m in randoms
        ],
        settings.num_points,
    )
    scores = score_models(
        experiment,
        paths.data / "benchmarks" / "validation",
        [
            Candidate(m.id, paths.base, functools.partial(_tensors, paths, m))
            for m in (*joints, *randoms)
        ],
        study_folder(paths, "readiness"),
        load_params().workers,
        "readiness",
    )
    behind = difference([scores[m.id] for m in randoms], [scores[m.id] for m in joints])
    return outcome(found, behind, settings, num_questions(scores), len(meter.num_tokens))


def reference_models(
    experiment: Experiment, settings: Readiness
) -> tuple[list[Model], list[Model]]:
    """Joint training's and the random splits' models, one a seed.

    Raises MeritError where the experiment has no such method.
    """
    models = plan(experiment).models.values()
    found = []
    for key, kind in (("joint", JointMethod), ("random", RandomMethod)):
        name = getattr(settings, key)
        if not isinstance(experiment.methods.get(name), kind):
            raise MeritError(
                f"experiments/{experiment.name}.yaml: key `studies.readiness.{key}`: found "
                f"{name!r}, which is no {key} method that is run; readiness is measured on joint "
                "training and random splits, so add one"
            )
        found.append([model for model in models if model.method == name])
    return found[0], found[1]


def _tensors(paths: Artifacts, model: Model) -> Mapping[str, torch.Tensor]:
    return dict(Checkpoint(paths.model(model.id) / "model.safetensors").items())


def num_questions(scores: Mapping[str, Scores]) -> int:
    return sum(len(answers) for answers in next(iter(scores.values())).values())


# --- losses, distances, barriers ----------------------------------------------------------------


def geometry(
    meter: Meter,
    base: torch.Tensor,
    joints: Mapping[str, torch.Tensor],
    splits: Sequence[Split],
    num_points: int,
) -> dict[str, list[Row]]:
    """{"models": a row a model, "paths": a row a path of the first split, "curves": its losses}.

    Paths run round the branches (0-1, 1-2, ..., back to 0) and from every branch to the average.
    """
    norm = float(base.double().norm())
    models: list[tuple[str, str, torch.Tensor]] = [("base", "base", base)]
    models += [("joint", name, theta) for name, theta in joints.items()]
    for split in splits:
        for k, theta in enumerate(split.branches):
            models.append(("branch", f"{split.name}-g{k}", theta))
        models.append(("merged", split.name, split.merged))
    first = splits[0]
    count = len(first.branches)
    ring = [(k, (k + 1) % count) for k in range(count if count > 2 else 1)]
    alphas = np.linspace(0.0, 1.0, num_points)
    total = len(models) + (len(ring) + count) * (num_points - 2)
    with Progress("readiness, losses", total) as progress:

        def losses(theta: torch.Tensor, what: str) -> Losses:
            progress.advance()
            found = meter.losses(theta)
            if not np.isfinite(found).all():
                raise MeritError(f"readiness: the loss of {what} on the mixture is not finite")
            return found

        known = {name: losses(theta, name) for _, name, theta in models}
        ends = [(f"{first.name}-g{k}", theta) for k, theta in enumerate(first.branches)]
        pairs = [(ends[a], ends[b]) for a, b in ring]
        pairs += [(end, (first.name, first.merged)) for end in ends]
        paths: list[Row] = []
        curves: list[Row] = []
        for (a, theta_a), (b, theta_b) in pairs:
            path = f"{a} to {b}"
            inner = [losses(torch.lerp(theta_a, theta_b, float(x)), path) for x in alphas[1:-1]]
            curve = np.array([meter.mean(x) for x in (known[a], *inner, known[b])])
            height = max(0.0, barrier(alphas, curve))
            curves.append({"path": path, "alpha": alphas.tolist(), "loss": curve.tolist()})
            paths.append(
                {
                    "path": path,
                    "loss_at_0": float(curve[0]),
                    "loss_max": float(curve.max()),
                    "loss_at_1": float(curve[-1]),
                    "barrier": height,
                    "barrier_share": height / float(curve[[0, -1]].mean()),
                }
            )
    rows = []
    for kind, name, theta in models:
        distance = float((theta.double() - base.double()).norm())
        rows.append(
            {
                "kind": kind,
                "model": name,
                "displacement": distance,
                "relative_displacement": distance / norm,
                "loss": meter.mean(known[name]),
                "loss_se": meter.standard_error(known[name]),
            }
        )
    return {"models": rows, "paths": paths, "curves": curves}


# --- the rule -----------------------------------------------------------------------------------


def conditions(
    found: Mapping[str, Sequence[Row]],
    behind: tuple[float, float, float],
    thresholds: Thresholds,
) -> list[Row]:
    """A row a condition: letter, what is measured, value, bound, whether it holds.

    Args: found: as `geometry` gives it; behind: random - joint on validation, with its interval.
    """
    by_kind: dict[str, list[Row]] = {}
    for row in found["models"]:
        by_kind.setdefault(row["kind"], []).append(row)
    base = by_kind["base"][0]["loss"]
    values = {
        "a": max(row["barrier_share"] for row in found["paths"]),
        "b": max(row["loss"] for row in by_kind["branch"]) / base,
        "c": max(row["relative_displacement"] for row in by_kind["joint"]),
        "d": behind[0],
    }
    holds = {
        "a": values["a"] <= thresholds.barrier_share,
        "b": values["b"] < 1.0,
        "c": values["c"] <= thresholds.joint_displacement,
        "d": values["d"] >= -thresholds.random_behind,
    }
    bounds = {
        "a": thresholds.barrier_share,
        "b": 1.0,
        "c": thresholds.joint_displacement,
        "d": -thresholds.random_behind,
    }
    return [
        {
            "condition": letter,
            "measured": text,
            "value": values[letter],
            "low": behind[1] if letter == "d" else None,
            "high": behind[2] if letter == "d" else None,
            "bound": bounds[letter],
            "holds": bool(holds[letter]),
        }
        for letter, text in CONDITIONS.items()
    ]


def outcome(
    found: Mapping[str, Sequence[Row]],
    behind: tuple[float, float, float],
    settings: Readiness,
    num_questions: int,
    num_batches: int,
) -> dict[str, Any]:
    """The study's result: tables, summary with the verdict, text."""
    rows = conditions(found, behind, settings.thresholds)
    failed = [row["condition"] for row in rows if not row["holds"]]
    kinds: dict[str, list[Row]] = {}
    for row in found["models"]:
        kinds.setdefault(row["kind"], []).append(row)

    def losses(kind: str) -> list[float]:
        return [row["loss"] for row in kinds[kind]]

    def relative(kind: str) -> float:
        return float(np.mean([row["relative_displacement"] for row in kinds[kind]]))

    merged = float(np.mean(losses("merged")))
    summary = {
        "merge_ready": not failed,
        "failed": failed,
        "decided_by_d": failed in ([], ["d"]),
        "loss_base": losses("base")[0],
        "loss_joint": float(np.mean(losses("joint"))),
        "loss_branches": [min(losses("branch")), max(losses("branch"))],
        "loss_merged": merged,
        "worst_branch_over_merged": max(losses("branch")) / merged,
        "joint_over_merged": float(np.mean(losses("joint"))) / merged,
        "max_barrier_share": rows[0]["value"],
        "relative_displacement": {kind: relative(kind) for kind in ("joint", "branch", "merged")},
        "random_minus_joint": list(behind),
        "joint": settings.joint,
        "random": settings.random,
        "num_examples": settings.num_examples,
        "num_batches": num_batches,
        "num_questions": num_questions,
    }
    summary["verdict"] = verdict(rows)
    return {
        "tables": {
            "readiness": rows,
            "readiness_models": list(found["models"]),
            "readiness_paths": list(found["paths"]),
        },
        "summary": summary,
        "text": sentences(summary),
        "curves": list(found.get("curves", ())),
    }


def verdict(rows: Sequence[Row]) -> str:
    """One sentence."""
    failed = [row["condition"] for row in rows if not row["holds"]]
    if not failed:
        return "Merge-ready: conditions (a) to (d) hold."
    which = " and ".join(f"({letter})" for letter in failed)
    return f"Not merge-ready: condition{'s' if len(failed) > 1 else ''} {which} fail" + (
        "." if len(failed) > 1 else "s."
    )


def sentences(summary: Row) -> str:
    """The outcome in words, with the paper's numbers beside ours."""
    low, high = summary["loss_branches"]
    value, below, above = summary["random_minus_joint"]
    share = summary["relative_displacement"]
    return (
        f"{summary['verdict']} Joint training moves the trained parameters by {share['joint']:.1%} "
        f"of the base's norm, a branch of {summary['random']} by {share['branch']:.1%}, their "
        f"average by {share['merged']:.1%} (the paper's joint model at 3B: 1 to 2 %). Loss on "
        f"{summary['num_examples']} examples of the mixture: base {summary['loss_base']:.2f}, "
        f"joint {summary['loss_joint']:.2f}, branches {low:.2f} to {high:.2f}, merged "
        f"{summary['loss_merged']:.2f}; the worst branch has "
        f"{summary['worst_branch_over_merged']:.2f} times the merged loss (paper, table 5: 1.25), "
        f"joint {summary['joint_over_merged']:.2f} times (table 1: 0.48). The largest barrier is "
        f"{summary['max_barrier_share']:.2%} of its ends' mean loss. {summary['random']} minus "
        f"{summary['joint']} on {summary['num_questions']} validation questions: {value:+.1f} "
        f"points (95 % interval {below:+.1f} to {above:+.1f}). No MERIT model takes part."
    )


# --- figure -------------------------------------------------------------------------------------


def draw(result: dict[str, Any], folder: Path) -> None:
    """Loss on the mixture against the distance from the base; the paths of one split."""
    models = result["tables"]["readiness_models"]
    marks = {
        "base": (style.GREY, "D"),
        "joint": (style.VERMILION, "o"),
        "branch": (style.BLUE, "."),
        "merged": (style.GREEN, "s"),
    }
    labels = {
        "base": "base",
        "joint": "joint training",
        "branch": f"branches of {result['summary']['random']}",
        "merged": f"{result['summary']['random']}, merged",
    }
    with style.styled():
        figure = style.new_figure(7.2, 3.2)
        left, right = figure.subplots(1, 2, sharey=True)
        for kind, (color, marker) in marks.items():
            rows = [row for row in models if row["kind"] == kind]
            x = [100 * row["relative_displacement"] for row in rows]
            y = [row["loss"] for row in rows]
            left.plot(x, y, marker, color=color, label=labels[kind], ms=5)
        left.axhline(result["summary"]["loss_base"], color=style.GREY, lw=0.7, ls="--")
        left.set_xlabel("distance from the base (% of its norm)")
        left.set_ylabel("loss on the whole mixture")
        left.legend(loc="best")
        merged = {row["model"] for row in models if row["kind"] == "merged"}
        for row in result["curves"]:
            to_merged = row["path"].partition(" to ")[2] in merged
            color = style.GREEN if to_merged else style.BLUE
            right.plot(row["alpha"], row["loss"], color=color, lw=0.9, marker=".", ms=3)
            ends = (row["loss"][0], row["loss"][-1])
            right.plot((0, 1), ends, color=color, lw=0.5, ls=":")
        right.set_xticks((0, 1), ("one model", "the other"))
        right.set_title("Between branches, and to their average (dotted: no barrier)", fontsize=8)
        style.save(figure, folder / "figures", "readiness")
