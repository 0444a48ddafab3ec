"""The models of an experiment's plan: by method, of a seed, and what their merges recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from merit.config import Experiment, Method
from merit.config.branches import Model, plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json


def by_method(models: Iterable[Model]) -> dict[str, list[Model]]:
    """{method: its models, seed by seed}, in the order of `models`."""
    found: dict[str, list[Model]] = {}
    for model in models:
        found.setdefault(model.method, []).append(model)
    return found


def models_of(experiment: Experiment) -> dict[str, list[Model]]:
    """{method: its models}, in the order of the YAML; models of sweeps come last."""
    return by_method(plan(experiment).models.values())


def finished_models(experiment: Experiment, paths: Artifacts) -> list[Model]:
    """All models but those that diverged."""
    models = plan(experiment).models.values()
    return [model for model in models if merge_record(paths, model.id)["failure"] is None]


def planned_model(
    experiment: Experiment, key: str, method: str, seed: int, branches: int = 1
) -> Model:
    """The method's model of this seed, of at least `branches` branches.

    Raises MeritError that names the key `studies.<key>` if there is none.
    """
    models = plan(experiment).models
    where = f"experiments/{experiment.name}.yaml: key `studies.{key}`"
    model = models.get(f"{method}-s{seed}")
    if model is None:
        raise MeritError(
            f"{where}: found {method!r} with seed {seed}, which is not run; the "
            f"models are {', '.join(models)}"
        )
    if len(model.branches) < branches:
        raise MeritError(
            f"{where}: {method!r} has {len(model.branches)} branches, at least {branches} are "
            "needed; name a method that merges more"
        )
    return model


def planned_models(
    experiment: Experiment, key: str, method: str, seeds: Sequence[int], branches: int = 1
) -> list[Model]:
    """`planned_model` of every seed."""
    return [planned_model(experiment, key, method, seed, branches) for seed in seeds]


def method_of_kind(experiment: Experiment, key: str, name: str, kind: str) -> Method:
    """The method of this name. Raises MeritError that names the key `studies.<key>` unless it is
    one of this kind, "joint" or "random" for example.
    """
    method = experiment.methods.get(name)
    if method is None or method.partition != kind:
        raise MeritError(
            f"experiments/{experiment.name}.yaml: key `studies.{key}`: found {name!r}, which is no "
            f"{kind} method that is run; name or add one"
        )
    return method


def branch_folders(paths: Artifacts, model: Model) -> list[Path]:
    return [paths.branch(name) for name in model.branches]


def merge_record(paths: Artifacts, model: str) -> dict[str, Any]:
    """merge.json of a model; its `failure` says why there is none if a branch diverged."""
    return read_json(paths.model(model) / "merge.json")


def displacement(paths: Artifacts, model: str) -> float:
    """||theta - theta0||, as the merge has measured it; 0 of the base."""
    return float(merge_record(paths, model).get("displacement", 0.0))
