"""merge: one model from its branches (or a derived one), as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from merit.config import load_experiment
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, file_hash, read_json, write_json
from merit.methods import Model, plan

TOKEN_COUNTS = ("num_tokens", "num_loss_tokens")


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/models/<item>."""
    experiment = load_experiment(name)
    planned = plan(experiment)
    if item not in planned.models:
        raise MeritError(f"merge: {name} has no model {item!r}; it has {', '.join(planned.models)}")
    model, paths = planned.models[item], Artifacts(name)
    with atomic_folder(paths.model(item)) as folder:
        record = write_merged(model, paths, folder, experiment.merge_weights)
        for source in sorted(paths.base.iterdir()):
            if source.name not in ("model.safetensors", "records.jsonl", "base.json"):
                shutil.copyfile(source, folder / source.name)
        record["checkpoint_hash"] = file_hash(folder / "model.safetensors")
        write_json(folder / "merge.json", record)


def write_merged(model: Model, paths: Artifacts, folder: Path, reading: str) -> dict[str, Any]:
    """Write the model's tensors, one at a time in memory beyond the result; returns its record.

    Args: reading: what merge weights count (`merge_weights` of the experiment).
    """
    from merit.core.diagnostics import displacement
    from merit.core.merge.average import (
        interpolate,
        matching_alpha,
        merge_weights,
        weighted_average,
    )
    from merit.io.checkpoints import Checkpoint, check_same_tensors, save_tensors

    base = Checkpoint(paths.base / "model.safetensors")
    record: dict[str, Any] = {
        "model": model.id,
        "method": model.method,
        "seed": model.seed,
        "rule": model.rule,
        "branches": list(model.branches),
        "merge_weights": [],
        "weighted_by": reading,
        "num_tokens": 0,
        "num_loss_tokens": 0,
    }
    merged = {}
    if model.rule == "merge":
        branches = [Checkpoint(paths.branch(b) / "model.safetensors") for b in model.branches]
        base_hash = file_hash(paths.base / "model.safetensors")
        for name, branch in zip(model.branches, branches, strict=True):
            check_same_tensors(branch, base, set(branches[0].names))
            if read_json(paths.branch(name) / "summary.json")["base_hash"] != base_hash:
                raise MeritError(
                    f"{branch.path}: trained from another base than {base.path}; train it again"
                )
        manifests = [read_json(paths.manifest(b)) for b in model.branches]
        try:
            weights = merge_weights(manifests, reading)
            for key in TOKEN_COUNTS:
                record[key] = sum(manifest[key] for manifest in manifests)
        except (ValueError, KeyError) as error:
            missing = f"key `{error.args[0]}` is missing"
            cause = missing if isinstance(error, KeyError) else error
            raise MeritError(
                f"{paths.manifest(model.branches[0]).parent}: {model.id}: {cause}; run the "
                "partition stage again"
            ) from None
        merged = {
            name: weighted_average([branch.read(name) for branch in branches], weights)
            for name in branches[0].names
        }
        record["merge_weights"] = weights
    elif model.rule == "shrunk":
        assert model.source is not None
        assert model.match is not None
        source, match = (
            read_json(paths.model(m) / "merge.json") for m in (model.source, model.match)
        )
        alpha = matching_alpha(match["displacement"], source["displacement"])
        joint = Checkpoint(paths.model(model.source) / "model.safetensors")
        check_same_tensors(joint, base)
        merged = {name: interpolate(base.read(name), t, alpha) for name, t in joint.items()}
        record |= {"alpha": alpha, "source": model.source, "match": model.match}
        record |= {key: source[key] for key in TOKEN_COUNTS}
    tensors = {name: merged.get(name, tensor) for name, tensor in base.items()}
    save_tensors(tensors, folder / "model.safetensors")
    record["displacement"] = displacement((t, base.read(n)) for n, t in merged.items())
    return record
