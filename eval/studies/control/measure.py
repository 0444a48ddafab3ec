"""control: every method at its best distance from the base, and all of them at one distance.

A method that lies nearer to the base than joint training has an advantage that owes nothing to its
groups: joint training could have been shrunk, too (WiSE-FT). So every method gets the points
theta0 + c (theta - theta0) of one grid of c, its best one chosen on the validation questions; and
joint training and the random split are moved to the very distance of the merged model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from merit.config import Experiment
from merit.errors import MeritError
from merit.eval.measuring.candidates import Candidate, moved, score_candidates
from merit.eval.measuring.losses import open_evaluator
from merit.eval.measuring.models import method_of_kind, planned_models
from merit.eval.measuring.scores import mean, num_questions
from merit.eval.results import open_ended
from merit.eval.studies.control import Control
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

SAME = 1e-12  # scales that differ by less are one point


def measure(experiment: Experiment, paths: Artifacts, settings: Control) -> dict[str, Any]:
    """Validation scores over c; test scores at c = 1, at the best c, and at one distance."""
    models = chosen_models(experiment, settings)
    every = [(name, model.id) for name, found in models.items() for model in found]
    main = [settings.joint, settings.random, settings.method]
    scales = sorted({*settings.scales, WHOLE})
    evaluator = open_evaluator(experiment, paths, settings.num_examples)
    base = evaluator.vector(paths, paths.base)

    def theta(model: str) -> Any:
        return evaluator.vector(paths, paths.model(model))

    distances = {m: float((theta(m).double() - base.double()).norm()) for _, m in every}
    matched = matched_scales(models, distances, main, scales)
    points = [(models[name][0].id, c) for name in main for c in scales]
    points = list(dict.fromkeys([*points, *matched.items()]))
    losses = {("base", 0.0): evaluator.loss(base)}
    with Progress("control, losses", len(points)) as progress:
        for model, c in points:
            losses[model, c] = evaluator.loss(interpolate(base, theta(model), c))
            progress.advance()

    def score(split: str, wanted: Sequence[Point]) -> Pool:
        """Scores of every point and of the base on this split's questions."""
        found = [Candidate("base", model="base"), *(candidate(paths, *point) for point in wanted)]
        return score_candidates(experiment, paths, split, found, f"control, {split}")

    validation = score("validation", [(model, c) for _, model in every for c in scales])
    best = {
        name: best_scale(scales, [mean(scores_at(validation, found, c)) for c in scales])
        for name, found in models.items()
    }
    test = score(
        "test",
        [
            (model, c)
            for name, model in every
            for c in sorted({WHOLE, best[name], matched.get(model, WHOLE)})
        ],
    )
    benchmarks = experiment.evaluation.benchmarks
    free = open_ended(benchmarks)
    kinds = {"closed": [name for name in benchmarks if name not in free], "open": free}
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
            (name, model.seed, test[point_name(model.id, best[name])])
            for name, found in models.items()
            for model in found
        ],
    }


def candidate(paths: Artifacts, model: str, c: float) -> Candidate:
    """theta0 + c (theta - theta0) of a model; at c = 1 the model of the tables itself."""
    return Candidate(
        point_name(model, c),
        lambda: moved(paths.base, dict(Checkpoint(paths.model(model)).items()), c),
        model if c == WHOLE else None,
    )


def chosen_models(experiment: Experiment, settings: Control) -> Models:
    """Every method's models, seed by seed; joint, random and the method first.

    Raises MeritError for a method that is not run with these seeds, or of the wrong kind.
    """
    keys = {settings.joint: "joint", settings.random: "random", settings.method: "method"}
    keys |= {name: "others" for name in settings.others if name not in keys}
    models = {
        name: planned_models(
            experiment, f"control.{key}", name, settings.seeds, 2 if key == "method" else 1
        )
        for name, key in keys.items()
    }
    for key in ("joint", "random"):
        method_of_kind(experiment, f"control.{key}", getattr(settings, key), key)
    if experiment.methods[settings.method].partition == "random":
        raise MeritError(
            f"experiments/{experiment.name}.yaml: key `studies.control.method`: "
            f"{settings.method!r} is itself random; name the method to be judged"
        )
    return models


def matched_scales(
    models: Models, distances: Mapping[str, float], main: Sequence[str], scales: Sequence[float]
) -> dict[str, float]:
    """Model id -> c that takes it to the distance of the last method's model of the same seed.

    c = d_method / d, and 1 for the last method itself. A c of the grid is taken as the grid has it,
    so that no point is scored twice.
    """
    found = {}
    for name in main:
        for model, target in zip(models[name], models[main[-1]], strict=True):
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
