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
from merit.eval.measuring.scores import Row, average, columns, difference, num_questions, verdict
from merit.eval.studies.readiness.settings import Readiness, Thresholds
from merit.eval.studies.regime.settings import Regime
from merit.io.artifacts import Artifacts, read_json

OWN, OTHER = "has the skills", "must learn them"  # said of the base
KINDS = ("joint", "random", "merit")  # what is trained, in this order
PAIRS = (
    ("merit", "random"),
    ("merit", "joint"),
    ("random", "joint"),
    ("merit", "shrunk"),
    ("random", "shrunk"),
)
VERDICTS = ("ahead", "behind", "undecided", "not finite")


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
        method = experiment.methods.get(name)
        if method is None or method.partition != kind:
            raise MeritError(
                f"{where}.{key}`: {name!r} is no {kind} method of {experiment.name}; name one that "
                "is"
            )
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
    own, paths = experiment.training.optimizer.learning_rate, Artifacts(experiment.name)
    tag = "" if rate == own else suffix({"learning_rate": rate})
    names = (settings.joint, settings.random, settings.method, settings.shrunk)
    models = {
        kind: [f"{name}{tag}-s{seed}" for seed in sweep.seeds]
        for kind, name in zip((*KINDS, "shrunk"), names, strict=True)
    }
    known = plan(experiment).models
    for model in (model for some in models.values() for model in some):
        if model not in known:
            raise MeritError(
                f"experiments/{experiment.name}.yaml: key `methods`: no model {model!r}, which the "
                f"study regime reads; it takes the methods of `sweeps.{settings.sweep}`"
            )
    records = [merge_record(paths, model) for some in models.values() for model in some]
    return None if any(record["failure"] for record in records) else models


def merge_record(paths: Artifacts, model: str) -> dict[str, Any]:
    return read_json(paths.model(model) / "merge.json")


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

    `merge_ready` is None where a training did not stay finite. Args: found: as `read_models` has
    it; paths: of the cell's base.
    """
    where: Row = {"base": base, "learning_rate": rate}
    if found is None:
        nothing = ("averages", "differences", "distances", "relative_displacements", "merge_ready")
        return where | dict.fromkeys(nothing)
    models = {kind: [stored_questions(paths, m) for m in some] for kind, some in found.items()}
    models["base"] = [stored_questions(paths, "base")]
    differences = {f"{a}-{b}": difference(models[a], models[b]) for a, b in PAIRS}
    distances = {
        kind: float(np.mean([merge_record(paths, model)["displacement"] for model in found[kind]]))
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
    differences, models, each = [], [], []
    for entry in cells:
        where = {key: entry[key] for key in ("base", "learning_rate")}
        for a, b in PAIRS:
            value, low, high = (entry["differences"] or {}).get(f"{a}-{b}", (None, None, None))
            differences.append(
                where
                | {"ours": a, "theirs": b, "difference": value, "low": low, "high": high}
                | {"verdict": _verdict(entry, a, b)}
            )
        each.append(where | _readiness(entry))
        if entry["averages"] is None:
            continue
        for kind in ("base", *KINDS, "shrunk"):
            value, low, high = entry["averages"][kind]
            models.append(
                where
                | {"model": kind, "avg": value, "low": low, "high": high}
                | {"distance": entry["distances"][kind]}
                | {"relative_displacement": entry["relative_displacements"][kind]}
            )
    kept = {"regime_differences": differences, "regime_models": models, "regime_cells": each}
    return {stem: rows for stem, rows in kept.items() if rows}


def _readiness(entry: Row) -> Row:
    """What decides whether the cell is merge-ready; None where it has no models."""
    relative = entry["relative_displacements"] or {}
    behind = (entry["differences"] or {}).get("random-joint")
    return {
        **{f"relative_displacement_{kind}": relative.get(kind) for kind in KINDS},
        "random_minus_joint": behind and behind[0],
        "merge_ready": entry["merge_ready"],
    }


def _verdict(entry: Row, ours: str, theirs: str) -> str:
    if entry["differences"] is None:
        return "not finite"
    return verdict(entry["differences"][f"{ours}-{theirs}"])


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
    for a, b in PAIRS:  # in how many cells the difference is ahead, ...
        words = [_verdict(entry, a, b) for entry in cells]
        for word in VERDICTS:
            found[f"{a}_minus_{b}_{word.replace(' ', '_')}"] = words.count(word)
    for entry in cells:
        one = {key: entry[key] for key in ("base", "learning_rate")} | _readiness(entry)
        for kind, (value, _, _) in (entry["averages"] or {}).items():
            one[f"avg_{kind}"] = value
        for a, b in PAIRS:
            key = f"{a}_minus_{b}"
            one |= columns(key, (entry["differences"] or {}).get(f"{a}-{b}"))
            one[f"{key}_verdict"] = _verdict(entry, a, b)
        found["cells"].append(one)
    return found
