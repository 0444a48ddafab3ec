"""regime: where does conflict-aware splitting help? A map that the paper does not have.

At every learning rate, from a base that has the skills and from one that must learn them: joint
training, random groups, MERIT, and joint training shrunk to MERIT's distance (docs/method.md 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merit.config import Experiment, Sweep, load_experiment, suffix
from merit.config.branches import plan
from merit.errors import MeritError
from merit.eval.answering.answers import stored_questions
from merit.eval.measuring.models import displacement, merge_record, method_of_kind
from merit.eval.measuring.scores import (
    Interval,
    Row,
    average,
    columns,
    difference,
    num_questions,
    verdict,
)
from merit.eval.studies.readiness import Readiness, Thresholds
from merit.eval.studies.regime import Regime
from merit.io.artifacts import Artifacts

OWN, OTHER = "has the skills", "must learn them"  # said of the base
KINDS = ("joint", "random", "merit")  # what is trained, in this order
PAIRS = (
    ("merit", "random"),
    ("merit", "joint"),
    ("random", "joint"),
    ("merit", "shrunk"),
    ("random", "shrunk"),
)


def measure(experiment: Experiment, paths: Artifacts, settings: Regime) -> dict[str, Any]:
    """Every cell of the map from the sweep's models; differences with paired intervals."""
    epochs, sweep = check_methods(experiment, settings), experiment.sweeps[settings.sweep]
    bases = {OWN: experiment}
    if settings.other:
        bases[OTHER] = load_experiment(settings.other)
    own, limits = experiment.training.optimizer.learning_rate, thresholds(experiment)
    rates = sorted({*sweep.learning_rate, own})
    cells = [
        cell(kind, rate, read_models(start, settings, sweep, rate), Artifacts(start.name), limits)
        for kind, start in bases.items()
        for rate in rates
    ]
    asked = num_questions(stored_questions(paths, "base"))
    return {
        "tables": tables(cells),
        "summary": summary(cells, sweep, asked, epochs, limits),
        "cells": cells,
        "learning_rates": rates,
        "own_learning_rate": own,
        "bases": [{"base": kind, **skills(start)} for kind, start in bases.items()],
        "methods": {
            "joint": settings.joint, "random": settings.random, "merit": settings.method,
        },
        "num_random": len(sweep.seeds),
        "num_benchmarks": len(experiment.evaluation.benchmarks),
        "thresholds": limits.model_dump(mode="json"),
    }  # fmt: skip


# --- what is asked -----------------------------------------------------------------------------


def check_methods(experiment: Experiment, settings: Regime) -> float:
    """The epochs that all three methods are trained for.

    Raises MeritError unless they are a joint, a random and a merit method of equal epochs, and with
    the shrunk one part of a sweep that has every cell of the map.
    """
    where = f"experiments/{experiment.name}.yaml: key `studies.regime"
    sweep = experiment.sweeps.get(settings.sweep)
    if sweep is None:
        raise MeritError(f"{where}.sweep`: no sweep is called {settings.sweep!r}")
    epochs: dict[str, float] = {}
    for key in (*KINDS[:2], "method", "shrunk"):
        name, kind = getattr(settings, key), "merit" if key == "method" else key
        method = method_of_kind(experiment, f"regime.{key}", name, kind)
        if name not in sweep.methods:
            raise MeritError(
                f"{where}.{key}`: {name!r} is not among `sweeps.{settings.sweep}.methods`"
            )
        if method.trained:
            epochs[name] = method.epochs
    if len(set(epochs.values())) > 1:
        found = ", ".join(f"{name} {value:g}" for name, value in epochs.items())
        raise MeritError(
            f"{where}`: the methods are trained for different epochs ({found}); name three of "
            "equal epochs"
        )
    return next(iter(epochs.values()))


def thresholds(experiment: Experiment) -> Thresholds:
    """What the study `readiness` asks of a merge-ready base."""
    return Readiness.model_validate(experiment.studies.get("readiness") or {}).thresholds


def skills(experiment: Experiment) -> dict[str, int | None]:
    """How many skills the base has seen, and of how many; None where the data has no skills."""
    data = experiment.data
    total, new = getattr(data, "num_skills", None), getattr(data, "num_new_skills", None)
    known = None if total is None or new is None else total - new
    return {"known_skills": known, "num_skills": total}


# --- what the pipeline trained and scored ------------------------------------------------------


def read_models(
    experiment: Experiment, settings: Regime, sweep: Sweep, rate: float
) -> dict[str, list[str]] | None:
    """{"joint", "random", "merit", "shrunk": model ids, one a seed} of one cell.

    None where a training did not stay finite: such a cell has no models.
    """
    own, known = experiment.training.optimizer.learning_rate, plan(experiment).models
    tag = "" if rate == own else suffix({"learning_rate": rate})
    names = (settings.joint, settings.random, settings.method, settings.shrunk)
    models = {
        kind: [f"{name}{tag}-s{seed}" for seed in sweep.seeds]
        for kind, name in zip((*KINDS, "shrunk"), names, strict=True)
    }
    every = [model for some in models.values() for model in some]
    for model in every:
        if model not in known:
            raise MeritError(
                f"experiments/{experiment.name}.yaml: key `methods`: no model {model!r}, which the "
                f"study regime reads; it takes the methods of `sweeps.{settings.sweep}`"
            )
    paths = Artifacts(experiment.name)
    return None if any(merge_record(paths, model)["failure"] for model in every) else models


def base_norm(paths: Artifacts, joint: str) -> float:
    """||theta0||_2 over the base's tensors that the joint model's branch trains."""
    from merit.io.checkpoints import Checkpoint

    branch = merge_record(paths, joint)["branches"][0]
    names, start = Checkpoint(paths.branch(branch)).names, Checkpoint(paths.base)
    return sum(float(start.read(name).double().square().sum()) for name in names) ** 0.5


# --- what is reported --------------------------------------------------------------------------


def cell(
    base: str,
    rate: float,
    found: Mapping[str, Sequence[str]] | None,
    paths: Artifacts,
    limits: Thresholds,
) -> Row:
    """One cell: averages, differences with intervals, distances, and whether it is merge-ready.

    All are None where a training did not stay finite. Args: found: as `read_models` has it; paths:
    of the cell's base.
    """
    where: Row = {"base": base, "learning_rate": rate}
    if found is None:
        nothing = ("averages", "differences", "distances", "relative_displacements", "merge_ready")
        return where | dict.fromkeys(nothing)
    models = {kind: [stored_questions(paths, m) for m in some] for kind, some in found.items()}
    models["base"] = [stored_questions(paths, "base")]
    differences = {f"{a}-{b}": difference(models[a], models[b]) for a, b in PAIRS}
    distances = {
        kind: float(np.mean([displacement(paths, model) for model in found[kind]]))
        for kind in KINDS
    }
    distances |= {"shrunk": distances["merit"], "base": 0.0}
    norm = base_norm(paths, found["joint"][0])
    relative = {kind: value / norm for kind, value in distances.items()}
    return where | {
        "averages": {kind: average(some) for kind, some in models.items()},
        "differences": differences,
        "distances": distances,
        "relative_displacements": relative,
        "alpha": merge_record(paths, found["shrunk"][0])["alpha"],
        "merge_ready": merge_ready(relative["joint"], differences["random-joint"][0], limits),
    }


def merge_ready(joint_displacement: float, random_minus_joint: float, limits: Thresholds) -> bool:
    """Conditions (c) and (d) of the study `readiness`; here (d) is asked of the test questions."""
    near = joint_displacement <= limits.joint_displacement
    return near and random_minus_joint >= -limits.random_behind


def tables(cells: Sequence[Row]) -> dict[str, list[Row]]:
    """Tidy: a row a cell and difference, a row a cell and model, a row a cell."""
    found: dict[str, list[Row]] = {
        "regime_differences": [], "regime_models": [], "regime_cells": [],
    }  # fmt: skip
    names = ("difference", "low", "high")
    for entry in cells:
        where = {key: entry[key] for key in ("base", "learning_rate")}
        for (a, b), (gap, word) in differences_of(entry).items():
            values = dict(zip(names, gap or (None, None, None), strict=True))
            found["regime_differences"].append(
                where | {"ours": a, "theirs": b} | values | {"verdict": word}
            )
        found["regime_cells"].append(where | readiness_of(entry))
        for kind in ("base", *KINDS, "shrunk") if entry["averages"] else ():
            value, low, high = entry["averages"][kind]
            found["regime_models"].append(
                where
                | {"model": kind, "avg": value, "low": low, "high": high}
                | {"distance": entry["distances"][kind]}
                | {"relative_displacement": entry["relative_displacements"][kind]}
            )
    return {stem: rows for stem, rows in found.items() if rows}


def differences_of(entry: Row) -> dict[tuple[str, str], tuple[Interval | None, str]]:
    """{pair: its difference and verdict}; None and "not finite" of a cell without models."""
    gaps = {pair: (entry["differences"] or {}).get("-".join(pair)) for pair in PAIRS}
    return {pair: (gap, verdict(gap) if gap else "not finite") for pair, gap in gaps.items()}


def readiness_of(entry: Row) -> Row:
    """What decides whether the cell is merge-ready; None where it has no models."""
    relative, (behind, _) = entry["relative_displacements"], differences_of(entry)[PAIRS[2]]
    return {
        **{f"relative_displacement_{kind}": relative and relative[kind] for kind in KINDS},
        "random_minus_joint": behind and behind[0],
        "merge_ready": entry["merge_ready"],
    }


def summary(
    cells: Sequence[Row], sweep: Sweep, num_questions: int, epochs: float, limits: Thresholds
) -> Row:
    """The counts, and every cell as one flat entry of `cells`."""
    found: Row = {
        "num_cells": len(cells),
        "num_merge_ready": sum(entry["merge_ready"] is True for entry in cells),
        "num_questions": num_questions,
        "num_random": len(sweep.seeds),
        "seed": sweep.seeds[0],
        "epochs": epochs,
        "thresholds": limits.model_dump(mode="json"),
        "cells": [],
    }
    words = ("ahead", "behind", "undecided", "not_finite")
    found |= {f"{a}_minus_{b}_{word}": 0 for a, b in PAIRS for word in words}  # numbers of cells
    for entry in cells:
        one = {key: entry[key] for key in ("base", "learning_rate")} | readiness_of(entry)
        one |= {f"avg_{kind}": value for kind, (value, _, _) in (entry["averages"] or {}).items()}
        for (a, b), (gap, word) in differences_of(entry).items():
            one |= columns(f"{a}_minus_{b}", gap) | {f"{a}_minus_{b}_verdict": word}
            found[f"{a}_minus_{b}_{word.replace(' ', '_')}"] += 1
        found["cells"].append(one)
    return found
