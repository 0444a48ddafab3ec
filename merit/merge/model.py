"""merge: one model from its branches (or a derived one), as a Hugging Face folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merit.config import Experiment, load_experiment
from merit.config.branches import Model, plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_folder, atomic_write, read_json, write_json

if TYPE_CHECKING:
    from merit.io.checkpoints import Checkpoint
    from merit.merge.rules import Rule

TOKEN_COUNTS = ("num_tokens", "num_loss_tokens")
Recipe = dict[str, Any]


def recipe(experiment: Experiment, model: Model) -> Recipe:
    """How a model is made: a rule, the branches or models that it takes, and their weights.

    `origin` is what its card says of the base.
    """
    base = experiment.base
    scratch = "assembled" if base.assemble else "trained from scratch"
    name = base.hub or base.checkpoint or f"{scratch}: experiments/{experiment.name}"
    return {
        "origin": {"name": name, "revision": base.revision},
        "model": model.id,
        "method": model.method,
        "seed": model.seed,
        "rule": model.rule,
        "branches": list(model.branches),
        "source": model.source,
        "match": model.match,
        "merge_weights": experiment.merge_weights,
        "merge_dtype": experiment.merge_dtype,
    }


def run(name: str, item: str | None = None) -> None:
    """Write artifacts/<name>/models/<item> as its recipe says.

    A model of which a branch diverged gets a record with the `failure`, and no checkpoint.
    """
    assert item is not None
    experiment = load_experiment(name)
    made, paths = recipe(experiment, plan(experiment).models[item]), Artifacts(name)
    failure = failed(made, paths)
    with atomic_folder(paths.model(item)) as folder:
        record = {key: made[key] for key in ("model", "method", "seed", "rule", "branches")}
        record |= {"failure": failure}
        if failure is None:
            from merit.io.checkpoint_files import checkpoint_hash
            from merit.io.checkpoints import Checkpoint
            from merit.merge.card import model_card
            from merit.merge.write import OUTPUT_DTYPES, copy_model_files, write_merged

            base, dtype = Checkpoint(paths.base), made["merge_dtype"]
            rule, found = rule_of(made, paths, base)
            measured = write_merged(folder, base, rule, dtype=OUTPUT_DTYPES[dtype], label=item)
            copy_model_files(paths.base, folder, dtype)
            record |= {"weighted_by": made["merge_weights"], **found, **measured}
            record["checkpoint_hash"] = checkpoint_hash(folder)
            base_hash = read_json(paths.base / "base.json")["base_hash"]
            card = model_card(name, made, record, base_hash, manifests_of(made, paths))
            atomic_write(folder / "README.md", card)
        else:
            print(f"merge of {item}: not merged, since {failure}")
        write_json(folder / "merge.json", record)


def manifests_of(made: Recipe, paths: Artifacts) -> list[dict[str, Any]]:
    return [read_json(paths.branch(branch) / "manifest.json") for branch in made["branches"]]


def failed(made: Recipe, paths: Artifacts) -> str | None:
    """Why one of the model's parts diverged; None where none did."""
    parts = [paths.branch(branch) / "summary.json" for branch in made["branches"]]
    models = (made[key] for key in ("source", "match") if made[key])
    parts += [paths.model(model) / "merge.json" for model in models]
    return next((why for part in parts if (why := read_json(part)["failure"])), None)


def rule_of(made: Recipe, paths: Artifacts, base: Checkpoint) -> tuple[Rule, dict[str, Any]]:
    """The rule that makes the model, and what its record gains by it."""
    from merit.io.checkpoints import Checkpoint, check_same_tensors
    from merit.merge import rules
    from merit.method.average import matching_alpha, merge_weights

    if made["rule"] == "base":
        return rules.unchanged(), {"merge_weights": [], **dict.fromkeys(TOKEN_COUNTS, 0)}
    if made["rule"] == "shrunk":  # theta0 + alpha (source - theta0), as far from it as `match`
        parts = {key: made[key] for key in ("source", "match")}
        source, match = (read_json(paths.model(m) / "merge.json") for m in parts.values())
        alpha = matching_alpha(match["displacement"], source["displacement"])
        joint = Checkpoint(paths.model(made["source"]))
        check_same_tensors(joint, base)
        counts = {key: source[key] for key in TOKEN_COUNTS}
        return rules.shrunk(joint, alpha), {"merge_weights": [], "alpha": alpha, **parts, **counts}

    from merit.merge.sources import open_branch

    manifests = manifests_of(made, paths)
    branches = [open_branch(paths.branch(branch), base, paths.base) for branch in made["branches"]]
    for branch in branches:
        if isinstance(branch, Checkpoint):  # an adapter is checked when it is opened
            check_same_tensors(branch, base, set(branches[0].names))
    try:
        weights = merge_weights(manifests, made["merge_weights"])
    except ValueError as error:  # no token of a group is supervised, say
        raise MeritError(f"key `merge_weights`: {made['model']}: {error}") from None
    counts = {key: sum(manifest[key] for manifest in manifests) for key in TOKEN_COUNTS}
    return rules.average(branches[0].names, branches, weights), {"merge_weights": weights, **counts}
