"""explorer.json: where every task went, and which tasks it agrees and conflicts with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.config import Experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_write, read_array, read_json

NUM_NEIGHBOURS = 5


def load_explorer(experiment: Experiment, artifacts: Artifacts) -> dict[str, Any]:
    """Tasks with families, sample counts, groups and neighbours; indices instead of names.

    `partitions` has every partition of more than one group: task index -> group. `similar[t]` and
    `conflicting[t]` are [task index, cosine] pairs, strongest first. Raises MeritError where the
    partition stage knew other tasks.
    """
    entries = read_json(artifacts.mixture / "tasks.json")
    tasks = [entry["task"] for entry in entries]
    path = artifacts.partition / "partitions.json"
    stored = read_json(path)
    partitions = {}
    for key, partition in plan(experiment).partitions.items():
        if partition.num_groups < 2:
            continue
        if set(stored.get(key, ())) != set(tasks):
            raise MeritError(f"{path}: {key}: other tasks than data/tasks.json; run it again")
        partitions[key] = [stored[key][task] for task in tasks]
    similarity = read_array(artifacts.partition / "similarity.npy")
    if similarity.shape != (len(tasks), len(tasks)):
        raise MeritError(
            f"{artifacts.partition / 'similarity.npy'}: shape {similarity.shape} for {len(tasks)} "
            "tasks; run the partition stage again"
        )
    similar, conflicting = neighbours(similarity, NUM_NEIGHBOURS)
    return {
        "tasks": tasks,
        "families": [entry["family"] for entry in entries],
        "num_examples": [entry["num_examples"] for entry in entries],
        "partitions": partitions,
        "similar": similar,
        "conflicting": conflicting,
    }


def neighbours(
    similarity: NDArray[np.float64], count: int
) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """[task, cosine] of the `count` most similar and of the most conflicting other tasks.

    For every row of the (T, T) cosine matrix; ties go to the earlier task.
    """

    def pick(row: int, sign: int) -> list[list[float]]:
        ranked = np.argsort(sign * np.asarray(similarity[row]), kind="stable")
        others = [int(t) for t in ranked if t != row][:count]
        return [[t, round(float(similarity[row, t]), 4)] for t in others]

    rows = range(len(similarity))
    return [pick(row, -1) for row in rows], [pick(row, 1) for row in rows]


def write_explorer(content: dict[str, Any], out: Path) -> None:
    """One compact line: the page embeds it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    atomic_write(out / "explorer.json", text + "\n")
