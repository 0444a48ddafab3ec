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

from eval.studies.compare import Interval, Scores, average, difference, num_questions
from eval.studies.loss import planned_model
from eval.studies.runs import Candidate, average_files, score_models, study_folder
from eval.studies.weights_figures import draw
from merit.config import Experiment, JointMethod, MeritMethod, RandomMethod, SoupMethod, load_params
from merit.config_studies import Weights
from merit.core.merge.average import BUDGETS, merge_weights
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.methods import Model

__all__ = ["draw", "measure"]

Row = dict[str, Any]
Shares = dict[str, list[float]]  # reading -> merge weights (K,)

READINGS = (*BUDGETS, "uniform")
WORDS = {
    "tokens": "by all tokens",
    "loss_tokens": "by loss-bearing tokens",
    "samples": "by samples",
    "uniform": "uniformly",
}
SAME = 1e-12  # merge weights that differ by less give the same model


def measure(experiment: Experiment, paths: Artifacts, settings: Weights) -> dict[str, Any]:
    """Merge weights of every branch, and test scores of every method, under every reading."""
    from merit.models import use_one_thread

    models = chosen_models(experiment, settings)
    joint = joint_models(experiment, settings)
    use_one_thread()
    shares = {model.id: readings(paths, model) for found in models.values() for model in found}
    wanted = {
        _name(model.id, reading): _candidate(paths, model, reading, shares[model.id][reading])
        for found in models.values()
        for model in found
        for reading in dict.fromkeys(scored_as(shares[model.id]).values())
    } | {model.id: _candidate(paths, model, None, [1.0]) for model in joint}
    scores = score_models(
        experiment,
        paths.data / "benchmarks",
        list(wanted.values()),
        study_folder(paths, "weights"),
        load_params().workers,
        "weights",
    )
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
    found |= {"seeds": settings.seeds, "num_questions": num_questions(reference[0])}
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
        "text": text(rows, found, largest(experiment, models)),
        "readings": list(READINGS),
    }


# --- which models -----------------------------------------------------------------------------


def chosen_models(experiment: Experiment, settings: Weights) -> dict[str, list[Model]]:
    """Method -> its models, seed by seed.

    Raises MeritError for a soup, for a method with less than two branches or without these seeds.
    """
    for name in settings.methods:
        if isinstance(experiment.methods.get(name), SoupMethod):
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
        if isinstance(method, JointMethod) and method.epochs == 1
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
    if isinstance(ours, RandomMethod):
        return ""
    for name, found in models.items():
        theirs = experiment.methods[name]
        if (
            isinstance(theirs, RandomMethod)
            and len(found[0].branches) == len(models[method][0].branches)
            and theirs.epochs == getattr(ours, "epochs", None)
        ):
            return name
    return ""


def largest(experiment: Experiment, models: Mapping[str, Sequence[Model]]) -> list[str]:
    """The merit and the random method of the most branches; where there is neither, any method."""
    found = []
    for kind in (MeritMethod, RandomMethod):
        names = [name for name in models if isinstance(experiment.methods[name], kind)]
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


def effective_branches(weights: Sequence[float]) -> float:
    """1 / sum_k w_k^2: K for uniform merge weights, 1 where one branch has all."""
    return 1 / sum(weight**2 for weight in weights)


# --- rows, summary, text ----------------------------------------------------------------------


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
    value, low, high = average(ours)
    flat = [weight for parts in weights for weight in parts]
    return {
        "method": method,
        "reading": reading,
        "avg": value,
        "low": low,
        "high": high,
        **_gap("own", None if reading == own else difference(ours, scores[method][own])),
        **_gap("joint", difference(ours, joint)),
        "random": random or None,
        **_gap("random", difference(ours, scores[random][reading]) if random else None),
        "smallest_weight": min(flat),
        "largest_weight": max(flat),
        "effective_branches": sum(map(effective_branches, weights)) / len(weights),
        "num_branches": len(weights[0]),
    }


def summary(rows: Sequence[Row], own: str, joint: Interval, joint_name: str) -> dict[str, Any]:
    """Averages by method and reading, and by how much another reading than `own` changes them."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    by_name = {(row["method"], row["reading"]): row for row in rows}

    def by_reading(keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {
            method: {
                reading: by_name[method, reading][keys[0]]
                if len(keys) == 1
                else [by_name[method, reading][key] for key in keys]
                for reading in READINGS
            }
            for method in methods
        }

    changes = {
        method: _change(
            max(
                (by_name[method, reading] for reading in READINGS if reading != own),
                key=lambda row: abs(row["minus_own"]),
            )
        )
        for method in methods
    }
    return {
        "own_reading": own,
        "joint": joint_name,
        "joint_average": joint,
        "averages": by_reading(["avg"]),
        "minus_joint": by_reading(_keys("joint")),
        "minus_random": by_reading(_keys("random")),
        "weight_range": by_reading(["smallest_weight", "largest_weight"]),
        "changes": changes,
        "largest_change": max(changes.values(), key=lambda change: abs(change["difference"])),
    }


def text(rows: Sequence[Row], found: Mapping[str, Any], methods: Sequence[str]) -> str:
    """What the reading does to each of `methods`, and to the first minus its random partner."""
    sentences = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        parts = [
            f"{row['smallest_weight']:.2f} to {row['largest_weight']:.2f} {WORDS[row['reading']]} "
            f"({row['effective_branches']:.1f} effective branches, average {row['avg']:.1f})"
            for row in mine
        ]
        change = found["changes"][method]
        sentences.append(
            f"The {mine[0]['num_branches']} branches of {method} weigh {'; '.join(parts)}. Against "
            f"this experiment's reading, `{found['own_reading']}`, the largest change of the "
            f"average is that of `{change['reading']}`, {_points(change)}."
        )
    ahead = [row for row in rows if row["method"] == methods[0] and row["random"]]
    if ahead:
        parts = [f"{_points(_read(row, 'random'))} with `{row['reading']}`" for row in ahead]
        sentences.append(f"{methods[0]} minus {ahead[0]['random']} is {', '.join(parts)}.")
    sentences.append(
        f"{found['joint']} scores {found['joint_average'][0]:.1f}. The branches are the same "
        f"throughout, only their weights differ; in brackets 95 % intervals, on "
        f"{found['num_questions']} test questions, {len(found['seeds'])} seed(s)."
    )
    return " ".join(sentences)


def _gap(other: str, found: Interval | None) -> Row:
    return dict(zip(_keys(other), found or (None, None, None), strict=True))


def _keys(other: str) -> list[str]:
    return [f"minus_{other}{end}" for end in ("", "_low", "_high")]


def _read(row: Row, other: str) -> dict[str, Any]:
    return dict(zip(("difference", "low", "high"), (row[key] for key in _keys(other)), strict=True))


def _change(row: Row) -> dict[str, Any]:
    return {"method": row["method"], "reading": row["reading"]} | _read(row, "own")


def _points(change: Mapping[str, Any]) -> str:
    return f"{change['difference']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]"


def _name(model: str, reading: str) -> str:
    return f"{model}-{reading}"


def _candidate(
    paths: Artifacts, model: Model, reading: str | None, weights: Sequence[float]
) -> Candidate:
    files: list[Path] = [paths.branch(branch) / "model.safetensors" for branch in model.branches]
    name = model.id if reading is None else _name(model.id, reading)
    return Candidate(name, paths.base, lambda: average_files(files, weights))
