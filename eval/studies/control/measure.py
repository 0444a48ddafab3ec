"""control: every method at its best distance from the base, and all of them at one distance.

A method that lies nearer to the base than joint training has an advantage that owes nothing to its
groups: joint training could have been shrunk, too (WiSE-FT). So every method gets the points
theta0 + c (theta - theta0) of one grid of c, its best one chosen on the validation questions; and
joint training and the random split are moved to the very distance of the merged model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.benchmarks import benchmark
from merit.eval.measuring.candidates import Candidate, moved, score_candidates
from merit.eval.measuring.losses import LossEvaluator, open_evaluator, planned_model, vector
from merit.eval.measuring.scores import mean, num_questions
from merit.eval.studies.control.settings import Control
from merit.eval.studies.control.tables import (
    WHOLE,
    Measured,
    Models,
    Point,
    Pool,
    point_name,
    scores_at,
    summary,
)
from merit.io.artifacts import Artifacts
from merit.io.checkpoints import Checkpoint
from merit.io.progress import Progress
from merit.method.average import interpolate, matching_alpha

if TYPE_CHECKING:
    import torch

SAME = 1e-12  # scales that differ by less are one point


def measure(experiment: Experiment, paths: Artifacts, settings: Control) -> dict[str, Any]:
    """Validation scores over c; test scores at c = 1, at the best c, and at one distance."""
    models = chosen_models(experiment, settings)
    scales = sorted({*settings.scales, WHOLE})
    evaluator = open_evaluator(experiment, paths, settings.num_examples)
    base = vector(evaluator, paths, paths.base)
    every = [(name, model) for name, found in models.items() for model in found]
    distances = {
        model.id: float(
            (vector(evaluator, paths, paths.model(model.id)).double() - base.double()).norm()
        )
        for _, model in every
    }
    matched = matched_scales(models, distances, settings, scales)
    main = [settings.joint, settings.random, settings.method]
    losses = measure_losses(
        evaluator,
        paths,
        base,
        [(models[name][0].id, c) for name in main for c in scales]
        + [(model.id, matched[model.id]) for name in main for model in models[name]],
    )
    validation = _score(
        experiment, paths, "validation", [(m.id, c) for _, m in every for c in scales]
    )
    best = {
        name: best_scale(scales, [mean(scores_at(validation, found, c)) for c in scales])
        for name, found in models.items()
    }
    wanted = [
        (model.id, c)
        for name, model in every
        for c in sorted({WHOLE, best[name], matched.get(model.id, WHOLE)})
    ]
    test = _score(experiment, paths, "test", wanted)

    kinds = {kind: part for kind, part in benchmark_kinds(experiment).items() if part}
    norm = float(base.double().norm())
    found = Measured(models, distances, matched, losses, best, validation, test, kinds, norm)
    rows = [found.best_row(name) for name in models]
    gaps = [found.difference_row(*c) for c in comparisons(experiment, settings, models)]
    equal = found.equal_rows(settings)
    return {
        "tables": {
            "control_best": rows,
            "control_differences": gaps,
            "control_equal_distance": equal,
            "control_path": [row for name in models for row in found.path_rows(name, scales)],
        },
        "summary": summary(rows, gaps, equal, best)
        | {
            **{key: getattr(settings, key) for key in ("joint", "random", "method", "seeds")},
            "at_edge": [name for name, c in best.items() if c in (scales[0], scales[-1])],
            "norm_base": norm,
            "num_examples": evaluator.num_examples,
            "num_questions": num_questions(test["base"]),
        },
        "best": best,
        "partitions": {name: experiment.methods[name].partition for name in models},
        "questions": [  # at each method's best distance
            (name, model.seed, test[point_name(model.id, best[name])]) for name, model in every
        ],
    }


# --- which models, at which scale -------------------------------------------------------------


def chosen_models(experiment: Experiment, settings: Control) -> Models:
    """Every method's models, seed by seed; joint, random and the method first.

    Raises MeritError for a method that is not run with these seeds, or of the wrong kind.
    """
    keys = {settings.joint: "joint", settings.random: "random", settings.method: "method"}
    keys |= {name: "others" for name in settings.others if name not in keys}
    models = {
        name: [
            planned_model(experiment, f"control.{key}", name, seed, 2 if key == "method" else 1)
            for seed in settings.seeds
        ]
        for name, key in keys.items()
    }
    where = f"experiments/{experiment.name}.yaml: key `studies.control"
    for key in ("joint", "random"):
        name = getattr(settings, key)
        if experiment.methods[name].partition != key:
            raise MeritError(f"{where}.{key}`: {name!r} is no {key} method; name one")
    if experiment.methods[settings.method].partition == "random":
        raise MeritError(
            f"{where}.method`: {settings.method!r} is itself random; name the method to be judged"
        )
    return models


def matched_scales(
    models: Models, distances: Mapping[str, float], settings: Control, scales: Sequence[float]
) -> dict[str, float]:
    """Model id -> c that takes it to the distance of the method's model of the same seed.

    c = d_method / d, for joint and random; 1 for the method itself. A c of the grid is taken as
    the grid has it, so that no point is scored twice.
    """
    found = {}
    for name in (settings.joint, settings.random, settings.method):
        for model, target in zip(models[name], models[settings.method], strict=True):
            try:
                c = matching_alpha(distances[target.id], distances[model.id])
            except ValueError as error:
                raise MeritError(f"studies.control: {model.id}: {error}; train it again") from None
            found[model.id] = next((scale for scale in scales if abs(scale - c) <= SAME), c)
    return found


def best_scale(scales: Sequence[float], averages: Sequence[float]) -> float:
    """The c of the highest average; of equal ones the smallest."""
    # sums in another order may differ in the last bits: a tie is still a tie
    ranked = zip(averages, scales, strict=True)
    return min(ranked, key=lambda pair: (-round(pair[0], 9), pair[1]))[1]


def comparisons(
    experiment: Experiment, settings: Control, models: Models
) -> list[tuple[str, str, str]]:
    """(claim, ours, theirs) of C1 to C4, among the methods at hand.

    C1 the method over joint; C2 random splits over joint; C3 one more axis; C4 splits by conflict
    over random ones of equal K. C3 and C4 compare methods of equal epochs only.
    """
    methods = {name: experiment.methods[name] for name in models}
    epochs = {name: getattr(method, "epochs", None) for name, method in methods.items()}
    randoms = [name for name, method in methods.items() if method.partition == "random"]
    axes = {n: m.axes for n, m in methods.items() if m.partition == "merit" and m.axes}
    main = epochs[settings.method]
    ladder = sorted((name for name in axes if epochs[name] == main), key=lambda name: axes[name])
    splits = [*ladder, *(name for name in [settings.method] if name not in axes)]
    return [
        ("C1", settings.method, settings.joint),
        *(("C2", name, settings.joint) for name in randoms),
        *(("C3", more, fewer) for fewer, more in pairwise(ladder)),
        *(
            ("C4", ours, theirs)
            for ours in splits
            for theirs in randoms
            if len(models[ours][0].branches) == len(models[theirs][0].branches)
            and epochs[ours] == epochs[theirs]
        ),
    ]


def benchmark_kinds(experiment: Experiment) -> dict[str, list[str]]:
    """The benchmarks with closed and with open-ended answers; either may be empty."""
    names = experiment.evaluation.benchmarks
    return {
        "closed": [name for name in names if not benchmark(name).open_ended],
        "open": [name for name in names if benchmark(name).open_ended],
    }


# --- measuring --------------------------------------------------------------------------------


def measure_losses(
    evaluator: LossEvaluator, paths: Artifacts, base: torch.Tensor, points: Sequence[Point]
) -> dict[Point, float]:
    """Loss on the mixture of every point, and of ("base", 0)."""
    losses: dict[Point, float] = {("base", 0.0): evaluator.loss(base)}
    todo = list(dict.fromkeys(points))
    with Progress("control, losses", len(todo)) as progress:
        for model, c in todo:
            theta = vector(evaluator, paths, paths.model(model))
            losses[model, c] = evaluator.loss(interpolate(base, theta, c))
            progress.advance()
    return losses


def _score(experiment: Experiment, paths: Artifacts, split: str, points: Sequence[Point]) -> Pool:
    """Scores of every point and of the base on this split's questions."""

    def candidate(model: str, c: float) -> Candidate:
        def tensors() -> dict[str, torch.Tensor]:
            return moved(paths.base, dict(Checkpoint(paths.model(model)).items()), c)

        return Candidate(point_name(model, c), tensors, model if c == WHOLE else None)

    candidates = [Candidate("base", model="base"), *(candidate(*point) for point in points)]
    return score_candidates(experiment, paths, split, candidates, f"control, {split}")
