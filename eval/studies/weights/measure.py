"""weights: every method's branches merged under every reading of `merge_weights`.

The paper weighs a branch by its tokens and does not say which tokens count. The same branches are
merged here by all of their tokens, the supervised tokens, their samples, or uniformly; nothing is
trained. Random splits have branches of much the same kind, so that the reading hardly moves them; a
split that separates long from short answers is at its mercy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from merit.config import Experiment
from merit.config.branches import Model
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate, average_files, score_candidates
from merit.eval.measuring.losses import branch_folders, planned_model
from merit.eval.measuring.scores import (
    Interval,
    Row,
    Scores,
    average,
    columns,
    difference,
    interval,
    num_questions,
)
from merit.eval.studies.weights.settings import Weights
from merit.io.artifacts import Artifacts, read_json
from merit.method.average import BUDGETS, merge_weights

READINGS = (*BUDGETS, "uniform")
SAME = 1e-12  # merge weights that differ by less give the same model
Shares = dict[str, list[float]]  # reading -> merge weights (K,)
Models = Mapping[str, Sequence[Model]]  # method -> its models, one per seed


def measure(experiment: Experiment, paths: Artifacts, settings: Weights) -> dict[str, Any]:
    """Merge weights of every branch, and test scores of every method, under every reading."""
    models = chosen_models(experiment, settings)
    joint = joint_models(experiment, settings)
    own = experiment.merge_weights
    shares = {model.id: readings(paths, model) for found in models.values() for model in found}

    def candidate(model: Model, reading: str) -> Candidate:
        weights, table = shares[model.id], None
        if scored_as(weights)[own] == reading:
            table = model.id  # merged by its own reading, it is the model of the tables
        return Candidate(
            f"{model.id}-{reading}",
            lambda: average_files(branch_folders(paths, model), weights[reading]),
            table,
        )

    def own_candidate(model: Model) -> Candidate:
        folders = branch_folders(paths, model)
        return Candidate(model.id, lambda: average_files(folders, [1.0]), model.id)

    wanted = [
        candidate(model, reading)
        for found in models.values()
        for model in found
        for reading in dict.fromkeys(scored_as(shares[model.id]).values())
    ] + [own_candidate(m) for m in joint]
    scores = score_candidates(experiment, paths, "test", wanted, "weights")
    by_method = {
        method: {
            reading: [scores[f"{m.id}-{scored_as(shares[m.id])[reading]}"] for m in found]
            for reading in READINGS
        }
        for method, found in models.items()
    }
    reference = [scores[model.id] for model in joint]
    rows = [
        score_row(
            method,
            reading,
            own,
            by_method,
            reference,
            partner(experiment, models, method),
            [shares[model.id][reading] for model in models[method]],
        )
        for method in models
        for reading in READINGS
    ]
    branches = [
        row for first, *_ in models.values() for row in branch_rows(paths, first, shares[first.id])
    ]
    found = summary(rows, own, average(reference), joint[0].method) | {
        "seeds": settings.seeds,
        "num_questions": num_questions(reference[0]),
        "largest_methods": largest(experiment, models),
    }
    return {
        "tables": {"merge_weights_scores": rows, "merge_weights": branches},
        "summary": found,
        "readings": list(READINGS),
    }


# --- which models -----------------------------------------------------------------------------


def chosen_models(experiment: Experiment, settings: Weights) -> dict[str, list[Model]]:
    """Method -> its models, seed by seed.

    Raises MeritError for a soup, for a method with less than two branches or without these seeds.
    """
    for name in settings.methods:
        method = experiment.methods.get(name)
        if method is not None and method.partition == "soup":
            raise MeritError(
                f"experiments/{experiment.name}.yaml: key `studies.weights.methods`: {name!r} is a "
                "soup, whose members all see the whole mixture: it has one reading; leave it out"
            )
    return {
        name: [
            planned_model(experiment, "weights.methods", name, seed, 2) for seed in settings.seeds
        ]
        for name in dict.fromkeys(settings.methods)
    }


def joint_models(experiment: Experiment, settings: Weights) -> list[Model]:
    """The models of the first joint method that is trained for one epoch."""
    for name, method in experiment.methods.items():
        if method.partition == "joint" and method.epochs == 1:
            return [planned_model(experiment, "weights.seeds", name, s) for s in settings.seeds]
    raise MeritError(
        f"experiments/{experiment.name}.yaml: key `studies.weights` compares with joint "
        "training for one epoch; add such a method to `methods`"
    )


def partner(experiment: Experiment, models: Models, method: str) -> str:
    """The random split of as many groups and epochs among `models`; "" if none or itself one."""
    ours = experiment.methods[method]
    for name in models if ours.partition != "random" else ():
        theirs = experiment.methods[name]
        if (
            theirs.partition == "random"
            and _num_branches(models, name) == _num_branches(models, method)
            and theirs.epochs == getattr(ours, "epochs", None)
        ):
            return name
    return ""


def largest(experiment: Experiment, models: Models) -> list[str]:
    """The merit and the random method of the most branches; if there is neither, any method."""
    kinds = [
        [name for name in models if experiment.methods[name].partition == kind]
        for kind in ("merit", "random")
    ]
    return [
        max(names, key=lambda name: _num_branches(models, name))
        for names in (kinds if any(kinds) else [list(models)])
        if names
    ]


def _num_branches(models: Models, method: str) -> int:
    return len(models[method][0].branches)


# --- merge weights ----------------------------------------------------------------------------


def readings(paths: Artifacts, model: Model) -> Shares:
    """The model's merge weights under every reading, from its branches' manifests."""
    manifests = [read_json(paths.manifest(branch)) for branch in model.branches]
    try:
        return {reading: merge_weights(manifests, reading) for reading in READINGS}
    except ValueError as error:
        raise MeritError(
            f"{paths.manifest(model.branches[0]).parent}: {model.id}: {error}; run the partition "
            "stage again"
        ) from None


def scored_as(shares: Shares) -> dict[str, str]:
    """Reading -> the first reading with the same merge weights: these give the same model."""
    return {
        reading: next(
            first for first in shares if np.abs(np.subtract(shares[first], mine)).max() <= SAME
        )
        for reading, mine in shares.items()
    }


def branch_rows(paths: Artifacts, model: Model, shares: Shares) -> list[Row]:
    """A row per branch: what it counts, and its merge weight under each reading."""
    counts = ("group", "num_samples", "num_tokens", "num_loss_tokens")
    manifests = [read_json(paths.manifest(branch)) for branch in model.branches]
    return [
        {"method": model.method}
        | {key: manifest[key] for key in counts}
        | {f"weight_{reading}": shares[reading][k] for reading in READINGS}
        for k, manifest in enumerate(manifests)
    ]


# --- tables -----------------------------------------------------------------------------------


def score_row(
    method: str,
    reading: str,
    own: str,
    scores: Mapping[str, Mapping[str, Sequence[Scores]]],
    joint: Sequence[Scores],
    random: str,
    weights: Sequence[Sequence[float]],
) -> Row:
    """One row of `merge_weights_scores`; `weights` are this reading's, seed by seed (S, K).

    `own` is the experiment's reading, `random` the method to compare with at equal K or "".
    """
    ours = scores[method][reading]
    flat = [weight for parts in weights for weight in parts]
    # 1 / sum_k w_k^2: K for uniform merge weights, 1 where one branch has all
    effective = [1 / sum(weight**2 for weight in parts) for parts in weights]
    return {
        "method": method,
        "reading": reading,
        **dict(zip(("avg", "low", "high"), average(ours), strict=True)),
        **columns("minus_own", None if reading == own else difference(ours, scores[method][own])),
        **columns("minus_joint", difference(ours, joint)),
        "random": random or None,
        **columns("minus_random", difference(ours, scores[random][reading]) if random else None),
        "smallest_weight": min(flat),
        "largest_weight": max(flat),
        "effective_branches": sum(effective) / len(weights),
        "num_branches": len(weights[0]),
    }


def summary(rows: Sequence[Row], own: str, joint: Interval, joint_name: str) -> dict[str, Any]:
    """Averages by method and reading, and by how much another reading than `own` changes them."""
    methods = list(dict.fromkeys(row["method"] for row in rows))

    def by_reading(read: Callable[[Row], Any]) -> dict[str, dict[str, Any]]:
        return {m: {r["reading"]: read(r) for r in rows if r["method"] == m} for m in methods}

    def change(method: str) -> dict[str, Any]:
        others = [r for r in rows if r["method"] == method and r["reading"] != own]
        row = max(others, key=lambda row: abs(row["minus_own"]))
        found = dict(zip(("difference", "low", "high"), interval(row, "minus_own"), strict=True))
        return {"method": method, "reading": row["reading"], **found}

    changes = {method: change(method) for method in methods}
    return {
        "own_reading": own,
        "joint": joint_name,
        "joint_average": joint,
        "averages": by_reading(lambda row: row["avg"]),
        "minus_joint": by_reading(lambda row: interval(row, "minus_joint")),
        "minus_random": by_reading(lambda row: interval(row, "minus_random")),
        "weight_range": by_reading(lambda row: (row["smallest_weight"], row["largest_weight"])),
        "changes": changes,
        "largest_change": max(changes.values(), key=lambda change: abs(change["difference"])),
    }
