"""readiness: is the base merge-ready? Asked before anything is claimed of MERIT (paper, section 4).

The paper's claims are about a base from which fine-tuning stays inside one basin. Whether it does
is measured only on joint training and random splits, no MERIT model takes part:

    (a) no barrier on the straight paths between a random split's branches, and to their average;
    (b) every branch of a random split has a lower loss on the whole mixture than the base;
    (c) joint training moves the trained parameters by at most a tenth of the base's norm;
    (d) random splits are at most one point worse than joint training, on the validation questions.

Without benchmarks, (d) is asked of the exact matches of short held-out answers, if there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merit.config import Experiment
from merit.config.branches import Model
from merit.eval.measuring.candidates import Candidate, score_candidates
from merit.eval.measuring.held_out import match_scores
from merit.eval.measuring.losses import open_evaluator
from merit.eval.measuring.models import branch_folders, method_of_kind, models_of
from merit.eval.measuring.scores import Interval, Row, difference, num_questions
from merit.eval.studies.readiness import Readiness
from merit.eval.studies.readiness.geometry import Split, conditions, geometry, of_kind
from merit.io.artifacts import Artifacts
from merit.io.checkpoints import Checkpoint


def measure(experiment: Experiment, paths: Artifacts, settings: Readiness) -> dict[str, Any]:
    """Losses, barriers, displacements and validation scores; the verdict in `summary`."""
    joints, randoms = reference_models(experiment, settings)
    evaluator = open_evaluator(experiment, paths, settings.num_examples)
    base = evaluator.vector(paths, paths.base)
    folders = [paths.model(m.id) for m in joints]
    for m in randoms:
        folders += [*branch_folders(paths, m), paths.model(m.id)]
    with evaluator.vectors(paths, folders) as vectors:
        rest = iter(vectors)
        at_joint = {model.id: next(rest) for model in joints}
        splits = [Split(m.id, [next(rest) for _ in m.branches], next(rest)) for m in randoms]
        found = geometry(evaluator, base, at_joint, splits, settings.num_points)

    def candidate(model: str) -> Candidate:
        return Candidate(model, lambda: dict(Checkpoint(paths.model(model)).items()))

    names = [m.id for m in (*joints, *randoms)]
    if experiment.evaluation.benchmarks:
        models = [candidate(name) for name in names]
        scores = score_candidates(experiment, paths, "validation", models, "readiness")
    else:
        scores = match_scores(experiment, paths, names)
    behind, asked = None, 0
    if scores:
        behind = difference([scores[m.id] for m in randoms], [scores[m.id] for m in joints])
        asked = num_questions(scores[joints[0].id])
    return outcome(found, behind, settings, asked, len(evaluator.num_tokens))


def reference_models(
    experiment: Experiment, settings: Readiness
) -> tuple[list[Model], list[Model]]:
    """Joint training's and the random splits' models, one per seed.

    Raises MeritError where the experiment has no such method.
    """
    for key in ("joint", "random"):
        method_of_kind(experiment, f"readiness.{key}", getattr(settings, key), key)
    models = models_of(experiment)
    return models[settings.joint], models[settings.random]


def outcome(
    found: Mapping[str, Sequence[Row]],
    behind: Interval | None,
    settings: Readiness,
    num_questions: int,
    num_batches: int,
) -> dict[str, Any]:
    """The study's result: tables, and a summary with the verdict."""
    rows = conditions(found, behind, settings.thresholds)
    failed = [row["condition"] for row in rows if row["holds"] is False]
    loss = {kind: of_kind(found, kind, "loss") for kind in ("base", "joint", "branch", "merged")}
    joint, merged = float(np.mean(loss["joint"])), float(np.mean(loss["merged"]))
    summary = {
        "merge_ready": not failed,
        "failed": failed,
        "decided_by_d": failed in ([], ["d"]),
        "loss_base": loss["base"][0],
        "loss_joint": joint,
        "loss_branches": [min(loss["branch"]), max(loss["branch"])],
        "loss_merged": merged,
        "worst_branch_over_merged": max(loss["branch"]) / merged,
        "joint_over_merged": joint / merged,
        "max_barrier_share": rows[0]["value"],
        "relative_displacement": {
            kind: float(np.mean(of_kind(found, kind, "relative_displacement")))
            for kind in ("joint", "branch", "merged")
        },
        "random_minus_joint": list(behind) if behind else None,
        "joint": settings.joint,
        "random": settings.random,
        "num_examples": settings.num_examples,
        "num_batches": num_batches,
        "num_questions": num_questions,
        "verdict": verdict(failed, "abcd" if behind else "abc"),
    }
    return {
        "tables": {
            "readiness": rows,
            "readiness_models": list(found["models"]),
            "readiness_paths": list(found["paths"]),
        },
        "summary": summary,
        "curves": list(found.get("curves", ())),
    }


def verdict(failed: Sequence[str], asked: str = "abcd") -> str:
    """One sentence."""
    if not failed:
        return f"Merge-ready: conditions (a) to ({asked[-1]}) hold."
    which = " and ".join(f"({letter})" for letter in failed)
    if len(failed) > 1:
        return f"Not merge-ready: conditions {which} fail."
    return f"Not merge-ready: condition {which} fails."
