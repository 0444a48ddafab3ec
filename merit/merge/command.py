"""`merit merge` on anybody's checkpoints: base, branches, a folder to write; no experiment."""

from __future__ import annotations

import argparse
import os
import re
import resource
import time
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.errors import MeritError
from merit.method.mergers import load_merger, merger_keys

if TYPE_CHECKING:
    from merit.merge.sources import Source

AVERAGE = "average"
DTYPES = ("base", "float32", "bfloat16", "float16")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SUMMARY = "merge checkpoints of your own: base, branches, a folder to write"
DESCRIPTION = """\
  merit merge --base theta0 --branches a b c --tokens 1200000 800000 400000 --out merged

A checkpoint is a Hugging Face folder (model.safetensors, or shards and their index), a LoRA
adapter's folder (adapter_config.json and adapter_model.safetensors), or a .safetensors file.
A folder with a config.json must hold every tensor of the base; one without may hold only those
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
    """Add the sub-command and its arguments."""
    command = commands.add_parser(
        "merge",
        help=SUMMARY,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--base", type=Path, required=True, metavar="DIR", help="theta0, from which all started")
    add(
        "--branches", type=Path, nargs="+", required=True, metavar="DIR",
        help="what was trained from it",
    )  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="what to write; must not exist")
    weights = command.add_mutually_exclusive_group()
    weights.add_argument(
        "--tokens", type=int, nargs="+", metavar="N", help="tokens that each branch was trained on"
    )
    weights.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="merge weights, scaled to sum to 1"
    )
    add(
        "--method", choices=(AVERAGE, *merger_keys()), default=AVERAGE,
        help="average (default): by --tokens or --weights, else by the branches' manifest.json, "
        "else uniformly; the others know no weights and run at their authors' defaults "
        "(docs/method.md 10)",
    )  # fmt: skip
    add("--scale", type=float, help="of the step from the base; default: 1")
    add("--set", nargs="+", metavar="NAME=VALUE", help="other parameters: --set density=0.5")
    add("--dtype", choices=DTYPES, default="base", help="the output's; base: each tensor as there")
    add("--max-shard", default="5GB", metavar="SIZE", help="a file's size at most (default: 5GB)")
    add("--threads", type=int, help="default: the machine's processors, 8 at most")


def run(options: argparse.Namespace) -> None:
    """Merge and say what came of it; every input is checked before anything is written."""
    method, dtype = options.method, options.dtype
    if options.threads is not None and options.threads < 1:
        raise MeritError(f"--threads: found {options.threads}, expected 1 or more")
    if options.out.exists():
        raise MeritError(f"{options.out}: exists already; name another folder")
    parameters = chosen_parameters(options)
    weights, weighted_by = chosen_weights(options)
    max_shard_bytes = parsed_size(options.max_shard)
    threads = options.threads or min(8, os.cpu_count() or 1)

    import torch

    from merit.io.artifacts import atomic_folder, write_json
    from merit.io.checkpoints import Checkpoint
    from merit.merge.rules import average, post_hoc
    from merit.merge.sources import forget_tied, open_branch, trained_names
    from merit.merge.write import OUTPUT_DTYPES, copy_model_files, write_merged

    began = time.monotonic()
    base = Checkpoint(options.base)
    forget_tied(base, options.base)
    branches = [open_branch(path, base, options.base) for path in options.branches]
    names = trained_names(branches, base)
    if method == AVERAGE or load_merger(method).needs == "rows":
        torch.set_num_threads(1)  # the pieces are shared out
    else:
        torch.set_num_threads(threads)  # a matrix is decomposed by all of them
        threads = 1
    print(f"base    {options.base}: {size_of(base)}")
    for k, (path, branch) in enumerate(zip(options.branches, branches, strict=True)):
        share = f", weight {weights[k]:.6g}" if weights else ""
        print(f"branch  {path}: {len(branch.names)} tensors of {len(base.names)}{share}")
    with atomic_folder(options.out) as folder:
        try:
            if weights:  # theta0 + c (sum_k w_k theta_k - theta0): the base is one more branch
                c = parameters.get("scale", 1.0)
                scaled = [*(c * weight for weight in weights), *([1 - c] if c != 1 else [])]
                rule = average(names, [*branches, base][: len(scaled)], scaled)
            else:
                rule = post_hoc(method, base, names, branches, threads=threads, **parameters)
            measured = write_merged(
                folder,
                base,
                rule,
                dtype=OUTPUT_DTYPES[dtype],
                max_shard_bytes=max_shard_bytes,
                threads=threads,
            )
        except ValueError as error:
            if not options.set:
                raise
            raise MeritError(f"--set: {error}") from None
        if options.base.is_dir():
            copy_model_files(options.base, folder, dtype)
        record = {
            "method": method,
            "base": str(options.base),
            "branches": [str(path) for path in options.branches],
            "merge_weights": weights,
            "weighted_by": weighted_by,
            "parameters": parameters,
            "merge_dtype": dtype,
        }
        write_json(folder / "merge.json", record | measured)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    how = [f"{name} {value:g}" for name, value in parameters.items()]
    how = [f"weighted by {weighted_by}"] if weights else how
    print(f"merged  {options.out}: {size_of(Checkpoint(options.out))}, {', '.join([method, *how])}")
    print(
        f"displacement {measured['displacement']:.6g}, rounding error "
        f"{100 * measured['rounding_error']:.3g} % of it; {time.monotonic() - began:.1f} s, peak "
        f"memory {peak:.0f} MB"
    )


def chosen_parameters(options: argparse.Namespace) -> dict[str, float]:
    """The merger's parameters, those given in place of its defaults; none of an average."""
    if options.method == AVERAGE:
        if options.set is not None:
            raise MeritError("--set: an average has no parameters; leave it out")
        return {} if options.scale is None else {"scale": options.scale}
    chosen = load_merger(options.method).parameters
    given = [text.partition("=")[::2] for text in options.set or ()]
    given += [] if options.scale is None else [("scale", options.scale)]
    names = [name for name, _ in given]
    for name, value in given:
        if names.count(name) > 1:
            raise MeritError(f"--set: {name!r} is given twice")
        if name not in chosen:
            from merit.config.settings import nearest

            raise MeritError(
                f"--set: {options.method} has no parameter {name!r}.{nearest(name, list(chosen))}"
            )
        try:
            chosen[name] = float(value)
        except ValueError:
            raise MeritError(f"--set: {name}={value}: expected a number") from None
    return chosen


def chosen_weights(options: argparse.Namespace) -> tuple[list[float] | None, str | None]:
    """The merge weights, and what weighed; (None, None) for a merger that knows none."""
    from merit.io.artifacts import read_json
    from merit.method.average import merge_weights

    count, given = len(options.branches), options.tokens or options.weights
    key = "--tokens" if options.tokens else "--weights"
    if options.method != AVERAGE:
        if given:
            raise MeritError(f"{key}: {options.method} knows no merge weights; leave them out")
        return None, None
    if given:
        if len(given) != count:
            raise MeritError(f"{key}: {len(given)} numbers for {count} branches; give one each")
        wrong = [value for value in given if not 0 < value < inf]  # an int may be beyond a float
        if wrong:
            raise MeritError(f"{key}: found {wrong[0]}, expected positive numbers")
        shares = [value / max(given) for value in given]  # the sum may be beyond a float
        return [share / sum(shares) for share in shares], key.removeprefix("--")
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


def size_of(checkpoint: Source) -> str:
    infos = [checkpoint.info(name) for name in checkpoint.names]
    num_parameters = sum(info.num_bytes // info.dtype.itemsize for info in infos)
    size = sum(info.num_bytes for info in infos)
    return f"{len(infos)} tensors, {num_parameters:,} parameters, {size / 1e9:.2f} GB"
