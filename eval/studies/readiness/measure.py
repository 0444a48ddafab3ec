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
from typing import Any

import numpy as np
import torch

from merit.config import Experiment
from merit.config.branches import Model, plan
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate, score_candidates
from merit.eval.measuring.losses import (
    base_vector,
    branch_readers,
    open_evaluator,
    reader,
    vectors_on_disk,
)
from merit.eval.measuring.scores import Row, difference, num_questions
from merit.eval.studies.readiness.geometry import Split, conditions, geometry, of_kind
from merit.eval.studies.readiness.settings import Readiness
from merit.io.artifacts import Artifacts
from merit.io.checkpoints import Checkpoint


def measure(experiment: Experiment, paths: Artifacts, settings: Readiness) -> dict[str, Any]:
    """Losses, barriers, displacements and validation scores; the verdict in `summary`."""
    joints, randoms = reference_models(experiment, settings)
    meter = open_evaluator(experiment, paths, settings.num_examples)
    base = base_vector(meter, paths)
    readers = [reader(meter, paths, m) for m in joints]
    for m in randoms:
        readers += [*branch_readers(meter, paths, m), reader(meter, paths, m)]
    with vectors_on_disk(meter, paths, readers) as vectors:
        rest = iter(vectors)
        at_joint = {model.id: next(rest) for model in joints}
        splits = [Split(m.id, [next(rest) for _ in m.branches], next(rest)) for m in randoms]
        found = geometry(meter, base, at_joint, splits, settings.num_points)
    models = [Candidate(m.id, functools.partial(_tensors, paths, m)) for m in (*joints, *randoms)]
    scores = score_candidates(experiment, paths, "validation", models, "readiness")
    behind = difference([scores[m.id] for m in randoms], [scores[m.id] for m in joints])
    asked = num_questions(scores[joints[0].id])
    return outcome(found, behind, settings, asked, len(meter.num_tokens))


def reference_models(
    experiment: Experiment, settings: Readiness
) -> tuple[list[Model], list[Model]]:
    """Joint training's and the random splits' models, one a seed.

    Raises MeritError where the experiment has no such method.
    """
    models = plan(experiment).models.values()
    found = []
    for key in ("joint", "random"):
        name = getattr(settings, key)
        method = experiment.methods.get(name)
        if method is None or method.partition != key:
            raise MeritError(
                f"experiments/{experiment.name}.yaml: key `studies.readiness.{key}`: found "
                f"{name!r}, which is no {key} method that is run; readiness is measured on joint "
                "training and random splits, so add one"
            )
        found.append([model for model in models if model.method == name])
    return found[0], found[1]


def _tensors(paths: Artifacts, model: Model) -> Mapping[str, torch.Tensor]:
    return dict(Checkpoint(paths.model(model.id)).items())


def outcome(
    found: Mapping[str, Sequence[Row]],
    behind: tuple[float, float, float],
    settings: Readiness,
    num_questions: int,
    num_batches: int,
) -> dict[str, Any]:
    """The study's result: tables, and a summary with the verdict."""
    rows = conditions(found, behind, settings.thresholds)
    failed = [row["condition"] for row in rows if not row["holds"]]

    def losses(kind: str) -> list[float]:
        return of_kind(found, kind, "loss")

    def relative(kind: str) -> float:
        return float(np.mean(of_kind(found, kind, "relative_displacement")))

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
