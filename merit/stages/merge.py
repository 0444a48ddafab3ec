"""merge: one model from its branches (or a derived one), as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, file_hash, read_json, write_json

if TYPE_CHECKING:
    import torch

TOKEN_COUNTS = ("num_tokens", "num_loss_tokens")
NOT_COPIED = ("model.safetensors", "records.jsonl", "base.json")  # of the base's folder
Merged = tuple[dict[str, "torch.Tensor"], dict[str, Any]]  # tensors, what the record gains


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/models/<item> as its recipe says (merit.plan.recipe).

    A model of which a branch diverged leaves a record with the `failure`, and no checkpoint.
    """
    assert item is not None
    paths = Artifacts(name)
    recipe = read_json(paths.recipe(item))
    check_branches(recipe, paths)
    failure = failed(recipe, paths)
    with atomic_folder(paths.model(item)) as folder:
        record = {key: recipe[key] for key in ("model", "method", "seed", "rule", "branches")}
        record |= {"failure": failure}
        if failure is None:
            record |= write_merged(recipe, paths, folder)
            for source in sorted(paths.base.iterdir()):
                if source.name not in NOT_COPIED:
                    shutil.copyfile(source, folder / source.name)
            record["checkpoint_hash"] = file_hash(folder / "model.safetensors")
        write_json(folder / "merge.json", record)


def failed(recipe: dict[str, Any], paths: Artifacts) -> str | None:
    """Why one of the model's parts diverged; None where none did."""
    parts = [paths.branch(branch) / "summary.json" for branch in recipe["branches"]]
    others = [recipe[key] for key in ("source", "match") if recipe[key]]
    parts += [paths.model(model) / "merge.json" for model in others]
    return next((why for part in parts if (why := read_json(part)["failure"])), None)


def write_merged(recipe: dict[str, Any], paths: Artifacts, folder: Path) -> dict[str, Any]:
    """Write the model's tensors, one at a time in memory beyond the result; returns its record."""
    from merit.core.diagnostics import displacement
    from merit.io.checkpoints import Checkpoint, save_tensors

    base = Checkpoint(paths.base / "model.safetensors")
    rules = {"base": _base, "merge": _average, "shrunk": _shrunk}
    merged, found = rules[recipe["rule"]](recipe, paths, base)
    tensors = {name: merged.get(name, tensor) for name, tensor in base.items()}
    save_tensors(tensors, folder / "model.safetensors")
    nothing: dict[str, Any] = {"merge_weights": [], **dict.fromkeys(TOKEN_COUNTS, 0)}
    return (
        nothing
        | {"weighted_by": recipe["merge_weights"]}
        | found
        | {"displacement": displacement((t, base.read(n)) for n, t in merged.items())}
    )


def _base(recipe: dict[str, Any], paths: Artifacts, base: Any) -> Merged:
    return {}, {}


def _average(recipe: dict[str, Any], paths: Artifacts, base: Any) -> Merged:
    """sum_k w_k theta_k, with w_k what the recipe's `merge_weights` counts."""
    from merit.core.merge.average import merge_weights, weighted_average
    from merit.io.checkpoints import Checkpoint, check_same_tensors

    manifests = [read_json(paths.branch(b) / "manifest.json") for b in recipe["branches"]]
    branches = [Checkpoint(paths.branch(b) / "model.safetensors") for b in recipe["branches"]]
    for branch in branches:
        check_same_tensors(branch, base, set(branches[0].names))
    try:
        weights = merge_weights(manifests, recipe["merge_weights"])
        counts = {key: sum(manifest[key] for manifest in manifests) for key in TOKEN_COUNTS}
    except (ValueError, KeyError) as error:
        missing = f"key `{error.args[0]}` is missing"
        cause = missing if isinstance(error, KeyError) else error
        raise MeritError(
            f"{paths.branch(recipe['branches'][0]).parent}: {recipe['model']}: {cause}; run the "
            "partition stage again"
        ) from None
    merged = {
        name: weighted_average([branch.read(name) for branch in branches], weights)
        for name in branches[0].names
    }
    return merged, {"merge_weights": weights, **counts}


def check_branches(recipe: dict[str, Any], paths: Artifacts) -> None:
    """Raises MeritError, naming the branch, unless these branches are what is to be merged.

    None may be missing, foreign (of another base or another partition than the others) or surplus
    (in the folder of a split's branches, but not of them).
    """
    what = f"merge of {recipe['model']}"
    manifests: list[dict[str, Any]] = []
    for branch in recipe["branches"]:
        folder = paths.branch(branch)
        if not (folder / "summary.json").is_file() or not (folder / "manifest.json").is_file():
            raise MeritError(
                f"{what}: branch {branch} is missing in {folder}; `dvc repro` trains it"
            )
        manifest = read_json(folder / "manifest.json")
        manifests.append(manifest)
        if manifest["branch"] != branch:
            raise MeritError(
                f"{what}: {folder} holds branch {manifest['branch']!r}, not {branch}; train it "
                "again"
            )
        if manifest["base_hash"] != read_json(paths.base / "base.json")["base_hash"]:
            raise MeritError(
                f"{folder}: trained from another base than {paths.base}; train it again"
            )
        if manifest["partition_hash"] != manifests[0]["partition_hash"]:
            raise MeritError(
                f"{what}: branch {branch} is of another partition than {recipe['branches'][0]}; "
                "train it again"
            )
    if manifests and manifests[0]["num_groups"] > 1:
        runs = paths.branch(recipe["branches"][0]).parent
        present = {path.name for path in runs.iterdir() if not path.name.startswith(".")}
        surplus = sorted(present - set(recipe["branches"]))
        if surplus:
            raise MeritError(
                f"{what}: {runs} holds {', '.join(surplus)} besides its branches; remove what an "
                "earlier plan has left there"
            )


def _shrunk(recipe: dict[str, Any], paths: Artifacts, base: Any) -> Merged:
    """theta0 + alpha (source - theta0), as far from theta0 as `match`."""
    from merit.core.merge.average import interpolate, matching_alpha
    from merit.io.checkpoints import Checkpoint, check_same_tensors

    keys = ("source", "match")
    source, match = (read_json(paths.model(recipe[key]) / "merge.json") for key in keys)
    alpha = matching_alpha(match["displacement"], source["displacement"])
    joint = Checkpoint(paths.model(recipe["source"]) / "model.safetensors")
    check_same_tensors(joint, base)
    merged = {name: interpolate(base.read(name), t, alpha) for name, t in joint.items()}
    found = {"alpha": alpha, **{key: recipe[key] for key in keys}}
    return merged, found | {key: source[key] for key in TOKEN_COUNTS}
