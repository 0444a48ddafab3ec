"""`merit merge` on anybody's checkpoints: base, branches, a folder to write; no experiment."""

from __future__ import annotations

import argparse
import os
import re
import resource
import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.errors import MeritError

if TYPE_CHECKING:
    from merit.io.checkpoints import Checkpoint
    from merit.merge.pieces import Source

METHODS = ("average", "ties", "star", "tsv", "iso-c", "iso-cts")
DTYPES = ("base", "float32", "bfloat16", "float16")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SUMMARY = "merge one model from its branches; or any checkpoints, given --base, --branches, --out"
DESCRIPTION = """\
With an experiment and a model: the stage of that name, as dvc.yaml runs it.

With --base, --branches and --out: any checkpoints, no experiment needed.

  merit merge --base theta0 --branches a b c --tokens 1200000 800000 400000 --out merged

A checkpoint is a Hugging Face folder (model.safetensors, or shards and their index), a LoRA
adapter's folder (adapter_config.json and adapter_model.safetensors), or a .safetensors file.
A folder with a config.json must hold every tensor of the base; one without may hold those alone
that were trained, and the others stay the base's. Adapters merge as what they add to the weights,
never factor by factor.

Everything is read a few rows at a time and computed in float64 (averages of half-precision
branches in float32, in which they are as good): memory does not grow with the model or the
number of branches (star, tsv and iso decompose whole matrices: about ten times the largest one
in float32). The output is cast once; what that cast takes away is printed as the rounding error,
a share of the displacement: a bfloat16 model cannot hold steps much smaller than 1/256 of a
weight. --dtype float32 keeps them.

Nothing is written unless all of it is: --out appears when it is complete. Config, tokenizer and
processor files are copied from the base; merge.json says what was merged, and how.
"""


def add_command(commands: Any) -> None:
    """The sub-command's arguments."""
    command = commands.add_parser(
        "merge",
        help=SUMMARY,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add(
        "--base",
        type=Path,
        required=True,
        metavar="DIR",
        help="theta0, from which all branches started",
    )
    add(
        "--branches",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="what was trained from it",
    )
    add(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to write; must not exist"
    )
    weights = command.add_mutually_exclusive_group()
    weights.add_argument(
        "--tokens", type=int, nargs="+", metavar="N", help="tokens that each branch was trained on"
    )
    weights.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="merge weights, scaled to sum to 1"
    )
    add(
        "--method", choices=METHODS, default="average",
        help="average: by --tokens or --weights, else by the branches' manifest.json, else "
        "uniformly; the others know no weights and run at their authors' defaults (docs/method.md "
        "10)",
    )  # fmt: skip
    add("--scale", type=float, default=1.0, help="of the step from the base, for all but average")
    add("--dtype", choices=DTYPES, default="base", help="the output's; base: each tensor as there")
    add("--max-shard", default="5GB", metavar="SIZE", help="a file's size at most (default: 5GB)")
    add("--threads", type=int, help="default: the machine's processors, 8 at most")


def run(options: argparse.Namespace) -> None:
    """Merge and say what came of it; every input is checked before anything is written."""
    if options.threads is not None and options.threads < 1:
        raise MeritError(f"--threads: found {options.threads}, expected 1 or more")
    if options.out.exists():
        raise MeritError(f"{options.out}: exists already; remove it or name another folder")
    weights, weighted_by = chosen_weights(options)
    max_shard_bytes = parsed_size(options.max_shard)
    threads = options.threads or min(8, os.cpu_count() or 1)

    import torch

    from merit.io.artifacts import atomic_folder, write_json
    from merit.io.checkpoints import Checkpoint
    from merit.merge.rules import average, post_hoc
    from merit.merge.write import OUTPUT_DTYPES, copy_model_files, write_merged

    began = time.monotonic()
    base = Checkpoint(options.base)
    forget_tied(base, options.base)
    branches = [opened(path, base, options.base) for path in options.branches]
    names = trained_names(branches, base)
    if options.method in ("average", "ties"):
        torch.set_num_threads(1)  # the pieces are shared out
    else:
        torch.set_num_threads(threads)  # a matrix is decomposed by all of them
        threads = 1
    shares: Sequence[float | None] = weights or [None] * len(branches)
    print(f"base    {options.base}: {size_of(base, base.names)}")
    for path, branch, weight in zip(options.branches, branches, shares, strict=True):
        share = "" if weight is None else f", weight {weight:.6g}"
        print(f"branch  {path}: {len(branch.names)} tensors of {len(base.names)}{share}")
    with atomic_folder(options.out) as folder:
        if weights:
            rule = average(names, branches, weights)
        else:
            rule = post_hoc(
                options.method, base, names, branches, scale=options.scale, threads=threads
            )
        measured = write_merged(
            folder,
            base,
            rule,
            dtype=OUTPUT_DTYPES[options.dtype],
            max_shard_bytes=max_shard_bytes,
            threads=threads,
        )
        if options.base.is_dir():
            copy_model_files(options.base, folder, options.dtype)
        record = {
            "method": options.method,
            "base": str(options.base),
            "branches": [str(path) for path in options.branches],
            "merge_weights": weights,
            "weighted_by": weighted_by,
            "scale": options.scale,
            "merge_dtype": options.dtype,
        }
        write_json(folder / "merge.json", record | measured)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    merged = Checkpoint(options.out)
    print(f"merged  {options.out}: {size_of(merged, merged.names)}, {options.method}", end="")
    print(f", weighted by {weighted_by}" if weights else f", scale {options.scale:g}")
    print(
        f"displacement {measured['displacement']:.6g}, rounding error "
        f"{100 * measured['rounding_error']:.3g} % of it; {time.monotonic() - began:.1f} s, peak "
        f"memory {peak:.0f} MB"
    )


def chosen_weights(options: argparse.Namespace) -> tuple[list[float] | None, str | None]:
    """The merge weights, and what weighed; (None, None) for a merger that knows none."""
    from merit.io.artifacts import read_json
    from merit.method.average import merge_weights

    count, given = len(options.branches), options.tokens or options.weights
    key = "--tokens" if options.tokens else "--weights"
    if options.method != "average":
        if given:
            raise MeritError(f"{key}: {options.method} knows no merge weights; leave them out")
        return None, None
    if options.scale != 1:
        raise MeritError("--scale: an average is not scaled; leave it out")
    if given:
        if len(given) != count:
            raise MeritError(f"{key}: {len(given)} numbers for {count} branches; give one each")
        wrong = [value for value in given if not (value > 0 and isfinite(value))]
        if wrong:
            raise MeritError(f"{key}: found {wrong[0]}, expected positive numbers")
        return [value / sum(given) for value in given], key.removeprefix("--")
    manifests = [path / "manifest.json" for path in options.branches]
    if all(manifest.is_file() for manifest in manifests):
        try:
            return merge_weights([read_json(path) for path in manifests], "tokens"), "tokens"
        except ValueError as error:
            raise MeritError(f"{manifests[0]} and others: {error}; give --weights") from None
    return merge_weights([{}] * count, "uniform"), "uniform"


def parsed_size(text: str) -> int:
    """Bytes of "5GB", "500MB" or a plain number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)?", text.strip().upper())
    size = int(float(found[1]) * UNITS.get(found[2], 1)) if found else 0
    if size <= 0:
        raise MeritError(f"--max-shard: found {text!r}, expected a size such as 5GB or 500MB")
    return size


def opened(path: Path, base: Checkpoint, folder: Path) -> Source:
    """A branch, checked against the base: its names, shapes and types.

    A folder with a config.json is a whole model, and lacks no tensor of the base.
    """
    from merit.io.adapters import CONFIG, Adapter
    from merit.io.checkpoints import Checkpoint, check_same_tensors

    if (path / CONFIG).is_file():
        return Adapter(path, base, lambda names: stored_names(folder, names))
    branch = Checkpoint(path)
    forget_tied(branch, folder)
    check_same_tensors(branch, base)
    missing = sorted(set(base.names) - set(branch.names))
    if missing and (path / "config.json").is_file():
        raise MeritError(
            f"{branch.path}: {len(missing)} tensors of the base {base.path} are missing, "
            f"{missing[0]!r} among them; fetch it anew (a folder of trained tensors alone has no "
            "config.json)"
        )
    return branch


def trained_names(branches: Sequence[Source], base: Checkpoint) -> list[str]:
    """The tensors that any branch holds; those that hold some of the base's hold the same ones."""
    from merit.io.checkpoints import Checkpoint, check_same_tensors

    partial = [
        branch
        for branch in branches
        if isinstance(branch, Checkpoint) and len(branch.names) < len(base.names)
    ]
    for branch in partial:
        check_same_tensors(branch, base, set(partial[0].names))
    return sorted({name for branch in branches for name in branch.names})


def forget_tied(checkpoint: Checkpoint, folder: Path) -> None:
    """Leave the output embedding out where the base's config.json says that it is the input's.

    Raises MeritError where the two are stored and differ.
    """
    import torch

    from merit.io.artifacts import read_json
    from merit.merge.pieces import pieces_of

    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    parts = [config, config.get("text_config") or {}]
    inputs = [name for name in checkpoint.names if name.endswith("embed_tokens.weight")]
    output = "lm_head.weight"
    if not any(part.get("tie_word_embeddings") for part in parts):
        return
    if not checkpoint.has(output) or len(inputs) != 1:
        return
    for _, start, stop in pieces_of(output, checkpoint.info(output)):
        ours, theirs = (checkpoint.read(name, start, stop) for name in (output, inputs[0]))
        if not torch.equal(ours, theirs):
            raise MeritError(
                f"{checkpoint.path}: {output!r} differs from {inputs[0]!r}, but {path} says "
                "`tie_word_embeddings`; correct the config, or remove the tensor"
            )
    checkpoint.names.remove(output)


def stored_names(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Names in a loaded model -> in its checkpoint; a name that cannot be found stays as it is.

    transformers renames tensors of some architectures while loading.
    """
    import torch
    import transformers

    from merit.train.model import stored_tensors

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = getattr(transformers, config.architectures[0])(config)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MeritError(
            f"{folder}: its architecture, which says how {names[0]!r} is called in the "
            f"checkpoint, cannot be read ({error})"
        ) from None
    parameters = dict(model.named_parameters())
    found = {name: list(stored_tensors(model, {name: parameters[name]}))
             for name in names if name in parameters}  # fmt: skip
    return {name: found[name][0] if len(found.get(name, ())) == 1 else name for name in names}


def size_of(checkpoint: Checkpoint, names: Sequence[str]) -> str:
    infos = [checkpoint.info(name) for name in names]
    num_parameters = sum(info.num_bytes // info.dtype.itemsize for info in infos)
    size = sum(info.num_bytes for info in infos)
    return f"{len(names)} tensors, {num_parameters:,} parameters, {size / 1e9:.2f} GB"
