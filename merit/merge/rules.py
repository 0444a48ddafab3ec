"""Rules: from theta0's rows and the branches' to the merged rows, wide enough for one cast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from merit.io.progress import Progress
from merit.merge.pieces import Piece, Source, in_order, pieces_of
from merit.method.average import interpolate, weighted_average
from merit.method.mergers.deltas import Lazy, branch_deltas
from merit.method.mergers.iso import iso_c, iso_cts
from merit.method.mergers.star import star
from merit.method.mergers.ties import sign_balance, ties, trim_threshold
from merit.method.mergers.tsv import tsv

MATRIX_MERGERS: dict[str, Callable[..., torch.Tensor]] = {
    "star": star,
    "tsv": tsv,
    "iso-c": iso_c,
    "iso-cts": iso_cts,
}
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rule:
    """How tensors are merged: (name, theta0, its branches) -> the merged tensor, not yet cast.

    `names` are those that are merged; all others stay the base's. With `whole_matrices` the rule
    wants matrices in one piece.
    """

    names: Collection[str]
    sources: Sequence[Source]
    merge: Callable[[str, torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
    whole_matrices: bool = False

    def branches(self, base: Source, piece: Piece) -> Lazy:
        """The branches' rows, each read when asked for; the base's where one lacks the tensor."""
        holders = [source if source.has(piece.name) else base for source in self.sources]
        return Lazy(lambda k: holders[k].read(*piece), len(holders))


def unchanged() -> Rule:
    """The base itself."""
    return Rule((), (), lambda name, theta0, branches: theta0)


def average(names: Collection[str], sources: Sequence[Source], weights: Sequence[float]) -> Rule:
    """sum_k w_k theta_k (docs/method.md, eq. (14)).

    Where base and branches are half precision float32 is wide enough, and twice as fast.
    """
    half = {
        name for name in names if all(s.info(name).dtype in HALF for s in sources if s.has(name))
    }

    def merge(name: str, theta0: torch.Tensor, branches: Sequence[torch.Tensor]) -> torch.Tensor:
        working = torch.float32 if name in half and theta0.dtype in HALF else torch.float64
        return weighted_average(branches, weights, working, working)

    return Rule(names, sources, merge)


def shrunk(source: Source, alpha: float) -> Rule:
    """theta0 + alpha (theta - theta0) (docs/method.md, eq. (15))."""
    return Rule(
        source.names,
        [source],
        lambda name, theta0, branches: interpolate(theta0, branches[0], alpha, torch.float64),
    )


def post_hoc(
    method: str,
    base: Source,
    names: Collection[str],
    sources: Sequence[Source],
    *,
    scale: float = 1.0,
    threads: int = 1,
) -> Rule:
    """A merger of docs/method.md 10 at its defaults; TIES trims over all `names` at once."""
    if method == "ties":
        return _ties(base, names, sources, scale, threads)
    merger = MATRIX_MERGERS[method]
    return Rule(
        names,
        sources,
        lambda name, theta0, branches: merger(theta0, branches, scale=scale, dtype=torch.float64),
        whole_matrices=True,
    )


def _ties(
    base: Source, names: Collection[str], sources: Sequence[Source], scale: float, threads: int
) -> Rule:
    """Two passes over every branch for its threshold, one over all for the majority signs."""
    rule = Rule(names, sources, lambda name, theta0, branches: theta0)
    real = [name for name in sorted(names) if base.info(name).is_real]
    pieces = [piece for name in real for piece in pieces_of(name, base.info(name))]

    def threshold(k: int) -> float:
        def delta(i: int) -> torch.Tensor:
            return branch_deltas(base.read(*pieces[i]), rule.branches(base, pieces[i]))[k]

        return trim_threshold(Lazy(delta, len(pieces)), density=0.2)

    thresholds = []
    with (
        Progress("TIES, thresholds of branches", len(sources)) as progress,
        closing(in_order(threshold, range(len(sources)), threads)) as results,
    ):
        for found in results:
            thresholds.append(found)
            progress.advance()

    def balance(piece: Piece) -> int:
        return sign_balance(base.read(*piece), rule.branches(base, piece), thresholds)

    matrices = [piece for piece in pieces if len(base.info(piece.name).shape) > 1]
    majority: Counter[str] = Counter()
    with (
        Progress("TIES, signs of pieces", len(matrices)) as progress,
        closing(in_order(balance, matrices, threads)) as balances,
    ):
        for piece, more in zip(matrices, balances, strict=True):
            majority[piece.name] += more
            progress.advance()

    def merge(name: str, theta0: torch.Tensor, branches: Sequence[torch.Tensor]) -> torch.Tensor:
        return ties(
            theta0,
            branches,
            scale=scale,
            thresholds=thresholds,
            majority=majority[name],
            dtype=torch.float64,
        )

    return Rule(names, sources, merge)


def merged_tensor(base: Source, rule: Rule, name: str) -> torch.Tensor:
    """One tensor of the merged model, in the base's type."""
    theta0 = base.read(name)
    piece = Piece(name, 0, base.info(name).num_rows)
    return rule.merge(name, theta0, rule.branches(base, piece)).to(theta0.dtype)
