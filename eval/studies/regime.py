"""regime: where does conflict-aware splitting help? A map that the paper does not have.

At every point of learning rate x epochs (x base strength): joint training, random groups, MERIT,
and joint training shrunk towards the base (METHOD 3b), at MERIT's distance and along the path.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.studies.compare import Scores, average, difference, num_questions, verdict
from eval.studies.regime_figures import draw_maps, draw_paths
from eval.studies.runs import (
    Candidate,
    Run,
    Tensors,
    Trained,
    distance,
    moved,
    score_models,
    study_folder,
    token_weighted,
    train_runs,
)
from eval.studies.weak_base import prepare
from merit.config import Experiment, JointMethod, MeritMethod, RandomMethod, load_params
from merit.config_studies import Regime
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_array, read_json

Row = dict[str, Any]

MAIN, WEAK = "base", "weak base"
PAIRS = (("merit", "random"), ("merit", "joint"), ("merit", "shrunk"), ("random", "shrunk"))
TITLES = {"merit": "MERIT", "random": "random", "joint": "joint", "shrunk": "shrunk"}


@dataclass(frozen=True)
class Point:
    """One cell of the map and its runs: `parts` method kind -> the runs merged, a list a draw."""

    strength: str
    paths: Artifacts
    learning_rate: float
    epochs: float
    parts: dict[str, list[list[str]]]

    @property
    def name(self) -> str:
        base = self.strength.replace(" ", "_")
        return f"{base}-lr{self.learning_rate:g}-{self.epochs:g}ep"


def measure(experiment: Experiment, paths: Artifacts, settings: Regime) -> dict[str, Any]:
    """Train and score every point; differences with paired intervals."""
    from merit.models import use_one_thread

    use_one_thread()
    folder, workers = study_folder(paths, "regime"), load_params().workers
    check_methods(experiment, settings)
    bases = {MAIN: paths}
    if settings.weak_base_steps is not None:
        bases[WEAK] = prepare(experiment, paths, folder, settings.weak_base_steps)
    points, runs = [], []
    for strength, where in bases.items():
        for rate, epochs in itertools.product(settings.learning_rates, settings.epochs):
            point, needed = plan_point(experiment, settings, strength, where, rate, epochs)
            points.append(point)
            runs += needed
    trained = train_runs(runs, folder / "runs", workers, "regime")
    models = [Candidate(strength, where.base) for strength, where in bases.items()]
    alphas = {}
    for point in points:
        found, alphas[point.name] = candidates(point, trained, settings.num_alphas)
        models += found
    scores = score_models(
        experiment, paths.data / "benchmarks", models, folder / "test", workers, "regime"
    )
    cells = [cell(point, scores, alphas[point.name]) for point in points]
    return {
        "tables": tables(cells),
        "summary": summary(cells, settings, num_questions(scores[MAIN])),
        "text": text(cells, settings, num_questions(scores[MAIN])),
        "cells": cells,
        "learning_rates": settings.learning_rates,
        "epochs": settings.epochs,
        "strengths": list(bases),
    }


# --- what is trained and scored ----------------------------------------------------------------


def check_methods(experiment: Experiment, settings: Regime) -> None:
    """Raises MeritError unless the three names are a joint, a random and a merit method."""
    for key, kind in (("joint", JointMethod), ("random", RandomMethod), ("method", MeritMethod)):
        name = getattr(settings, key)
        if not isinstance(experiment.methods.get(name), kind):
            raise MeritError(
                f"studies.regime.{key}: {name!r} is no {kind.__name__.removesuffix('Method')} "
                f"method of {experiment.name}"
            )


def plan_point(
    experiment: Experiment,
    settings: Regime,
    strength: str,
    paths: Artifacts,
    rate: float,
    epochs: float,
) -> tuple[Point, list[Run]]:
    """The point's runs, by the same partition rules and manifests as the pipeline's."""
    from merit.core.similarity import pca
    from merit.methods import plan
    from merit.stages.partition import Evidence, assign, build_manifests

    draws = list(range(settings.seed, settings.seed + settings.num_random))
    seeds = {"joint": [settings.seed], "random": draws, "merit": [settings.seed]}
    sources = {"joint": settings.joint, "random": settings.random, "merit": settings.method}
    methods = {
        kind: experiment.methods[name].model_copy(update={"epochs": epochs, "seeds": seeds[kind]})
        for kind, name in sources.items()
    }
    planned = plan(experiment.model_copy(update={"methods": methods}))
    tasks = read_json(paths.encoded / "tasks.json")
    similarity = np.asarray(read_array(paths.partition / "similarity.npy"))
    merit = experiment.methods[settings.method]
    assert isinstance(merit, MeritMethod)
    embedding = pca(similarity, merit.axes).embedding
    no_gradients = np.empty((len(tasks), 0), dtype=np.float32)  # these rules need none
    partitions, _ = assign(planned, Evidence(tasks, no_gradients, similarity, embedding))
    manifests = build_manifests(experiment, planned, tasks, partitions)
    optimizer = experiment.training.optimizer.model_copy(update={"learning_rate": rate})
    training = experiment.training.model_copy(update={"optimizer": optimizer})
    point = Point(strength, paths, rate, epochs, {})
    runs = [
        Run(f"{point.name}-{branch}", paths, manifest, training)
        for branch, manifest in manifests.items()
    ]
    for kind in sources:
        point.parts[kind] = [
            [f"{point.name}-{branch}" for branch in planned.models[f"{kind}-s{seed}"].branches]
            for seed in seeds[kind]
        ]
    return point, runs


def candidates(
    point: Point, trained: dict[str, Trained], num_alphas: int
) -> tuple[list[Candidate], dict[str, Any] | None]:
    """The point's models, and their distances from the base: {"distances", "alpha", "path"}.

    `alpha` is the shrunk joint model's, `path` the interior points of the shrinkage path. None
    where a run did not stay finite: such a point has no models.
    """
    names = itertools.chain.from_iterable(itertools.chain.from_iterable(point.parts.values()))
    if any(trained[name].failure is not None for name in names):
        return [], None
    base = point.paths.base

    def merged(kind: str, draw: int) -> Callable[[], Tensors]:
        return functools.partial(
            token_weighted, [trained[name] for name in point.parts[kind][draw]]
        )

    models, distances = [], {}
    for kind, draws in point.parts.items():
        for draw in range(len(draws)):
            models.append(Candidate(f"{point.name}-{kind}-{draw}", base, merged(kind, draw)))
        distances[kind] = float(
            np.mean([distance(base, merged(kind, draw)()) for draw in range(len(draws))])
        )
    alpha = distances["merit"] / distances["joint"]
    path = np.linspace(0.0, 1.0, num_alphas)[1:-1].tolist()
    joint = merged("joint", 0)
    for name, value in [("shrunk", alpha), *((f"alpha{a:g}", a) for a in path)]:
        shrunk = functools.partial(_shrunk, base, joint, value)
        models.append(Candidate(f"{point.name}-{name}", base, shrunk))
    return models, {"distances": distances, "alpha": alpha, "path": path}


def _shrunk(base: Path, joint: Callable[[], Tensors], alpha: float) -> Tensors:
    return moved(base, joint(), alpha)


# --- what is reported --------------------------------------------------------------------------


def cell(point: Point, scores: Mapping[str, Scores], found: dict[str, Any] | None) -> Row:
    """One point: averages, differences with intervals, the shrinkage path from base to joint."""
    where: Row = {
        "base": point.strength,
        "learning_rate": point.learning_rate,
        "epochs": point.epochs,
        "averages": None,
        "differences": None,
    }
    if found is None:
        return where
    models = {
        kind: [scores[f"{point.name}-{kind}-{draw}"] for draw in range(len(draws))]
        for kind, draws in point.parts.items()
    }
    models |= {"shrunk": [scores[f"{point.name}-shrunk"]], "base": [scores[point.strength]]}
    averages = {kind: average(some) for kind, some in models.items()}
    path = [(0.0, averages["base"][0])]
    path += [(a, average([scores[f"{point.name}-alpha{a:g}"]])[0]) for a in found["path"]]
    path.append((1.0, averages["joint"][0]))
    distances = found["distances"] | {"shrunk": found["distances"]["merit"], "base": 0.0}
    return where | {
        "averages": averages,
        "differences": {f"{a}-{b}": difference(models[a], models[b]) for a, b in PAIRS},
        "distances": distances,
        "alpha": found["alpha"],
        "path": path,
    }


def tables(cells: Sequence[Row]) -> dict[str, list[Row]]:
    """Tidy: a row a point and model, a row a point and difference, a row a point and alpha."""
    differences, models, paths = [], [], []
    for entry in cells:
        where = {key: entry[key] for key in ("base", "learning_rate", "epochs")}
        for a, b in PAIRS:
            found = entry["differences"] and entry["differences"][f"{a}-{b}"]
            value, low, high = found or (None, None, None)
            differences.append(
                where
                | {"ours": a, "theirs": b, "difference": value, "low": low, "high": high}
                | {"verdict": verdict(found) if found else "not finite"}
            )
        if entry["averages"] is None:
            continue
        for kind, (value, low, high) in entry["averages"].items():
            models.append(
                where
                | {"model": kind, "avg": value, "low": low, "high": high}
                | {"distance": entry["distances"][kind]}
            )
        paths += [where | {"alpha": alpha, "avg": value} for alpha, value in entry["path"]]
    kept = {"regime_differences": differences, "regime_models": models, "regime_path": paths}
    return {stem: rows for stem, rows in kept.items() if rows}


def counts(cells: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Of every difference: in how many cells it is positive, negative, undecided, not finite."""
    table = {}
    for a, b in PAIRS:
        words = [
            verdict(entry["differences"][f"{a}-{b}"]) if entry["differences"] else "not finite"
            for entry in cells
        ]
        known = ("positive", "negative", "undecided", "not finite")
        table[f"{a}-{b}"] = {word: words.count(word) for word in known}
    return table


def summary(cells: Sequence[Row], settings: Regime, num_questions: int) -> Row:
    found: Row = {
        "num_cells": len(cells),
        "num_questions": num_questions,
        "num_random": settings.num_random,
        "seed": settings.seed,
    }
    for pair, words in counts(cells).items():
        for word, count in words.items():
            found[f"{pair}_{word}".replace("-", "_minus_", 1).replace(" ", "_")] = count
    return found


def text(cells: Sequence[Row], settings: Regime, num_questions: int) -> str:
    """In how many cells each difference is positive, negative or undecided, generated."""
    parts = []
    for (a, b), words in zip(PAIRS, counts(cells).values(), strict=True):
        parts.append(
            f"{TITLES[a]} − {TITLES[b]} is positive in {words['positive']}, negative in "
            f"{words['negative']} and undecided in {words['undecided']}"
        )
    failed = sum(entry["averages"] is None for entry in cells)
    best = sum(
        max(value for _, value in entry["path"]) >= entry["averages"]["merit"][0]
        for entry in cells
        if entry["averages"] is not None
    )
    return (
        f"Of {len(cells)} cells (learning rate x epochs x base): {'; '.join(parts)} "
        f"(95 % paired bootstrap over {num_questions} questions; {settings.method}, "
        f"{settings.random} in {settings.num_random} draw(s), {settings.joint}, seed "
        f"{settings.seed}, epochs as in the map; shrunk: joint training at MERIT's distance from "
        f"the base). In {best} of {len(cells)} some point of the shrinkage path, the base "
        "included, scores at least as high as MERIT."
        + (f" In {failed} a training did not stay finite." if failed else "")
    )


def draw(result: dict[str, Any], folder: Path) -> None:
    """regime: heat maps of the differences. regime_paths: the shrinkage path at every point."""
    draw_maps(result, folder / "figures", PAIRS, TITLES)
    draw_paths(result, folder / "figures", TITLES)
