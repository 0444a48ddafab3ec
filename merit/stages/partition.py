"""partition: similarity, PCA, every method's groups, and a manifest for every branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Experiment, MeritMethod, load_experiment
from merit.core.partition import merit_groups, random_groups
from merit.core.similarity import cosine_matrix, pca
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    atomic_write,
    read_array,
    read_json,
    value_hash,
    write_json,
)
from merit.methods import Branch, Model, Plan, plan


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/partition."""
    experiment, paths = load_experiment(name), Artifacts(name)
    tasks = read_json(paths.encoded / "tasks.json")
    names = [entry["task"] for entry in tasks]
    if read_json(paths.gradients / "tasks.json")["tasks"] != names:
        raise MeritError(f"{paths.gradients}: made for other tasks; run the gradients stage again")
    similarity = cosine_matrix(read_array(paths.gradients / "gradients.npy"))
    axes = [m.axes for m in experiment.methods.values() if isinstance(m, MeritMethod)]
    num_axes = min(len(names), max([2, *axes]))  # two at least: the scatter plot shows two
    components = pca(similarity, num_axes)
    planned = plan(experiment)
    partitions, splits = assign(planned, tasks, components.embedding)
    manifests = build_manifests(experiment, planned, tasks, partitions)
    check_budgets(planned, manifests)
    with atomic_folder(paths.partition) as folder:
        np.save(folder / "similarity.npy", similarity)
        np.save(folder / "embedding.npy", components.embedding)
        write_json(
            folder / "pca.json",
            {
                "eigenvalues": components.eigenvalues.tolist(),
                "explained": components.explained.tolist(),
                "num_axes": num_axes,
            },
        )
        write_json(folder / "partitions.json", partitions)
        write_json(folder / "splits.json", splits)
        write_table(folder / "partitions.csv", tasks, partitions)
        for manifest in manifests.values():
            write_json(folder / "manifests" / f"{manifest['branch']}.json", manifest)


def assign(
    planned: Plan, tasks: list[dict[str, Any]], embedding: np.ndarray
) -> tuple[dict[str, dict[str, int]], dict[str, list[dict[str, Any]]]]:
    """{partition key: {task: group}} for every key of the plan, and the merit partitions' splits.

    Raises MeritError, naming the partition, for fewer tasks than groups or an empty task.
    """
    names = [entry["task"] for entry in tasks]
    counts = np.array([entry["num_samples"] for entry in tasks])
    partitions: dict[str, dict[str, int]] = {}
    splits: dict[str, list[dict[str, Any]]] = {}
    for branch in planned.branches.values():
        key = branch.partition
        if key in partitions:
            continue
        try:
            if key == "joint":
                groups = np.zeros(len(names), dtype=np.int64)
            elif key.startswith("merit-"):
                axes = branch.num_groups.bit_length() - 1
                groups, cuts = merit_groups(embedding, counts, names, axes)
                splits[key] = [vars(cut) for cut in cuts]
            else:
                groups = random_groups(counts, names, branch.num_groups, branch.seed)
        except MeritError as error:
            raise MeritError(f"partition {key!r}: {error}") from None
        partitions[key] = {name: int(group) for name, group in zip(names, groups, strict=True)}
    return partitions, splits


def build_manifests(
    experiment: Experiment,
    planned: Plan,
    tasks: list[dict[str, Any]],
    partitions: dict[str, dict[str, int]],
) -> dict[str, dict[str, Any]]:
    """What each branch trains on: with base and settings, all that decides its result."""
    training = experiment.training
    manifests = {}
    for branch in planned.branches.values():
        groups = partitions[branch.partition]
        mine = [entry for entry in tasks if groups[entry["task"]] == branch.group]
        batch_size = training.optimizer.batch_size
        if branch.partition == "joint" and training.joint_batch_size is not None:
            batch_size = training.joint_batch_size
        manifests[branch.id] = {
            "branch": branch.id,
            "partition": branch.partition,
            "group": branch.group,
            "num_groups": branch.num_groups,
            "epochs": branch.epochs,
            "seed": branch.seed,
            "tasks": [entry["task"] for entry in mine],
            "num_samples": sum(entry["num_samples"] for entry in mine),
            "num_tokens": round(sum(entry["num_tokens"] for entry in mine) * branch.epochs),
            "batch_size": batch_size,
            "partition_hash": value_hash(groups),
        }
    return manifests


def check_budgets(planned: Plan, manifests: dict[str, dict[str, Any]]) -> None:
    """Every model's branches spend one mixture's tokens an epoch (a soup's, one a member)."""
    one_epoch = next(
        (m["num_tokens"] / m["epochs"] for m in manifests.values() if m["partition"] == "joint"),
        None,
    )
    for model in planned.models.values():
        if model.rule != "merge":
            continue
        spent = sum(manifests[branch]["num_tokens"] for branch in model.branches)
        due = budget(model, planned.branches, one_epoch or spent)
        if one_epoch is not None and abs(spent - due) > len(model.branches):  # rounding
            raise AssertionError(f"{model.id} spends {spent} tokens, its budget is {due}")


def budget(model: Model, branches: dict[str, Branch], one_epoch: float) -> float:
    """Tokens that a model may spend: epochs x mixture, once for each run over the whole mixture."""
    first = branches[model.branches[0]]
    passes = len(model.branches) if first.partition == "joint" else 1
    return one_epoch * first.epochs * passes


def write_table(
    path: Path, tasks: list[dict[str, Any]], partitions: dict[str, dict[str, int]]
) -> None:
    """partitions.csv: a row a task, a column a partition."""
    lines = [",".join(["task", "num_samples", "num_tokens", *partitions])]
    for entry in tasks:
        groups = [str(partition[entry["task"]]) for partition in partitions.values()]
        lines.append(
            ",".join([entry["task"], str(entry["num_samples"]), str(entry["num_tokens"]), *groups])
        )
    atomic_write(path, "\n".join(lines) + "\n")
