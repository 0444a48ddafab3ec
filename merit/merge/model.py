"""merge: one model from its branches (or a derived one), as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, atomic_write, read_json, write_json

if TYPE_CHECKING:
    from merit.io.checkpoints import Checkpoint
    from merit.merge.rules import Rule

TOKEN_COUNTS = ("num_tokens", "num_loss_tokens")
Found = tuple["Rule", dict[str, Any]]  # the rule, and what the record gains besides


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
            from merit.io.checkpoints import checkpoint_hash
            from merit.merge.card import model_card
            from merit.merge.write import copy_model_files

            record |= write_model(recipe, paths, folder)
            copy_model_files(paths.base, folder, recipe["merge_dtype"])
            record["checkpoint_hash"] = checkpoint_hash(folder)
            base_hash = read_json(paths.base / "base.json")["base_hash"]
            manifests = [read_json(paths.branch(b) / "manifest.json") for b in recipe["branches"]]
            card = model_card(name, recipe, record, base_hash, manifests)
            atomic_write(folder / "README.md", card)
        write_json(folder / "merge.json", record)


def failed(recipe: dict[str, Any], paths: Artifacts) -> str | None:
    """Why one of the model's parts diverged; None where none did."""
    parts = [paths.branch(branch) / "summary.json" for branch in recipe["branches"]]
    others = [recipe[key] for key in ("source", "match") if recipe[key]]
    parts += [paths.model(model) / "merge.json" for model in others]
    return next((why for part in parts if (why := read_json(part)["failure"])), None)


def write_model(recipe: dict[str, Any], paths: Artifacts, folder: Path) -> dict[str, Any]:
    """Write the model's checkpoint, a few rows at a time; returns what its record gains."""
    from merit.io.checkpoints import Checkpoint
    from merit.merge.write import OUTPUT_DTYPES, write_merged

    base = Checkpoint(paths.base)
    rules = {"base": _base, "merge": _average, "shrunk": _shrunk}
    rule, found = rules[recipe["rule"]](recipe, paths, base)
    dtype = OUTPUT_DTYPES[recipe["merge_dtype"]]
    measured = write_merged(folder, base, rule, dtype=dtype, label=recipe["model"])
    nothing: dict[str, Any] = {"merge_weights": [], **dict.fromkeys(TOKEN_COUNTS, 0)}
    return nothing | {"weighted_by": recipe["merge_weights"]} | found | measured


def _base(recipe: dict[str, Any], paths: Artifacts, base: Checkpoint) -> Found:
    from merit.merge.rules import unchanged

    return unchanged(), {}


def _average(recipe: dict[str, Any], paths: Artifacts, base: Checkpoint) -> Found:
    """sum_k w_k theta_k, with w_k what the recipe's `merge_weights` counts."""
    from merit.io.checkpoints import Checkpoint, check_same_tensors
    from merit.merge.command import opened
    from merit.merge.rules import average
    from merit.method.average import merge_weights

    manifests = [read_json(paths.branch(b) / "manifest.json") for b in recipe["branches"]]
    branches = [opened(paths.branch(b), base, paths.base) for b in recipe["branches"]]
    for branch in branches:
        if isinstance(branch, Checkpoint):  # an adapter is checked when it is opened
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
    return average(branches[0].names, branches, weights), {"merge_weights": weights, **counts}


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


def _shrunk(recipe: dict[str, Any], paths: Artifacts, base: Checkpoint) -> Found:
    """theta0 + alpha (source - theta0), as far from theta0 as `match`."""
    from merit.io.checkpoints import Checkpoint, check_same_tensors
    from merit.merge.rules import shrunk
    from merit.method.average import matching_alpha

    keys = ("source", "match")
    source, match = (read_json(paths.model(recipe[key]) / "merge.json") for key in keys)
    alpha = matching_alpha(match["displacement"], source["displacement"])
    joint = Checkpoint(paths.model(recipe["source"]))
    check_same_tensors(joint, base)
    found = {"alpha": alpha, **{key: recipe[key] for key in keys}}
    return shrunk(joint, alpha), found | {key: source[key] for key in TOKEN_COUNTS}
