"""The merged checkpoint, written in one pass.

A piece is a few rows of a tensor, so memory follows neither the model's size nor the number of
branches. Mergers that decompose matrices take whole ones; theirs is a small multiple of the largest
matrix. Averages and TIES give the same bytes whatever the number of threads.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from contextlib import closing
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import torch

from merit.errors import MeritError
from merit.io.artifacts import read_json, write_json
from merit.io.checkpoint_writer import MAX_SHARD_BYTES, CheckpointWriter, bytes_of
from merit.io.checkpoints import TensorInfo
from merit.io.progress import Progress
from merit.merge.pieces import Piece, in_order, pieces_of
from merit.merge.rules import Rule
from merit.merge.sources import Source

# what `merge_dtype` and `--dtype` may be; "base": every tensor keeps the base's type
OUTPUT_DTYPES: dict[str, torch.dtype | None] = {
    "base": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Totals(NamedTuple):
    """Sums of squares over tensors."""

    moved: float = 0.0  # what is written, from theta0
    lost: float = 0.0  # by the one cast at the end
    wanted: float = 0.0  # the merged tensor before the cast, from theta0


def total(parts: Iterable[Totals]) -> Totals:
    """The sums, from the first to the last."""
    moved = lost = wanted = 0.0
    for part in parts:
        moved, lost, wanted = moved + part.moved, lost + part.lost, wanted + part.wanted
    return Totals(moved, lost, wanted)


def measured(theta0: torch.Tensor, exact: torch.Tensor, cast: torch.Tensor) -> Totals:
    """Of one piece, in the type of `exact`.

    With m = cast - theta0 and d = cast - exact: |exact - theta0|^2 = |m - d|^2.
    """
    wide = cast.to(exact.dtype)
    d = (wide - exact).flatten()
    m = wide - theta0 if wide is cast else wide.sub_(theta0)
    moved = float(m.square().sum())
    m = m.flatten()
    lost = float(d.dot(d))
    return Totals(moved, lost, max(0.0, float(m.dot(m)) - 2 * float(m.dot(d)) + lost))


def write_merged(
    folder: Path,
    base: Source,
    rule: Rule,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    threads: int = 1,
    label: str = "merge",
) -> dict[str, float]:
    """Write the merged checkpoint into `folder`; all tensors of the base, in its order.

    Floating tensors are computed as wide as their rule says (float64; float32 where base and
    branches are half precision) and cast once to `dtype` (None: each to the base's).
    Returns `displacement`, |theta - theta0| of what is written, and `rounding_error`, |theta -
    exact| / |exact - theta0|: the share of the displacement that the cast took away or added.

    Raises MeritError, naming the tensor, where the result is not finite or a tensor of integers
    differs from the base's.
    """
    # glibc then keeps what is freed (its limit follows the largest block that was ever freed, up
    # to 32 MB): else every piece is mapped again, a third of the time
    torch.empty(31 << 20, dtype=torch.uint8)
    layout = {
        name: info._replace(dtype=dtype) if dtype and info.is_real else info
        for name in base.names
        for info in [base.info(name)]
    }
    names = set(rule.names)

    def settle(piece: Piece, theta0: torch.Tensor, exact: torch.Tensor) -> Totals:
        """Cast, write and measure."""
        cast = exact.to(layout[piece.name].dtype)
        writer.write(piece.name, cast, piece.start)
        found = measured(theta0, exact, cast)
        if not isfinite(found.moved):
            raise MeritError(
                f"{label}: tensor {piece.name!r} of the merged model is not finite: "
                f"{_not_finite(base, rule, piece)}"
            )
        return found

    def work(piece: Piece) -> Totals:
        theta0 = base.read(*piece)
        real = base.info(piece.name).is_real
        if piece.name in names and not real:
            _check_equal(base, rule, piece, theta0)
        if piece.name not in names or not real:
            cast = theta0.to(layout[piece.name].dtype)
            writer.write(piece.name, cast, piece.start)
            same = cast.dtype == theta0.dtype
            return Totals() if same else measured(theta0, theta0.double(), cast)
        exact = rule.merge(piece.name, theta0, rule.branches(base, piece))
        return total(
            settle(
                Piece(piece.name, piece.start + start, piece.start + stop),
                theta0[start:stop] if theta0.ndim else theta0,
                exact[start:stop] if exact.ndim else exact,
            )
            for _, start, stop in pieces_of(
                piece.name, TensorInfo(theta0.dtype, tuple(theta0.shape))
            )
        )

    pieces = [
        piece
        for name in base.names
        for piece in pieces_of(name, base.info(name), rule.whole_matrices and name in names)
    ]
    totals = dict.fromkeys(base.names, Totals())
    done = 0
    with (
        CheckpointWriter(folder, layout, max_shard_bytes) as writer,
        Progress(f"{label}, MB", writer.num_bytes // 10**6) as progress,
        closing(in_order(work, pieces, threads)) as results,  # before the writer's files are
    ):
        for piece, found in zip(pieces, results, strict=True):
            totals[piece.name] = total((totals[piece.name], found))
            done += (piece.stop - piece.start) * layout[piece.name].row_bytes
            progress.advance(done // 10**6 - progress.n)
    moved, lost, wanted = total(totals.values())
    return {
        "displacement": moved**0.5,
        "rounding_error": (lost / wanted) ** 0.5 if wanted else 0.0,
    }


def _check_equal(base: Source, rule: Rule, piece: Piece, theta0: torch.Tensor) -> None:
    """Integers and quantised weights have no average."""
    for source, branch in zip(rule.sources, rule.branches(base, piece), strict=True):
        if not torch.equal(bytes_of(branch), bytes_of(theta0)):
            raise MeritError(
                f"{source.path}: tensor {piece.name!r} ({theta0.dtype}) differs from the base's, "
                "and such numbers cannot be averaged; merge checkpoints that are not quantised"
            )


def _not_finite(base: Source, rule: Rule, piece: Piece) -> str:
    """Which input is to blame."""
    for source, branch in zip(rule.sources, rule.branches(base, piece), strict=True):
        if not bool(branch.isfinite().all()):
            return f"neither is that of {source.path}; take an earlier state of it, or leave it out"
    if not bool(base.read(*piece).isfinite().all()):
        return f"neither is that of the base {base.path}; take a whole copy of it"
    return "it is beyond the range of the output's type; choose float32 or bfloat16"


# --- the files beside -----------------------------------------------------------------------------

# weights in any format, the records of what the base was, and a card that describes it
NOT_COPIED = re.compile(
    r"\..*|.*\.(safetensors|bin|pt|pth|gguf|h5|msgpack|onnx|index\.json)"
    r"|README\.md|records\.jsonl|(base|merge|manifest|summary|trainer_state)\.json"
)


def copy_model_files(base: Path, folder: Path, dtype: str = "base") -> None:
    """What a model needs besides its weights: config, tokenizer, processor, templates, licence.

    config.json gets the name of the output's type, unless that is the base's.
    """
    for source in sorted(base.iterdir()):
        if source.is_file() and not NOT_COPIED.fullmatch(source.name):
            shutil.copyfile(source, folder / source.name)
    config = folder / "config.json"
    if dtype != "base" and config.is_file():
        values = read_json(config)
        for part in (values, *(part for part in values.values() if isinstance(part, dict))):
            part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
        if not {"dtype", "torch_dtype"} & set(values):
            values["dtype"] = dtype
        write_json(config, values)
