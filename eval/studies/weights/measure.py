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
from merit.eval.measuring.models import branch_folders, planned_models
from merit.eval.measuring.scores import (
    Interval,
    Row,
    average,
    columns,
    difference,
    interval,
    num_questions,
)
from merit.eval.studies.weights import Weights
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

    def candidate(model: Model, name: str, weights: list[float], table: str | None) -> Candidate:
        folders = branch_folders(paths, model)
        return Candidate(name, lambda: average_files(folders, weights), table)

    wanted = [candidate(model, model.id, [1.0], model.id) for model in joint]
    for model in (model for found in models.values() for model in found):
        same = scored_as(shares[model.id])
        for reading in dict.fromkeys(same.values()):
            # merged by its own reading, it is the model of the tables
            table = model.id if same[own] == reading else None
            weights = shares[model.id][reading]
            wanted.append(candidate(model, f"{model.id}-{reading}", weights, table))
    scores = score_candidates(experiment, paths, "test", wanted, "weights")
    by_method = {
        method: {
            reading: [scores[f"{m.id}-{scored_as(shares[m.id])[reading]}"] for m in found]
            for reading in READINGS
        }
        for method, found in models.items()
    }
    reference = [scores[model.id] for model in joint]
    rows: list[Row] = []
    for method, found in models.items():
        random = partner(experiment, models, method)
        for reading, ours in by_method[method].items():
            theirs = by_method[random][reading] if random else None
            rows.append(
                {
                    "method": method,
                    "reading": reading,
                    **dict(zip(("avg", "low", "high"), average(ours), strict=True)),
                    **columns(
                        "minus_own",
                        None if reading == own else difference(ours, by_method[method][own]),
                    ),
                    **columns("minus_joint", difference(ours, reference)),
                    "random": random or None,
                    **columns("minus_random", difference(ours, theirs) if theirs else None),
                    **weight_columns([shares[model.id][reading] for model in found]),
                }
            )
    return {
        "tables": {
            "merge_weights_scores": rows,
            "merge_weights": [
                row
                for first, *_ in models.values()
                for row in branch_rows(paths, first, shares[first.id])
            ],
        },
        "summary": summary(rows, own, average(reference), joint[0].method)
        | {
            "seeds": settings.seeds,
            "num_questions": num_questions(reference[0]),
            "largest_methods": largest(experiment, models),
        },
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
        name: planned_models(experiment, "weights.methods", name, settings.seeds, 2)
        for name in dict.fromkeys(settings.methods)
    }


def joint_models(experiment: Experiment, settings: Weights) -> list[Model]:
    """The models of the first joint method that is trained for one epoch."""
    for name, method in experiment.methods.items():
        if method.partition == "joint" and method.epochs == 1:
            return planned_models(experiment, "weights.seeds", name, settings.seeds)
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
    kinds = [names for names in kinds if names] or [list(models)]
    return [max(names, key=lambda name: _num_branches(models, name)) for names in kinds]


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


def weight_columns(weights: Sequence[Sequence[float]]) -> Row:
    """Extremes and effective number, 1 / sum_k w_k^2, of merge weights (S, K), seed by seed.

    The effective number is K for uniform merge weights, 1 where one branch has all.
    """
    effective = [1 / sum(weight**2 for weight in parts) for parts in weights]
    return {
        "smallest_weight": min(map(min, weights)),
        "largest_weight": max(map(max, weights)),
        "effective_branches": sum(effective) / len(weights),
        "num_branches": len(weights[0]),
    }


def summary(rows: Sequence[Row], own: str, joint: Interval, joint_name: str) -> dict[str, Any]:
    """Averages by method and reading, and by how much another reading than `own` changes them."""

    def by_reading(read: Callable[[Row], Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            found.setdefault(row["method"], {})[row["reading"]] = read(row)
        return found

    changes = {}
    for method, others in by_reading(lambda row: row).items():
        row = max((others[r] for r in others if r != own), key=lambda row: abs(row["minus_own"]))
        found = dict(zip(("difference", "low", "high"), interval(row, "minus_own"), strict=True))
        changes[method] = {"method": method, "reading": row["reading"], **found}
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
