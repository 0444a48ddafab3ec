"""partition: similarity, PCA, every method's groups, and a manifest for every branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from merit.config import Experiment, load_experiment
from merit.config.branches import Branch, Model, Partition, Plan, optimizer_of, plan
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
from merit.method.partition import (
    Split,
    check_counts,
    conflict_groups,
    joint_group,
    kmeans_groups,
    merit_groups,
    random_groups,
)
from merit.method.similarity import cosine_matrix, gradient_coordinates, gram_pca, pca


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/partition."""
    experiment, paths = load_experiment(name), Artifacts(name)
    tasks = read_json(paths.encoded / "tasks.json")
    check_token_counts(tasks, paths.encoded / "tasks.json")
    names = [entry["task"] for entry in tasks]
    if read_json(paths.gradients / "tasks.json")["tasks"] != names:
        raise MeritError(f"{paths.gradients}: made for other tasks; run the gradients stage again")
    planned = plan(experiment)
    gradients = read_array(paths.gradients / "gradients.npy")
    similarity = cosine_matrix(gradients)
    axes = [_num_axes(p) for p in planned.partitions.values() if p.kind == "merit"]
    num_axes = min(len(names), max([2, *axes]))  # two at least: the scatter plot shows two
    components = pca(similarity, num_axes)
    known = Evidence(tasks, gradients, similarity, components.embedding)
    partitions, splits = assign(planned, known)
    manifests = build_manifests(experiment, planned, tasks, partitions)
    origin = {
        "base_hash": read_json(paths.base / "base.json")["base_hash"],
        "encoded_hash": folder_hash(paths.encoded),
    }
    check_budgets(planned, manifests, tasks)
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
            write_json(folder / "manifests" / f"{manifest['branch']}.json", manifest | origin)


def check_token_counts(tasks: list[dict[str, Any]], path: Path) -> None:
    """Raises MeritError, naming `path`, where a task's token counts are unknown."""
    for entry in tasks:
        for key in TOKEN_COUNTS:
            if not isinstance(entry.get(key), int):
                raise MeritError(
                    f"{path}: task {entry.get('task')!r}: key `{key}`: found {entry.get(key)!r}, "
                    "expected a number of tokens; run the encode stage again"
                )


@dataclass(frozen=True)
class Evidence:
    """What is known of the T tasks when they are assigned; rows in the order of `tasks`."""

    tasks: list[dict[str, Any]]  # encoded/tasks.json
    gradients: np.ndarray  # (T, D) float32, memory-mapped; read by the rules that need it alone
    similarity: np.ndarray  # (T, T) float64
    embedding: np.ndarray  # (T, num_axes) float64, of the cosine PCA

    @cached_property
    def names(self) -> list[str]:
        return [entry["task"] for entry in self.tasks]

    @cached_property
    def counts(self) -> np.ndarray:
        """(T,) samples: what groups are balanced by."""
        return np.array([entry["num_samples"] for entry in self.tasks])

    @cached_property
    def raw_embedding(self) -> np.ndarray:
        """(T, T) scores on all axes of the raw-gradient PCA: one pass over the gradients."""
        return gram_pca(self.gradients, len(self.tasks)).embedding


def _num_axes(partition: Partition) -> int:
    """r of 2^r groups."""
    return partition.num_groups.bit_length() - 1


TOKEN_COUNTS = ("num_tokens", "num_loss_tokens")  # of encoded/tasks.json
# of the training's settings: another optimiser's, or how fast it goes
NOT_A_BRANCHS = {"optimizer", "joint_batch_size", "checkpoint_minutes", "workers"}

# The groups (T,), and the cuts where they lie on the axes of embedding.npy.
Assignment = tuple[np.ndarray, list[Split]]


def _joint(known: Evidence, partition: Partition) -> Assignment:
    return joint_group(known.names), []


def _merit(known: Evidence, partition: Partition) -> Assignment:
    return merit_groups(known.embedding, known.counts, known.names, _num_axes(partition))


def _rawpca(known: Evidence, partition: Partition) -> Assignment:
    num_axes = _num_axes(partition)
    groups, _ = merit_groups(known.raw_embedding, known.counts, known.names, num_axes)
    return groups, []


def _random(known: Evidence, partition: Partition) -> Assignment:
    assert partition.seed is not None
    return random_groups(known.counts, known.names, partition.num_groups, partition.seed), []


def _kmeans(known: Evidence, partition: Partition) -> Assignment:
    assert partition.seed is not None
    # as far from each other as the normalised gradients, with T columns instead of D
    features = gradient_coordinates(known.similarity)
    return kmeans_groups(features, known.names, partition.num_groups, partition.seed), []


def _conflict(known: Evidence, partition: Partition) -> Assignment:
    assert partition.reading is not None
    return conflict_groups(known.similarity, known.names, partition.reading), []


RULES: dict[str, Callable[[Evidence, Partition], Assignment]] = {
    "joint": _joint,
    "merit": _merit,
    "rawpca": _rawpca,
    "random": _random,
    "kmeans": _kmeans,
    "conflict": _conflict,
}


def assign(
    planned: Plan, known: Evidence
) -> tuple[dict[str, dict[str, int]], dict[str, list[dict[str, Any]]]]:
    """{partition key: {task: group}} for every key of the plan, and the merit partitions' splits.

    Raises MeritError, naming the partition, for fewer tasks than groups or an empty task.
    """
    partitions: dict[str, dict[str, int]] = {}
    splits: dict[str, list[dict[str, Any]]] = {}
    for key, partition in planned.partitions.items():
        try:
            check_counts(known.counts, known.names, partition.num_groups)
            groups, cuts = RULES[partition.kind](known, partition)
        except MeritError as error:
            raise MeritError(f"partition {key!r}: {error}") from None
        partitions[key] = dict(zip(known.names, groups.tolist(), strict=True))
        if cuts:
            splits[key] = [vars(cut) for cut in cuts]
    return partitions, splits


def build_manifests(
    experiment: Experiment,
    planned: Plan,
    tasks: list[dict[str, Any]],
    partitions: dict[str, dict[str, int]],
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


def check_budgets(
    planned: Plan, manifests: dict[str, dict[str, Any]], tasks: list[dict[str, Any]]
) -> None:
    """Every model's branches spend one mixture's tokens an epoch (a soup's, one a member).

    Raises AssertionError, which no settings can bring about: groups cover every task once.
    """
    for key in TOKEN_COUNTS:
        one_epoch = sum(entry[key] for entry in tasks)
        for model in planned.models.values():
            if model.rule != "merge":
                continue
            spent = sum(manifests[branch][key] for branch in model.branches)
            due = budget(model, planned.branches, one_epoch)
            if abs(spent - due) > len(model.branches):  # rounding
                raise AssertionError(f"{model.id}: `{key}` is {spent}, its budget {due}")


def budget(model: Model, branches: dict[str, Branch], one_epoch: float) -> float:
    """Tokens that a model may spend: epochs x mixture, once for each run over the whole mixture."""
    first = branches[model.branches[0]]
    passes = len(model.branches) if first.partition == "joint" else 1
    return one_epoch * first.epochs * passes


def write_table(
    path: Path, tasks: list[dict[str, Any]], partitions: dict[str, dict[str, int]]
) -> None:
    """partitions.csv: a row a task, a column a partition."""
    lines = [",".join(["task", "num_samples", *TOKEN_COUNTS, *partitions])]
    for entry in tasks:
        groups = [str(partition[entry["task"]]) for partition in partitions.values()]
        counts = [str(entry[key]) for key in ("num_samples", *TOKEN_COUNTS)]
        lines.append(",".join([entry["task"], *counts, *groups]))
    atomic_write(path, "\n".join(lines) + "\n")
