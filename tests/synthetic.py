"""A small, complete artifacts/<experiment>/ tree without training anything.

Every file of docs/formats.md is there, consistent with the others (hashes, token counts, merge
weights, displacements, scores as means of predictions); the numbers are drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from merit.config import Experiment
from merit.config.branches import Branch, Plan, optimizer_of, plan
from merit.io.artifacts import Artifacts, file_hash, read_json, value_hash, write_json, write_jsonl

METHODS: dict[str, dict[str, Any]] = {
    "base": {"partition": "base"},
    "joint-1ep": {"partition": "joint", "epochs": 1.0},
    "joint-2ep": {"partition": "joint", "epochs": 2.0},
    "random-2": {"partition": "random", "groups": 2},
    "random-8": {"partition": "random", "groups": 8},
    "soup-2": {"partition": "soup", "members": 2},
    "merit-1d": {"partition": "merit", "axes": 1},
    "merit-2d": {"partition": "merit", "axes": 2},
    "merit-3d": {"partition": "merit", "axes": 3},
    "joint-shrunk": {"partition": "shrunk", "source": "joint-1ep", "match": "merit-3d"},
}
BENCHMARKS = [
    "choice-a",
    "choice-b",
    "open-a",
    "open-b",
    "text-a",
    "text-b",
    "reason-a",
    "reason-b",
]
SHAPE = (6, 5)  # of the only trained tensor
BATCH_SIZE = 4


def experiment(
    name: str = "synthetic",
    *,
    seeds: Sequence[int] = (1,),
    methods: Sequence[str] = tuple(METHODS),
    benchmarks: Sequence[str] = tuple(BENCHMARKS),
    **more: Any,
) -> Experiment:
    """Settings that pass every check of merit.config; all methods run the same `seeds`.

    `more` are further keys of the YAML: sweeps, bases, studies.
    """
    optimizer = {"learning_rate": 1e-3, "batch_size": BATCH_SIZE}
    return Experiment.model_validate(
        {
            "name": name,
            "data": {
                "source": "mini_world",
                "seed": 0,
                "num_examples": 100,
                "num_images": 50,
                "num_conversations": 10,
                "num_questions": 10,
                "num_validation_questions": 5,
            },
            "base": {"checkpoint": "base"},
            "gradients": {},
            "training": {"trainable": ["decoder"], "optimizer": optimizer},
            "methods": {
                method: METHODS[method] | ({} if method == "base" else {"seeds": list(seeds)})
                for method in methods
            },
            "evaluation": {"benchmarks": list(benchmarks)},
            "report": {
                "title": "Synthetic",
                "paper_table": "table02_vision_flan_3b",
                "curves": [m for m in ("joint-1ep", "merit-3d") if m in methods],
                "partition": "merit-3d" if "merit-3d" in methods else None,
            },
            **more,
        }
    )


def build(
    root: Path,
    *,
    name: str = "synthetic",
    num_tasks: int = 8,
    seeds: Sequence[int] = (1,),
    methods: Sequence[str] = tuple(METHODS),
    benchmarks: Sequence[str] = tuple(BENCHMARKS),
    num_records: int = 10,
    num_questions: int = 10,
    **more: Any,
) -> Experiment:
    """Write `root`/<name>/ as a finished pipeline leaves it; return the experiment."""
    settings = experiment(name, seeds=seeds, methods=methods, benchmarks=benchmarks, **more)
    write(root, settings, num_tasks, num_records, num_questions)
    return settings


def write(
    root: Path,
    settings: Experiment,
    num_tasks: int = 8,
    num_records: int = 10,
    num_questions: int = 10,
    diverged: Collection[str] = (),
) -> None:
    """Write `root`/<name>/ as a finished pipeline leaves it, but for the reports folder.

    `num_records` logged steps an epoch in every branch; `num_questions` questions a benchmark;
    `diverged` are branches that did not stay finite.
    """
    artifacts = Artifacts(settings.name, root)
    rng = np.random.default_rng(0)
    todo = plan(settings)
    num_samples = _write_tasks(artifacts, num_tasks)
    partitions = _write_partition(artifacts, list(num_samples), todo, rng)
    base = rng.normal(size=SHAPE).astype(np.float32)
    artifacts.base.mkdir(parents=True)
    save_file({"w": base}, artifacts.base / "model.safetensors")
    write_jsonl(artifacts.base / "records.jsonl", _records(num_records, 1.0, 100, 40, 2.0))
    write_json(
        artifacts.base / "base.json", {"base_hash": file_hash(artifacts.base / "model.safetensors")}
    )
    deltas = {
        branch.id: _write_branch(
            artifacts, settings, branch, partitions, num_samples, num_records, rng
        )
        for branch in todo.branches.values()
    }
    for branch in diverged:
        _diverge(artifacts, branch)
    failures = _write_models(artifacts, todo, base, deltas)
    benchmarks = settings.evaluation.benchmarks
    _write_scores(artifacts, todo, benchmarks, num_questions, failures, rng)


def _diverge(artifacts: Artifacts, branch: str) -> None:
    """Leave the branch a summary with only the failure."""
    (artifacts.branch(branch) / "model.safetensors").unlink()
    path = artifacts.branch(branch) / "summary.json"
    summary = read_json(path) | {"failure": f"branch {branch}: the loss is nan at step 3"}
    for key in ("final_loss", "displacement", "checkpoint_hash"):
        del summary[key]
    write_json(path, summary)


def _write_tasks(artifacts: Artifacts, num_tasks: int) -> dict[str, int]:
    """data/tasks.json; task -> number of samples, unequal on purpose."""
    families = ["count", "ocr", "presence", "caption"]
    rows = [
        {
            "task": f"{families[i % 4]}-{i:03d}",
            "family": families[i % 4],
            "style": "sentence" if i % 4 == 3 else "word",
            "num_examples": 10 + 3 * (i % 5),
        }
        for i in range(num_tasks)
    ]
    rows.sort(key=lambda row: str(row["task"]))
    write_json(artifacts.mixture / "tasks.json", rows)
    return {str(row["task"]): int(str(row["num_examples"])) for row in rows}


def _write_partition(
    artifacts: Artifacts, tasks: list[str], todo: Plan, rng: np.random.Generator
) -> dict[str, dict[str, int]]:
    """gradients/ and partition/ but for the manifests; partition key -> {task: group}."""
    gradients = rng.normal(size=(len(tasks), 32)).astype(np.float32)
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    similarity = unit.astype(np.float64) @ unit.T
    centred = similarity - similarity.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / (len(tasks) - 1))
    order = np.argsort(values)[::-1][:3]
    embedding = centred @ vectors[:, order]
    for folder, arrays in (
        (artifacts.gradients, {"gradients": gradients}),
        (artifacts.partition, {"similarity": similarity, "embedding": embedding}),
    ):
        folder.mkdir(parents=True)
        for file, array in arrays.items():
            np.save(folder / f"{file}.npy", array)
    write_json(
        artifacts.gradients / "tasks.json",
        {
            "tasks": tasks,
            "norms": np.linalg.norm(gradients, axis=1).tolist(),
            "num_examples": [10] * len(tasks),
            "stride": 5,
            "num_parameters": 160,
        },
    )
    write_json(
        artifacts.partition / "pca.json",
        {
            "eigenvalues": values[order].tolist(),
            "explained": (values[order] / values.sum()).tolist(),
            "num_axes": 3,
        },
    )
    partitions: dict[str, dict[str, int]] = {}
    splits: dict[str, list[dict[str, Any]]] = {}
    for branch in todo.branches.values():
        if branch.partition in partitions:
            continue
        if branch.partition.startswith("merit"):
            paths = {task: "" for task in tasks}
            axes = branch.num_groups.bit_length() - 1
            splits[branch.partition] = _split(tasks, embedding, axes, "", paths)
            partitions[branch.partition] = {task: int(path, 2) for task, path in paths.items()}
        else:
            shuffled = rng.permutation(len(tasks)) if branch.num_groups > 1 else range(len(tasks))
            partitions[branch.partition] = {
                tasks[t]: i % branch.num_groups for i, t in enumerate(shuffled)
            }
    write_json(artifacts.partition / "partitions.json", partitions)
    write_json(artifacts.partition / "splits.json", splits)
    return partitions


def _split(
    members: list[str], embedding: np.ndarray, axes: int, path: str, paths: dict[str, str]
) -> list[dict[str, Any]]:
    """Halve `members` at the median of the next axis, recursively; fills `paths`."""
    axis = len(path)
    if axis == axes:
        return []
    tasks = list(paths)
    ranked = sorted(members, key=lambda task: embedding[tasks.index(task), axis])
    half = (len(ranked) + 1) // 2
    rows = [
        {
            "path": path,
            "axis": axis,
            "threshold": float(embedding[tasks.index(ranked[half - 1]), axis]),
        }
    ]
    for digit, side in (("0", ranked[:half]), ("1", ranked[half:])):
        for task in side:
            paths[task] += digit
        rows += _split(side, embedding, axes, path + digit, paths)
    return rows


def _records(
    num_records: int, epochs: float, num_tokens: int, num_loss_tokens: int, loss: float
) -> list[dict[str, Any]]:
    """num_records steps an epoch; the loss falls as loss / (1 + epoch)."""
    total = round(num_records * epochs)
    return [
        {
            "step": step,
            "epoch": step / num_records,
            "loss": loss / (1 + step / num_records),
            "learning_rate": 1e-3 * (1 - step / (total + 1)),
            "gradient_norm": 1.0 + 1 / step,
            "num_tokens": num_tokens * step // total,
            "num_loss_tokens": num_loss_tokens * step // total,
        }
        for step in range(1, total + 1)
    ]


def _write_branch(
    artifacts: Artifacts,
    settings: Experiment,
    branch: Branch,
    partitions: dict[str, dict[str, int]],
    num_samples: dict[str, int],
    num_records: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """One manifest and one branch folder; returns theta_k - theta0."""
    groups = partitions[branch.partition]
    tasks = [task for task, group in groups.items() if group == branch.group]
    samples = sum(num_samples[task] for task in tasks)
    # three tokens a sample, of which one bears loss, two where the answer is a sentence
    loss_tokens = sum(num_samples[t] * (2 if t.startswith("caption") else 1) for t in tasks)
    manifest = {
        "branch": branch.id,
        "partition": branch.partition,
        "group": branch.group,
        "num_groups": branch.num_groups,
        "epochs": branch.epochs,
        "seed": branch.seed,
        "tasks": tasks,
        "num_samples": samples,
        "num_tokens": round(3 * samples * branch.epochs),
        "num_loss_tokens": round(loss_tokens * branch.epochs),
        "trainable": ["decoder"],
        "training": {"optimizer": optimizer_of(settings, branch).model_dump(mode="json")},
        "may_diverge": branch.may_diverge,
        "base_hash": file_hash(artifacts.base / "model.safetensors"),
        "partition_hash": value_hash(groups),
    }
    write_json(artifacts.manifest(branch.id), manifest)
    delta = (rng.normal(size=SHAPE) * 0.1 * branch.epochs).astype(np.float32)
    base_file = artifacts.base / "model.safetensors"
    folder = artifacts.branch(branch.id)
    folder.mkdir(parents=True)
    save_file({"w": _base(base_file) + delta}, folder / "model.safetensors")
    loss = 2.0 + 0.1 * branch.group
    records = _records(num_records, branch.epochs, 3 * samples, loss_tokens, loss)
    write_jsonl(folder / "records.jsonl", records)
    timing = [
        {"step": r["step"], "seconds": 0.5 * r["step"], "tokens_per_second": 800.0} for r in records
    ]
    write_jsonl(artifacts.timing(branch.id), timing)
    write_json(folder / "manifest.json", manifest)
    write_json(
        folder / "summary.json",
        {
            "branch": branch.id,
            "num_steps": len(records),
            "num_tokens": manifest["num_tokens"],
            "num_loss_tokens": manifest["num_loss_tokens"],
            "final_loss": records[-1]["loss"],
            "displacement": float(np.linalg.norm(delta)),
            "base_hash": file_hash(base_file),
            "manifest_hash": value_hash(manifest),
            "failure": None,
            "checkpoint_hash": file_hash(folder / "model.safetensors"),
        },
    )
    return delta


def _base(path: Path) -> np.ndarray:
    return load_file(path)["w"]


def _write_models(
    artifacts: Artifacts, todo: Plan, base: np.ndarray, deltas: dict[str, np.ndarray]
) -> dict[str, str]:
    """Every merged or derived model, weighted by all tokens, with its merge.json.

    Returns {model: why it diverged}; such a model has only a record.
    """
    merged: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    for model in todo.models.values():
        failure = next(
            (why for b in model.branches if (why := _failure(artifacts, b))),
            failures.get(model.source or "") or failures.get(model.match or ""),
        )
        entry: dict[str, Any] = {
            "model": model.id,
            "method": model.method,
            "seed": model.seed,
            "rule": model.rule,
            "branches": list(model.branches),
            "failure": failure,
        }
        if failure:
            failures[model.id] = failure
            write_json(artifacts.model(model.id) / "merge.json", entry)
            continue
        manifests = [read_json(artifacts.manifest(b)) for b in model.branches]
        tokens = [manifest["num_tokens"] for manifest in manifests]
        weights = [n / sum(tokens) for n in tokens]
        if model.rule == "merge":
            delta = sum(
                (w * deltas[b] for w, b in zip(weights, model.branches, strict=True)), 0 * base
            )
        elif model.rule == "shrunk":
            lengths = [np.linalg.norm(merged[str(m)]) for m in (model.match, model.source)]
            alpha = float(lengths[0] / lengths[1])
            delta = alpha * merged[str(model.source)]
            entry |= {"alpha": alpha, "source": model.source, "match": model.match}
        else:
            delta = 0 * base
        merged[model.id] = delta
        folder = artifacts.model(model.id)
        folder.mkdir(parents=True)
        save_file({"w": (base + delta).astype(np.float32)}, folder / "model.safetensors")
        write_json(
            folder / "merge.json",
            entry
            | {
                "merge_weights": weights,
                "displacement": float(np.linalg.norm(delta)),
                "weighted_by": "tokens",
                "num_tokens": sum(tokens),
                "num_loss_tokens": sum(manifest["num_loss_tokens"] for manifest in manifests),
                "checkpoint_hash": file_hash(folder / "model.safetensors"),
            },
        )
    return failures


def _failure(artifacts: Artifacts, branch: str) -> str | None:
    found: str | None = read_json(artifacts.branch(branch) / "summary.json")["failure"]
    return found


def _write_scores(
    artifacts: Artifacts,
    todo: Plan,
    benchmarks: list[str],
    num_questions: int,
    failures: dict[str, str],
    rng: np.random.Generator,
) -> None:
    """evaluation/: right-or-wrong predictions, and their means in percent."""
    scores: dict[str, dict[str, float]] = {}
    for model in todo.models:
        if model in failures:
            continue
        rows = [
            {"benchmark": b, "index": i, "prediction": "A", "score": float(rng.random() < 0.5)}
            for b in benchmarks
            for i in range(num_questions)
        ]
        write_jsonl(artifacts.predictions(model), rows)
        scores[model] = {
            b: 100
            * sum(float(str(r["score"])) for r in rows if r["benchmark"] == b)
            / num_questions
            for b in benchmarks
        }
    write_json(
        artifacts.evaluation / "scores.json",
        {
            "benchmarks": benchmarks,
            "num_questions": dict.fromkeys(benchmarks, num_questions),
            "scores": scores,
            "failures": failures,
        },
    )
