"""`merit tune`: learning rate and batch size by the rule of docs/regime.md.

Of the settings at which the base is merge-ready (eval.studies.readiness), the one with joint-1ep's
best validation average. Joint training and random splits decide; no MERIT model is looked at, and
neither is the test split. The result is a table in docs/, the choice two lines in the YAML.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks import benchmark
from eval.studies.compare import Scores, difference
from eval.studies.loss import base_vector, open_meter
from eval.studies.readiness import Split, conditions, geometry
from eval.studies.runs import (
    Candidate,
    Run,
    Trained,
    average_runs,
    score_models,
    study_folder,
    train_runs,
)
from merit.config import Experiment, load_experiment, load_params
from merit.config_studies import Readiness
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_write, read_json
from merit.methods import plan

SEED = 1
Point = tuple[float, int]  # learning rate, batch size
Row = dict[str, Any]


def tune(name: str) -> None:
    """Write docs/tuning-<name>.md. Needs the encode stage's output."""
    from merit.models import use_one_thread

    use_one_thread()
    experiment, paths = load_experiment(name), Artifacts(name)
    settings = experiment.studies.readiness
    for key, value in (("tuning", experiment.tuning), ("studies.readiness", settings)):
        if value is None:
            raise MeritError(f"experiments/{name}.yaml: key `{key}` is missing: nothing to search")
    assert experiment.tuning is not None
    assert settings is not None
    folder, workers = study_folder(paths, "tuning"), load_params().workers
    grid = list(itertools.product(experiment.tuning.learning_rate, experiment.tuning.batch_size))
    draws = range(SEED, SEED + experiment.tuning.num_random)
    runs, parts = plan_grid(experiment, paths, settings, grid, list(draws))
    trained = train_runs(runs, folder / "runs", workers, "tuning")
    models = [Candidate("base", paths.base)]
    finite = [
        point
        for point in grid
        if all(trained[run].failure is None for model in parts[point].values() for run in model)
    ]
    if not finite:
        raise MeritError(
            f"experiments/{name}.yaml: key `tuning.learning_rate`: at no point of the grid did "
            "every training stay finite; give smaller rates"
        )
    for point in finite:
        for model, names in parts[point].items():
            merged = functools.partial(
                average_runs, [trained[run] for run in names], experiment.merge_weights
            )
            models.append(Candidate(f"{_label(point)} {model}", paths.base, merged))
    scores = score_models(
        experiment,
        paths.data / "benchmarks" / "validation",
        models,
        folder / "validation",
        workers,
        "tuning",
    )
    rows = [point_row(experiment, paths, settings, p, parts[p], trained, scores) for p in finite]
    lost = [_label(point) for point in grid if point not in finite]
    atomic_write(
        Path("docs") / f"tuning-{name}.md", page(experiment, settings, rows, scores["base"], lost)
    )


def plan_grid(
    experiment: Experiment,
    paths: Artifacts,
    settings: Readiness,
    grid: Sequence[Point],
    draws: list[int],
) -> tuple[list[Run], dict[Point, dict[str, list[str]]]]:
    """All training runs, and {point: {"joint" or "random-<draw>": names of its runs}}."""
    from merit.stages.partition import Evidence, assign, build_manifests

    methods = {
        kind: experiment.methods[getattr(settings, kind)].model_copy(update={"seeds": seeds})
        for kind, seeds in (("joint", [SEED]), ("random", draws))
    }
    planned = plan(experiment.model_copy(update={"methods": methods}))
    tasks = read_json(paths.encoded / "tasks.json")
    nothing = np.empty((len(tasks), 0))  # these rules look at no gradient
    partitions, _ = assign(planned, Evidence(tasks, nothing, nothing, nothing))
    runs: list[Run] = []
    parts: dict[Point, dict[str, list[str]]] = {}
    for rate, size in grid:
        optimizer = experiment.training.optimizer.model_copy(
            update={"learning_rate": rate, "batch_size": size}
        )
        training = experiment.training.model_copy(
            update={"optimizer": optimizer, "joint_batch_size": None}
        )
        tuned = experiment.model_copy(update={"training": training})
        prefix = _label((rate, size)).replace(" ", "-").replace(",", "")
        for branch, manifest in build_manifests(tuned, planned, tasks, partitions).items():
            runs.append(Run(f"{prefix}-{branch}", paths, manifest, training))
        parts[rate, size] = {
            model.id.replace("-s", "-") if model.method == "random" else "joint": [
                f"{prefix}-{branch}" for branch in model.branches
            ]
            for model in planned.models.values()
        }
    return runs, parts


def point_row(
    experiment: Experiment,
    paths: Artifacts,
    settings: Readiness,
    point: Point,
    parts: Mapping[str, list[str]],
    trained: Mapping[str, Trained],
    scores: Mapping[str, Scores],
) -> Row:
    """One point of the grid: what the four conditions say, and joint training's score."""
    meter = open_meter(experiment, paths, settings.num_examples)
    base = base_vector(meter, paths)
    splits = []
    for name, runs in parts.items():
        if name == "joint":
            continue
        branches = [meter.read(trained[run].path) for run in runs]
        tensors = average_runs([trained[run] for run in runs], experiment.merge_weights)
        merged = torch_vector(meter.parameters, tensors)
        splits.append(Split(name, branches, merged))
    joint = {"joint": meter.read(trained[parts["joint"][0]].path)}
    found = geometry(meter, base, joint, splits, settings.num_points)
    label = _label(point)
    behind = difference(
        [scores[f"{label} {name}"] for name in parts if name != "joint"], [scores[f"{label} joint"]]
    )
    return {
        "point": point,
        "models": found["models"],
        "conditions": conditions(found, behind, settings.thresholds),
        "scores": {name: 100 * float(np.mean(v)) for name, v in scores[f"{label} joint"].items()},
    }


def torch_vector(names: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
    """The tensors one behind the other in the order of `names`: float32 (P,)."""
    from eval.studies.loss import flatten

    return flatten(tensors[name] for name in names)


def _label(point: Point) -> str:
    return f"lr {point[0]:g}, batch {point[1]}"


def choose(rows: Sequence[Row]) -> Row | None:
    """The rule: of the merge-ready points, joint training's best average. None where none is."""
    ready = [row for row in rows if all(c["holds"] for c in row["conditions"])]
    return max(ready, key=_average, default=None)


def _average(row: Row) -> float:
    return float(np.mean(list(row["scores"].values())))


def page(
    experiment: Experiment,
    settings: Readiness,
    rows: Sequence[Row],
    base: Scores,
    lost: Sequence[str],
) -> str:
    """The grid as Markdown: what decides merge-readiness at every point, and the choice."""
    names = experiment.evaluation.benchmarks
    closed = [name for name in names if benchmark(name).kind != "open"]
    best = choose(rows)
    text = [
        f"# Learning rate and batch size of {experiment.name}",
        "",
        f"Generated by `merit tune {experiment.name}`. {settings.joint}, seed {SEED}, and "
        f"{settings.random} in {_num_draws(rows[0])} draws at every "
        f"point; {experiment.data.num_validation_questions} validation questions a benchmark, "
        f"losses on {settings.num_examples} examples of the mixture. No MERIT model and no test "
        "question was looked at. Conditions: docs/regime.md.",
        "",
        "| setting | joint displacement | losses: base | joint | branches | merged | (a) barrier "
        "| (b) worst branch / base | (c) | (d) random - joint | merge-ready | joint avg | closed |",
        "|---|" + "---:|" * 9 + "---|---:|---:|",
    ]
    for row in rows:
        by_kind: dict[str, list[Row]] = {}
        for model in row["models"]:
            by_kind.setdefault(model["kind"], []).append(model)
        a, b, c, d = row["conditions"]
        losses = {k: [m["loss"] for m in v] for k, v in by_kind.items()}
        cells = [
            f"**{_label(row['point'])}**" if row is best else _label(row["point"]),
            f"{by_kind['joint'][0]['relative_displacement']:.1%}",
            f"{losses['base'][0]:.2f}",
            f"{losses['joint'][0]:.2f}",
            f"{min(losses['branch']):.2f} to {max(losses['branch']):.2f}",
            f"{np.mean(losses['merged']):.2f}",
            f"{a['value']:.2%}",
            f"{b['value']:.2f}",
            _word(c),
            f"{d['value']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]",
            "yes" if all(x["holds"] for x in row["conditions"]) else "no",
            f"{_average(row):.1f}",
            f"{np.mean([row['scores'][name] for name in closed]):.1f}",
        ]
        text.append("| " + " | ".join(cells) + " |")
    text += ["", *(f"{label}: a training did not stay finite." for label in lost)]
    text += [
        "",
        "Joint training on every benchmark:",
        "",
        "| setting | " + " | ".join(names) + " |",
    ]
    text.append("|---|" + "---:|" * len(names))
    for label, scores in [
        ("base", {name: 100 * float(np.mean(values)) for name, values in base.items()}),
        *((_label(row["point"]), row["scores"]) for row in rows),
    ]:
        text.append(f"| {label} | " + " | ".join(f"{scores[name]:.1f}" for name in names) + " |")
    chosen = "none is merge-ready" if best is None else f"**{_label(best['point'])}**"
    return "\n".join([*text, "", f"The rule's choice: {chosen}.", ""])


def _num_draws(row: Row) -> int:
    return sum(model["kind"] == "merged" for model in row["models"])


def _word(condition: Row) -> str:
    return "yes" if condition["holds"] else "no"
