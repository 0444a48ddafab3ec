"""weights: every method's branches merged under every reading of `merge_weights`.

The paper weighs a branch by its tokens and does not say which tokens count. The same branches are
merged here with all of their tokens, the tokens that bear the loss, their samples, or uniformly;
nothing is trained. Random splits have branches of much the same kind, so that the reading hardly
moves them; a split that separates long from short answers is at its mercy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Experiment
from merit.config.branches import Model
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate, average_files, score_candidates
from merit.eval.measuring.losses import planned_model
from merit.eval.measuring.scores import Row, average, num_questions
from merit.eval.studies.weights.readings import READINGS, score_row, summary
from merit.eval.studies.weights.settings import Weights
from merit.io.artifacts import Artifacts, read_json
from merit.method.average import merge_weights

Shares = dict[str, list[float]]  # reading -> merge weights (K,)

SAME = 1e-12  # merge weights that differ by less give the same model


def measure(experiment: Experiment, paths: Artifacts, settings: Weights) -> dict[str, Any]:
    """Merge weights of every branch, and test scores of every method, under every reading."""
    models = chosen_models(experiment, settings)
    joint = joint_models(experiment, settings)
    shares = {model.id: readings(paths, model) for found in models.values() for model in found}
    wanted = {
        _name(model.id, reading): _candidate(paths, model, reading, shares[model.id][reading])
        for found in models.values()
        for model in found
        for reading in dict.fromkeys(scored_as(shares[model.id]).values())
    } | {model.id: _candidate(paths, model, None, [1.0]) for model in joint}
    scores = score_candidates(experiment, paths, "test", list(wanted.values()), "weights")
    by_method = {
        method: {
            reading: [scores[_name(m.id, scored_as(shares[m.id])[reading])] for m in found]
            for reading in READINGS
        }
        for method, found in models.items()
    }
    reference = [scores[model.id] for model in joint]
    partners = {method: partner(experiment, models, method) for method in models}
    rows = [
        score_row(
            method,
            reading,
            experiment.merge_weights,
            by_method,
            reference,
            partners[method],
            [shares[model.id][reading] for model in models[method]],
        )
        for method in models
        for reading in READINGS
    ]
    found = summary(rows, experiment.merge_weights, average(reference), joint[0].method)
    found |= {
        "seeds": settings.seeds,
        "num_questions": num_questions(reference[0]),
        "largest_methods": largest(experiment, models),
    }
    return {
        "tables": {
            "merge_weights_scores": rows,
            "merge_weights": [
                row
                for model in (first for first, *_ in models.values())
                for row in branch_rows(paths, model, shares[model.id])
            ],
        },
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
    names = [
        name
        for name, method in experiment.methods.items()
        if method.partition == "joint" and method.epochs == 1
    ]
    if not names:
        raise MeritError(
            f"experiments/{experiment.name}.yaml: key `studies.weights` compares with joint "
            "training for one epoch; add such a method to `methods`"
        )
    return [planned_model(experiment, "weights.seeds", names[0], s) for s in settings.seeds]


def partner(experiment: Experiment, models: Mapping[str, Sequence[Model]], method: str) -> str:
    """The random split of as many groups and epochs among `models`; "" if none or itself one."""
    ours = experiment.methods[method]
    if ours.partition == "random":
        return ""
    for name, found in models.items():
        theirs = experiment.methods[name]
        if (
            theirs.partition == "random"
            and len(found[0].branches) == len(models[method][0].branches)
            and theirs.epochs == getattr(ours, "epochs", None)
        ):
            return name
    return ""


def largest(experiment: Experiment, models: Mapping[str, Sequence[Model]]) -> list[str]:
    """The merit and the random method of the most branches; where there is neither, any method."""
    found = []
    for kind in ("merit", "random"):
        names = [name for name in models if experiment.methods[name].partition == kind]
        if names:
            found.append(max(names, key=lambda name: len(models[name][0].branches)))
    return found or [max(models, key=lambda name: len(models[name][0].branches))]


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
    """One row a branch: what it counts, and its merge weight under each reading."""
    rows = []
    for k, branch in enumerate(model.branches):
        manifest = read_json(paths.manifest(branch))
        rows.append(
            {
                "method": model.method,
                "group": manifest["group"],
                **{key: manifest[key] for key in ("num_samples", "num_tokens", "num_loss_tokens")},
                **{f"weight_{reading}": shares[reading][k] for reading in READINGS},
            }
        )
    return rows


# --- models to be scored -----------------------------------------------------------------------


def _name(model: str, reading: str) -> str:
    return f"{model}-{reading}"


def _candidate(
    paths: Artifacts, model: Model, reading: str | None, weights: Sequence[float]
) -> Candidate:
    files: list[Path] = [paths.branch(branch) for branch in model.branches]
    name = model.id if reading is None else _name(model.id, reading)
    return Candidate(name, lambda: average_files(files, weights))
