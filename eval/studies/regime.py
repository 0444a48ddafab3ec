"""regime: where does conflict-aware splitting help? A map that the paper does not have.

At every learning rate, from a base that has the skills and from one that must learn them: joint
training, random groups, MERIT, and joint training shrunk to MERIT's distance (METHOD 3b).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.studies.compare import Scores, average, difference, num_questions, verdict
from eval.studies.regime_figures import draw_differences, draw_regime
from eval.studies.runs import (
    Candidate,
    Run,
    Tensors,
    Trained,
    average_runs,
    distance,
    moved,
    score_models,
    study_folder,
    train_runs,
)
from eval.studies.sgd import rate_label
from merit.config import (
    Experiment,
    JointMethod,
    MeritMethod,
    MiniWorldData,
    RandomMethod,
    TrainedMethod,
    load_params,
)
from merit.config_studies import Readiness, Regime, Thresholds
from merit.data.world.conversations import known_skills
from merit.data.world.skills import SKILLS
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_array, read_json, value_hash
from merit.methods import plan
from merit.stages.other_base import with_other_base

Row = dict[str, Any]

OWN, OTHER = "has the skills", "must learn them"  # said of the base
TAGS = {OWN: "own", OTHER: "other"}  # in the names of runs and models
KINDS = ("joint", "random", "merit")  # what is trained, in this order
PAIRS = (
    ("merit", "random"),
    ("merit", "joint"),
    ("random", "joint"),
    ("merit", "shrunk"),
    ("random", "shrunk"),
)
VERDICTS = ("positive", "negative", "undecided", "not finite")


@dataclass(frozen=True)
class Point:
    """One cell of the map and its runs: `parts` method kind -> the runs merged, a list a draw."""

    base: str
    paths: Artifacts
    learning_rate: float
    parts: dict[str, list[list[str]]]

    @property
    def name(self) -> str:
        return f"{TAGS[self.base]}-lr{self.learning_rate:g}"


def measure(experiment: Experiment, paths: Artifacts, settings: Regime) -> dict[str, Any]:
    """Train and score every cell; differences with paired intervals."""
    from merit.models import use_one_thread

    use_one_thread()
    folder, workers = study_folder(paths, "regime"), load_params().workers
    epochs = check_methods(experiment, settings)
    bases, rates = {OWN: paths}, learning_rates(experiment, settings)
    if settings.other_base is not None:
        bases[OTHER] = paths.other
    points, runs = [], []
    trained: dict[str, Trained] = {}
    for base, where in bases.items():
        for rate in rates:
            point, needed, reused = plan_point(experiment, settings, base, where, rate)
            points.append(point)
            runs += needed
            trained |= reused
    trained |= train_runs(runs, folder / "runs", workers, "regime")
    models = [Candidate(f"{TAGS[base]}-base", where.base) for base, where in bases.items()]
    measured = {}
    for point in points:
        found, measured[point.name] = candidates(point, trained, experiment.merge_weights)
        models += found
    scores = score_models(
        experiment, paths.data / "benchmarks", models, folder / "test", workers, "regime"
    )
    limits = thresholds(experiment)
    cells = [cell(point, scores, measured[point.name], limits) for point in points]
    asked = num_questions(scores[f"{TAGS[OWN]}-base"])
    return {
        "tables": tables(cells),
        "summary": summary(cells, settings, asked),
        "text": text(cells, settings, asked, epochs, limits),
        "cells": cells,
        "learning_rates": rates,
        "own_learning_rate": experiment.training.optimizer.learning_rate,
        "bases": [{"base": base, **skills(experiment, settings, base)} for base in bases],
        "methods": {
            "joint": settings.joint, "random": settings.random, "merit": settings.method,
        },
        "num_random": settings.num_random,
        "num_benchmarks": len(experiment.evaluation.benchmarks),
        "thresholds": limits.model_dump(mode="json"),
    }  # fmt: skip


def draw(result: dict[str, Any], folder: Path) -> None:
    """regime: averages and displacements over the learning rate. regime_differences: a heat map."""
    draw_regime(result, folder / "figures")
    draw_differences(result, folder / "figures", PAIRS)


# --- what is asked -----------------------------------------------------------------------------


def check_methods(experiment: Experiment, settings: Regime) -> float:
    """The epochs that all three methods are trained for.

    Raises MeritError unless they are a joint, a random and a merit method of equal epochs.
    """
    epochs: dict[str, float] = {}
    for key, kind in (("joint", JointMethod), ("random", RandomMethod), ("method", MeritMethod)):
        name = getattr(settings, key)
        method = experiment.methods.get(name)
        if not isinstance(method, kind):
            raise MeritError(
                f"studies.regime.{key}: {name!r} is no {kind.__name__.removesuffix('Method')} "
                f"method of {experiment.name}; name one that is"
            )
        assert isinstance(method, TrainedMethod)
        epochs[name] = method.epochs
    if len(set(epochs.values())) > 1:
        found = ", ".join(f"{name} {value:g}" for name, value in epochs.items())
        raise MeritError(
            f"studies.regime: the methods are trained for different epochs ({found}); name three "
            "of equal epochs"
        )
    if settings.other_base is not None:
        with_other_base(experiment, settings.other_base)
    return next(iter(epochs.values()))


def learning_rates(experiment: Experiment, settings: Regime) -> list[float]:
    """The rows of the map; the experiment's own rate is always one."""
    return sorted({*settings.learning_rates, experiment.training.optimizer.learning_rate})


def thresholds(experiment: Experiment) -> Thresholds:
    """What the study `readiness` asks of a merge-ready base."""
    return (experiment.studies.readiness or Readiness()).thresholds


def skills(experiment: Experiment, settings: Regime, base: str) -> dict[str, int | None]:
    """How many skills this base has seen, and of how many; None where the data has no skills."""
    if not isinstance(experiment.data, MiniWorldData):
        return {"known_skills": None, "num_skills": None}
    num_new = experiment.data.num_new_skills
    if base == OTHER:
        assert settings.other_base is not None
        num_new = settings.other_base.num_new_skills
    return {"known_skills": len(known_skills(num_new)), "num_skills": len(SKILLS)}


# --- what is trained and scored ----------------------------------------------------------------


def plan_point(
    experiment: Experiment, settings: Regime, base: str, paths: Artifacts, rate: float
) -> tuple[Point, list[Run], dict[str, Trained]]:
    """The cell, its runs by the pipeline's partition rules and manifests, and those it reuses.

    From the experiment's own base at its own rate, a branch that the pipeline has is not trained
    again.
    """
    from merit.core.similarity import pca
    from merit.stages.partition import Evidence, assign, build_manifests

    draws = list(range(settings.seed, settings.seed + settings.num_random))
    seeds = {"joint": [settings.seed], "random": draws, "merit": [settings.seed]}
    sources = dict(zip(KINDS, (settings.joint, settings.random, settings.method), strict=True))
    methods = {
        kind: experiment.methods[name].model_copy(update={"seeds": seeds[kind]})
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
    own = experiment.training.optimizer
    trained_already = plan(experiment).branches if base == OWN and rate == own.learning_rate else {}
    reused = {
        branch: pipeline_branch(paths, branch) for branch in manifests if branch in trained_already
    }
    point = Point(base, paths, rate, {})
    optimizer = own.model_copy(update={"learning_rate": rate})
    training = experiment.training.model_copy(update={"optimizer": optimizer})
    runs = [
        Run(f"{point.name}-{branch}", paths, manifest, training)
        for branch, manifest in manifests.items()
        if branch not in reused
    ]
    for kind in KINDS:
        point.parts[kind] = [
            [
                branch if branch in reused else f"{point.name}-{branch}"
                for branch in planned.models[f"{kind}-s{seed}"].branches
            ]
            for seed in seeds[kind]
        ]
    return point, runs, reused


def pipeline_branch(paths: Artifacts, branch: str) -> Trained:
    """A branch of the pipeline as a finished run.

    Raises MeritError where it is missing or was trained for another manifest.
    """
    manifest = read_json(paths.manifest(branch))
    summary = read_json(paths.branch(branch) / "summary.json")
    if summary["manifest_hash"] != value_hash(manifest):
        raise MeritError(
            f"{paths.branch(branch)}: trained for another manifest than "
            f"{paths.manifest(branch)}; run the train stage again"
        )
    return Trained(
        path=paths.branch(branch) / "model.safetensors",
        num_tokens=manifest["num_tokens"],
        num_loss_tokens=manifest["num_loss_tokens"],
        num_samples=manifest["num_samples"],
        final_loss=summary["final_loss"],
        displacement=summary["displacement"],
        failure=None,
    )


def candidates(
    point: Point, trained: Mapping[str, Trained], reading: str
) -> tuple[list[Candidate], Row | None]:
    """The cell's models, and {"distances", "norm", "alpha"}; `alpha` is the shrunk model's.

    `distances` from the base by kind, `norm` the base's over the trained tensors. None where a run
    did not stay finite: such a cell has no models. Args: reading: the experiment's `merge_weights`.
    """
    from merit.core.merge.average import matching_alpha

    names = itertools.chain.from_iterable(itertools.chain.from_iterable(point.parts.values()))
    if any(trained[name].failure is not None for name in names):
        return [], None
    base = point.paths.base

    def merged(kind: str, draw: int) -> Callable[[], Tensors]:
        parts = [trained[name] for name in point.parts[kind][draw]]
        return functools.partial(average_runs, parts, reading)

    models, distances = [], {}
    for kind, draws in point.parts.items():
        for draw in range(len(draws)):
            models.append(Candidate(f"{point.name}-{kind}-{draw}", base, merged(kind, draw)))
        distances[kind] = float(
            np.mean([distance(base, merged(kind, draw)()) for draw in range(len(draws))])
        )
    alpha, joint = matching_alpha(distances["merit"], distances["joint"]), merged("joint", 0)
    shrunk = functools.partial(_shrunk, base, joint, alpha)
    models.append(Candidate(f"{point.name}-shrunk", base, shrunk))
    norm = base_norm(base, joint())
    return models, {"distances": distances, "norm": norm, "alpha": alpha}


def base_norm(base: Path, names: Iterable[str]) -> float:
    """||theta0||_2 over the base's tensors of these names."""
    from merit.io.checkpoints import Checkpoint

    start = Checkpoint(base / "model.safetensors")
    return sum(float(start.read(name).double().square().sum()) for name in names) ** 0.5


def _shrunk(base: Path, joint: Callable[[], Tensors], alpha: float) -> Tensors:
    return moved(base, joint(), alpha)


# --- what is reported --------------------------------------------------------------------------


def cell(point: Point, scores: Mapping[str, Scores], found: Row | None, limits: Thresholds) -> Row:
    """One cell: averages, differences with intervals, distances, and whether it is merge-ready.

    `merge_ready` is None where a training did not stay finite.
    """
    where: Row = {"base": point.base, "learning_rate": point.learning_rate}
    if found is None:
        nothing = ("averages", "differences", "distances", "relative_displacements", "merge_ready")
        return where | dict.fromkeys(nothing)
    models = {
        kind: [scores[f"{point.name}-{kind}-{draw}"] for draw in range(len(draws))]
        for kind, draws in point.parts.items()
    }
    models |= {
        "shrunk": [scores[f"{point.name}-shrunk"]],
        "base": [scores[f"{TAGS[point.base]}-base"]],
    }
    differences = {f"{a}-{b}": difference(models[a], models[b]) for a, b in PAIRS}
    distances = found["distances"] | {"shrunk": found["distances"]["merit"], "base": 0.0}
    relative = {kind: value / found["norm"] for kind, value in distances.items()}
    return where | {
        "averages": {kind: average(some) for kind, some in models.items()},
        "differences": differences,
        "distances": distances,
        "relative_displacements": relative,
        "alpha": found["alpha"],
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


def counts(cells: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Of every difference: in how many cells it is positive, negative, undecided, not finite."""
    table = {}
    for a, b in PAIRS:
        words = [_verdict(entry, a, b) for entry in cells]
        table[f"{a}-{b}"] = {word: words.count(word) for word in VERDICTS}
    return table


def summary(cells: Sequence[Row], settings: Regime, num_questions: int) -> Row:
    """The counts, and every cell as one flat entry of `cells`."""
    found: Row = {
        "num_cells": len(cells),
        "num_merge_ready": sum(entry["merge_ready"] is True for entry in cells),
        "num_questions": num_questions,
        "num_random": settings.num_random,
        "seed": settings.seed,
        "cells": [],
    }
    for pair, words in counts(cells).items():
        for word, count in words.items():
            found[f"{pair}_{word}".replace("-", "_minus_", 1).replace(" ", "_")] = count
    for entry in cells:
        one = {key: entry[key] for key in ("base", "learning_rate")} | _readiness(entry)
        for kind, (value, _, _) in (entry["averages"] or {}).items():
            one[f"avg_{kind}"] = value
        for a, b in PAIRS:
            key = f"{a}_minus_{b}"
            value, low, high = (entry["differences"] or {}).get(f"{a}-{b}", (None, None, None))
            one |= {key: value, f"{key}_low": low, f"{key}_high": high}
            one[f"{key}_verdict"] = _verdict(entry, a, b)
        found["cells"].append(one)
    return found


# --- sentences ---------------------------------------------------------------------------------


def text(
    cells: Sequence[Row], settings: Regime, num_questions: int, epochs: float, limits: Thresholds
) -> str:
    """In which cells each method is ahead, generated."""
    ours, random, joint = settings.method, settings.random, settings.joint
    draws = "one draw" if settings.num_random == 1 else f"mean of {settings.num_random} draws"
    words = [_verdict(entry, "merit", "shrunk") for entry in cells]
    no_worse = words.count("negative") + words.count("undecided")
    length = "one epoch" if epochs == 1 else f"{epochs:g} epochs"
    points = "point" if limits.random_behind == 1 else "points"
    failed = [entry for entry in cells if entry["averages"] is None]
    ready = [entry for entry in cells if entry["merge_ready"]]
    return (
        f"{len(cells)} cells, learning rate x kind of base, trained for {length}, seed "
        f"{settings.seed}. "
        f"Splitting by conflict ({ours}) against splitting at random ({random}, {draws}): "
        f"{_compared(cells, 'merit', 'random')}. "
        f"Against joint training ({joint}): {_compared(cells, 'merit', 'joint')}. "
        f"Splitting at random against joint training: {_compared(cells, 'random', 'joint')}. "
        f"The control, joint training shrunk to {ours}'s distance from the base, does as well as "
        f"{ours} or better, as far as the questions can tell, in {no_worse} of {len(cells)} cells: "
        f"{_compared(cells, 'merit', 'shrunk', CONTROL_WORDS)}. "
        f"Merge-ready as far as this study can tell: {_where(cells, ready)} (joint training moves "
        f"by at most {100 * limits.joint_displacement:g} % of the base's norm, and {random} is at "
        f"most {limits.random_behind:g} {points} worse than {joint}, here on the test split). "
        + (f"A training did not stay finite {_where(cells, failed)}. " if failed else "")
        + f"Decided means that the 95 % paired bootstrap interval over {num_questions} questions"
        f"{f' and the draws of {random}' if settings.num_random > 1 else ''} excludes 0."
    )


WORDS = {"positive": "ahead", "negative": "behind", "undecided": "not decided"}
CONTROL_WORDS = WORDS | {"positive": "behind", "negative": "ahead"}  # it is the second of its pair


def _compared(
    cells: Sequence[Row], ours: str, theirs: str, words: Mapping[str, str] = WORDS
) -> str:
    """ "ahead where ...; behind where ...", without what is nowhere the case."""
    parts = []
    for word, said in words.items():
        some = [entry for entry in cells if _verdict(entry, ours, theirs) == word]
        if some:
            parts.append(f"{said} {_where(cells, some)}")
    return "; ".join(parts) or "no cell stayed finite"


def _where(cells: Sequence[Row], some: Sequence[Row]) -> str:
    """ "where the base has the skills (at 5e-4 and 1e-3)", "nowhere" or "everywhere"."""
    if len(some) == len(cells):
        return "everywhere"
    places = []
    for base in dict.fromkeys(entry["base"] for entry in some):
        rates = [rate_label(e["learning_rate"]) for e in some if e["base"] == base]
        whole = len(rates) == sum(entry["base"] == base for entry in cells)
        places.append(f"where the base {base} (at {'every rate' if whole else _listed(rates)})")
    return " and ".join(places) or "nowhere"


def _listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
