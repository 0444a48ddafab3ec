"""partition: similarity, PCA, every method's groups, and a manifest per branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Experiment, load_experiment
from merit.config.branches import Plan, optimizer_of, plan
from merit.errors import MeritError
from merit.io.artifacts import (
    Artifacts,
    atomic_folder,
    atomic_write,
    folder_hash,
    read_array,
    read_json,
    value_hash,
    write_json,
)
from merit.method.partition import check_counts
from merit.method.rules import RULES, Evidence
from merit.method.similarity import cosine_matrix, pca
from merit.partition.files import write_similarity

Task = dict[str, Any]  # of encoded/tasks.json
Groups = dict[str, dict[str, int]]  # partition key -> task -> group
TOKEN_COUNTS = ("num_tokens", "num_loss_tokens")  # of a task
# of the training's settings: another optimiser's, or how fast it goes
NOT_A_BRANCHS = {"optimizer", "joint_batch_size", "checkpoint_minutes", "workers"}


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/partition."""
    experiment, paths = load_experiment(name), Artifacts(name)
    tasks = read_json(paths.encoded / "tasks.json")
    if read_json(paths.gradients / "tasks.json")["tasks"] != [entry["task"] for entry in tasks]:
        raise MeritError(f"{paths.gradients}: made for other tasks; run the gradients stage again")
    planned = plan(experiment)
    gradients = read_array(paths.gradients / "gradients.npy")
    try:
        similarity = cosine_matrix(gradients)
    except ValueError as error:
        raise MeritError(
            f"{paths.gradients / 'gradients.npy'}: {error} (tasks are counted from 0); leave the "
            "task out, or run the gradients stage again"
        ) from None
    components = pca(similarity, num_axes(planned, len(tasks)))
    partitions, splits = assign(
        planned, evidence(tasks, gradients, similarity, components.embedding)
    )
    manifests = build_manifests(experiment, planned, tasks, partitions)
    origin = {
        "base_hash": read_json(paths.base / "base.json")["base_hash"],
        "encoded_hash": folder_hash(paths.encoded),
    }
    with atomic_folder(paths.partition) as folder:
        write_similarity(folder, similarity, components)
        write_json(folder / "partitions.json", partitions)
        write_json(folder / "splits.json", splits)
        write_table(folder / "partitions.csv", tasks, partitions)
        for manifest in manifests.values():
            write_json(folder / "manifests" / f"{manifest['branch']}.json", manifest | origin)


def num_axes(planned: Plan, num_tasks: int) -> int:
    """How many axes of the cosine PCA the rules need; at least two, for the scatter plot."""
    axes = [
        partition.parameters["axes"]
        for partition in planned.partitions.values()
        if RULES[partition.rule].evidence == "embedding"
    ]
    return min(num_tasks, max([2, *axes]))


def evidence(
    tasks: list[Task], gradients: np.ndarray, similarity: np.ndarray, embedding: np.ndarray
) -> Evidence:
    names = [entry["task"] for entry in tasks]
    counts = np.array([entry["num_samples"] for entry in tasks])
    return Evidence(names, counts, gradients, similarity, embedding)


def assign(planned: Plan, known: Evidence) -> tuple[Groups, dict[str, list[dict[str, Any]]]]:
    """{partition key: {task: group}} for every key of the plan, and the cuts along PCA axes.

    Raises MeritError, naming the partition, for fewer tasks than groups or an empty task.
    """
    partitions: Groups = {}
    splits: dict[str, list[dict[str, Any]]] = {}
    for key, partition in planned.partitions.items():
        seed = {} if partition.seed is None else {"seed": partition.seed}
        try:
            check_counts(known.counts, known.names, partition.num_groups)
            groups, cuts = RULES[partition.rule].assign(known, **partition.parameters, **seed)
        except MeritError as error:
            raise MeritError(f"partition {key!r}: {error}") from None
        partitions[key] = dict(zip(known.names, groups.tolist(), strict=True))
        if cuts:
            splits[key] = [vars(cut) for cut in cuts]
    return partitions, splits


def build_manifests(
    experiment: Experiment, planned: Plan, tasks: list[Task], partitions: Groups
) -> dict[str, dict[str, Any]]:
    """What each branch trains on and how: with base and mixture, all that decides its result."""
    training = experiment.training
    manifests = {}
    for branch in planned.branches.values():
        groups = partitions[branch.partition]
        mine = [entry for entry in tasks if groups[entry["task"]] == branch.group]
        optimizer = optimizer_of(experiment, branch).model_dump(mode="json")
        if branch.partition == "joint" and training.joint_batch_size is not None:
            optimizer |= {
                "batch_size": branch.optimizer.get("batch_size", training.joint_batch_size)
            }
        manifests[branch.id] = {
            "branch": branch.id,
            "partition": branch.partition,
            "group": branch.group,
            "num_groups": branch.num_groups,
            "epochs": branch.epochs,
            "seed": branch.seed,
            "tasks": [entry["task"] for entry in mine],
            "num_samples": sum(entry["num_samples"] for entry in mine),
            **{
                key: round(sum(entry[key] for entry in mine) * branch.epochs)
                for key in TOKEN_COUNTS
            },
            "training": training.model_dump(mode="json", exclude=NOT_A_BRANCHS)
            | {"optimizer": optimizer},
            "model": experiment.model.model_dump(mode="json"),
            "encoding": experiment.encoding.model_dump(mode="json", exclude={"workers"}),
            "may_diverge": branch.may_diverge,
            "partition_hash": value_hash(groups),
        }
    return manifests


def write_table(path: Path, tasks: list[Task], partitions: Groups) -> None:
    """partitions.csv: a row per task, a column per partition."""
    lines = [",".join(["task", "num_samples", *TOKEN_COUNTS, *partitions])]
    for entry in tasks:
        groups = [str(partition[entry["task"]]) for partition in partitions.values()]
        counts = [str(entry[key]) for key in ("num_samples", *TOKEN_COUNTS)]
        lines.append(",".join([entry["task"], *counts, *groups]))
    atomic_write(path, "\n".join(lines) + "\n")
