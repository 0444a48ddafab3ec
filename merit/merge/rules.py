"""Rules: from theta0's rows and the branches' to the merged rows, wide enough for one cast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from merit.io.progress import Progress
from merit.merge.pieces import Piece, R, T, in_order, pieces_of
from merit.merge.sources import Source
from merit.method.average import interpolate, weighted_average
from merit.method.deltas import Lazy, branch_deltas
from merit.method.mergers import load_merger

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
        return branch_rows(base, self.sources, piece)


def branch_rows(base: Source, sources: Sequence[Source], piece: Piece) -> Lazy:
    """The branches' rows, each read when asked for; the base's where one lacks the tensor."""
    holders = [source if source.has(piece.name) else base for source in sources]
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
    threads: int = 1,
    **parameters: float,
) -> Rule:
    """A merger of merit.method.mergers; `parameters` are those that differ from its defaults."""
    merger = load_merger(method)
    values = merger.parameters | parameters
    further = merger.survey and merger.survey(
        AllDeltas(method, base, names, sources, threads), values
    )

    def merge(name: str, theta0: torch.Tensor, branches: Sequence[torch.Tensor]) -> torch.Tensor:
        more = further(name) if further else {}
        return merger.merge(theta0, branches, **values, **more, dtype=torch.float64)

    return Rule(names, sources, merge, merger.needs == "matrices")


class AllDeltas:
    """What a merger surveys (merit.method.mergers.Deltas): all pieces of the merged tensors."""

    def __init__(
        self,
        label: str,
        base: Source,
        names: Collection[str],
        sources: Sequence[Source],
        threads: int,
    ) -> None:
        real = [name for name in sorted(names) if base.info(name).is_real]
        self._pieces = [piece for name in real for piece in pieces_of(name, base.info(name))]
        self._label, self._base, self._sources, self._threads = label, base, sources, threads
        self.names: Sequence[str] = [piece.name for piece in self._pieces]
        self.num_branches = len(sources)

    def of(self, piece: int) -> Lazy:
        rows = self._pieces[piece]
        return branch_deltas(self._base.read(*rows), branch_rows(self._base, self._sources, rows))

    def each(self, what: str, function: Callable[[T], R], jobs: Sequence[T]) -> Iterator[R]:
        with (
            Progress(f"{self._label}, {what}", len(jobs)) as progress,
            closing(in_order(function, jobs, self._threads)) as results,
        ):
            for result in results:
                progress.advance()
                yield result


def merged_tensor(base: Source, rule: Rule, name: str) -> torch.Tensor:
    """One tensor of the merged model, in the base's type."""
    theta0 = base.read(name)
    piece = Piece(name, 0, base.info(name).num_rows)
    return rule.merge(name, theta0, rule.branches(base, piece)).to(theta0.dtype)
