"""held_out: every method on each task's held-out examples, which nothing was trained on.

Half of them choose c in theta0 + c (theta - theta0), by the loss; what is reported of a method is
of the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from merit.config import Experiment
from merit.config.branches import Model
from merit.eval.measuring.candidates import Candidate as Tensors
from merit.eval.measuring.candidates import moved, place
from merit.eval.measuring.held_out import (
    Array,
    exact_matches,
    example_losses,
    load_held_out,
    short_answers,
)
from merit.eval.measuring.models import by_method, displacement, finished_models
from merit.eval.measuring.scores import Row, columns
from merit.eval.statistics import bootstrap_interval
from merit.eval.studies.held_out import HeldOut
from merit.eval.studies.held_out.recommend import Candidate, mean_loss, recommend, strata
from merit.io.artifacts import Artifacts, read_json
from merit.io.checkpoints import Checkpoint
from merit.io.progress import Progress
from merit.train.model import load_model, load_processor, use_one_thread

Point = tuple[str, float]  # a model's id and its c
Values = Mapping[str, Array]  # by task: a number per example
TEST, VALIDATION = slice(0, None, 2), slice(1, None, 2)  # of a task's examples
WHOLE = 1.0  # the c of a model as it was trained; the base has no other
FEW_STEPS = 50  # with fewer a branch has hardly learned


def measure(experiment: Experiment, paths: Artifacts, settings: HeldOut) -> dict[str, Any]:
    """Losses and exact matches by method, by c and by task; the recommendation in `summary`.

    Raises MeritError where nothing was held out.
    """
    use_one_thread()
    data = load_held_out(paths, experiment.encoding, settings.num_examples)
    processor = load_processor(paths.base)
    model = load_model(paths.base, experiment.model, generates=True)
    starts = {task: short_answers(found, processor) for task, found in data.items()}
    tested = {task: {i: s for i, s in x.items() if i % 2 == 0} for task, x in starts.items()}
    asked = {task: found for task, found in tested.items() if found}

    def measured(points: Sequence[Point], label: str, each: Callable[[], Values]) -> dict[Any, Any]:
        """{point: `each`()} with the tensors of the point in the model."""
        found: dict[Point, Values] = {}
        with Progress(f"{experiment.name}, held-out {label}", len(points)) as progress:
            for name, c in points:
                tensors = dict(Checkpoint(paths.model(name)).items())
                place(model, paths.base, Tensors(name, partial(moved, paths.base, tensors, c)))
                found[name, c] = each()
                progress.advance()
        return found

    methods = by_method(finished_models(experiment, paths))
    scales = {n: _scales(found[0], settings) for n, found in methods.items()}
    points = [(m.id, c) for name, found in methods.items() for m in found for c in scales[name]]
    losses = measured(
        points, "loss", lambda: {t: example_losses(model, x) for t, x in data.items()}
    )
    candidates, path = [], []
    for name, found in methods.items():
        curve = [_candidate(found, c, losses) for c in scales[name]]
        best = min(curve, key=lambda one: one.validation)
        whole = next(one for one in curve if one.c == WHOLE)
        candidates += [whole] if best is whole else [whole, best]
        path += [
            {
                **{"method": name, "partition": experiment.methods[name].partition, "c": one.c},
                "distance": one.c * _mean(displacement(paths, m.id) for m in found),
                "loss_validation": one.validation,
                "loss": mean_loss(one.test),
            }
            for one in curve
        ]
    chosen = recommend(candidates)
    points = [(m.id, one.c) for one in candidates for m in methods[one.method]] if asked else []
    matches = measured(
        points,
        "answers",
        lambda: {t: exact_matches(model, processor, data[t], x) for t, x in asked.items()},
    )
    whole_losses = {m.id: losses[m.id, WHOLE] for found in methods.values() for m in found}
    return {
        "tables": {
            "held_out": [_row(one, methods[one.method], matches, row)
                         for one, row in zip(candidates, chosen.pop("rows"), strict=True)],
            "held_out_models": [
                {"model": m.id, "method": name, "seed": m.seed}
                for name, found in methods.items()
                for m in found
            ],
            "held_out_path": path,
            "held_out_tasks": [
                {"task": task, "num_examples": len(found)}
                | {name: float(values[task].mean()) for name, values in whole_losses.items()}
                for task, found in data.items()
            ],
        },
        "summary": {
            "num_tasks": len(data),
            "num_examples": sum(map(len, data.values())),
            "num_answers": sum(map(len, asked.values())),
            "loss": {
                name: mean_loss({task: x[TEST] for task, x in values.items()})
                for name, values in whole_losses.items()
            },
            "accuracy": {
                name: 100 * mean_loss(found) for (name, c), found in matches.items() if c == WHOLE
            },
            "recommendation": chosen,
            "branches": branches(experiment, paths, methods, candidates),
        },
    }  # fmt: skip


def _scales(model: Model, settings: HeldOut) -> list[float]:
    return [WHOLE] if model.rule == "base" else sorted({*settings.scales, WHOLE})


def _candidate(models: Sequence[Model], c: float, losses: Mapping[Point, Values]) -> Candidate:
    """The method's models at this c. Tasks of one example have none for validation."""
    found = [losses[m.id, c] for m in models]
    test = {task: np.stack([values[task][TEST] for values in found]) for task in found[0]}
    halves = {task: np.stack([values[task][VALIDATION] for values in found]) for task in found[0]}
    kept = {task: values for task, values in halves.items() if values.size}
    effort = 0 if models[0].rule == "base" else max(1, len(models[0].branches))
    return Candidate(models[0].method, c, effort, mean_loss(kept or test), test)


def _row(
    one: Candidate, models: Sequence[Model], matches: Mapping[Point, Values], compared: Row
) -> Row:
    """Loss and exact matches in percent on the test half, and the loss minus the shipped one's."""
    found = [matches[m.id, one.c] for m in models] if matches else []
    told = {task: np.stack([values[task] for values in found]) for task in (found or [{}])[0]}
    low, high = bootstrap_interval(strata(told)) if told else (0, 0)
    interval = (100 * mean_loss(told), 100 * low, min(100.0, 100 * high)) if told else None
    return {**compared, "loss": mean_loss(one.test), **columns("matches", interval)}


def branches(
    experiment: Experiment,
    paths: Artifacts,
    methods: Mapping[str, Sequence[Model]],
    candidates: Sequence[Candidate],
) -> list[Row]:
    """Of every split: its shortest branch's steps, how far its branches moved as a share of joint
    training's distance, and an `advice` if they are too short to have learned: few steps, or a loss
    that still falls beyond their distance; else "".
    """
    joint = [
        displacement(paths, model.id)
        for name, found in methods.items()
        for model in found
        if experiment.methods[name].partition == "joint"
    ]
    rows: list[Row] = []
    for name, found in methods.items():
        method = experiment.methods[name]
        if method.num_groups < 2:
            continue
        ids = [branch for model in found for branch in model.branches]
        told = [read_json(paths.branch(branch) / "summary.json") for branch in ids]
        steps, share = min(one["num_steps"] for one in told), None
        if joint and all("displacement" in one for one in told):
            share = _mean(one["displacement"] for one in told) / _mean(joint)
        best = max(one.c for one in candidates if one.method == name)
        row = {"method": name, "num_steps": steps, "share_of_joint": share, "advice": ""}
        if steps < FEW_STEPS or best > WHOLE:
            why = f"the loss still falls at {best:g} times their distance"
            epochs = int(np.ceil(method.epochs * max(best, FEW_STEPS / steps)))
            row["advice"] = (
                f"The branches of {name} are too short to have learned all they could: "
                f"{why if best > WHOLE else f'{steps} steps are few'}. Set `epochs: {epochs}` for "
                "it, or a larger `learning_rate`."
            )
        rows.append(row)
    return rows


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
