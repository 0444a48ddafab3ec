"""The model card: README.md beside a merged model, on what it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
RULES = {
    "base": "The base itself, without any change.",
    "merge": "One weighted average of branches, each fine-tuned from the same base on its own "
    "tasks, without any communication (MERIT, [arXiv:2606.01717](https://arxiv.org/abs/2606.01717)).",
    "shrunk": "`{source}`, shrunk towards the base until it is as far from it as `{match}`.",
}
HEADER = """\
---
library_name: transformers
tags: [merit, merge]{base_model}
---

# {name}: {model}

{rule}

| | |
|---|---|
"""
LOADING = """
## Loading it

An ordinary Hugging Face folder: `from_pretrained` of transformers reads it, and so does whatever
serves the base.
"""


def model_card(
    experiment: str, recipe: Record, record: Record, base_hash: str, manifests: Sequence[Record]
) -> str:
    """Base, groups, merge weights, training and hashes of a merged model, as Markdown.

    Args: recipe: as merit.merge.model.recipe; record: merge.json's; manifests: the branches', in
    the recipe's order. The same inputs give the same bytes.
    """
    origin = recipe["origin"]
    facts = {
        "base": f"`{origin['name']}`"
        + (f" at revision `{origin['revision']}`" if origin["revision"] else ""),
        "base's tensors (SHA-256)": f"`{base_hash}`",
        "these tensors (SHA-256)": f"`{record['checkpoint_hash']}`",
        "distance from the base": f"{record['displacement']:.6g}",
        "method, seed": f"{recipe['method']}, {recipe['seed']}",
    }
    if "alpha" in record:
        facts["alpha"] = f"{record['alpha']:.6g}"
    hub = f"\nbase_model: {origin['name']}" if origin["revision"] else ""
    text = HEADER.format(
        base_model=hub,
        name=experiment,
        model=recipe["model"],
        rule=RULES[recipe["rule"]].format(**recipe),
    )
    text += "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    if manifests:
        text += _branches(record, manifests) + _groups(manifests) + _training(manifests[0])
    return text + LOADING


def _branches(record: Record, manifests: Sequence[Record]) -> str:
    lines = [
        f"\n## Branches, weighted by {record['weighted_by']}\n",
        "| branch | merge weight | tasks | examples | tokens | loss-bearing | epochs |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for weight, manifest in zip(record["merge_weights"], manifests, strict=True):
        counts = [manifest[key] for key in ("num_samples", "num_tokens", "num_loss_tokens")]
        cells = [
            *(manifest["branch"], f"{weight:.6f}", str(len(manifest["tasks"]))),
            *(f"{count:,}" for count in counts),
            f"{manifest['epochs']:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _groups(manifests: Sequence[Record]) -> str:
    """The tasks of each branch; of runs over one and the same group, once."""
    groups = {tuple(manifest["tasks"]): manifest["branch"] for manifest in reversed(manifests)}
    lines = [
        f"- {branch}: {', '.join(f'`{task}`' for task in tasks)}"
        for tasks, branch in reversed(groups.items())
    ]
    return "\n## Tasks\n\n" + "\n".join(lines) + "\n"


def _training(manifest: Record) -> str:
    settings = json.dumps(manifest["training"], indent=1)
    return f"\n## Training, the same for every branch\n\n```json\n{settings}\n```\n"
