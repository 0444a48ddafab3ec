"""The post-hoc mergers, one a file; the file's name is the merger's: `iso_c.py` is `iso-c`.

In each a decorated function merges one tensor: `merge(base, branches, scale=1.0, dtype=None)`, with
parameters of its own, numbers with their defaults, before `scale`. Whoever offers mergers asks
here.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")
Parameters = Mapping[str, float]


class Deltas(Protocol):
    """All that is merged, in pieces of a few rows: what a survey goes through."""

    names: Sequence[str]  # of each piece's tensor
    num_branches: int

    def of(self, piece: int) -> Sequence[torch.Tensor]:
        """The branches' deltas of a piece, each read when it is asked for."""

    def each(self, what: str, function: Callable[[T], R], jobs: Sequence[T]) -> Iterable[R]:
        """The results in the order of the jobs, by several threads; `what` names the progress."""


# what a merger must know of the whole model first; returns further arguments by a tensor's name
Survey = Callable[[Deltas, Parameters], Callable[[str], dict[str, Any]]]


@dataclass(frozen=True)
class Merger:
    """A registered merger. `needs` says what it is given: whole "matrices", or any "rows"."""

    merge: Callable[..., torch.Tensor]
    published: str
    needs: Literal["rows", "matrices"]
    survey: Survey | None

    @property
    def parameters(self) -> dict[str, float]:
        """Its parameters with their defaults."""
        given = inspect.signature(self.merge).parameters.values()
        return {p.name: p.default for p in given if isinstance(p.default, float)}


_REGISTERED: dict[str, Merger] = {}


def merger(
    published: str, needs: Literal["rows", "matrices"] = "matrices", survey: Survey | None = None
) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Registers the function below it. `published` is a year and month: tables follow it."""

    def register(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        key = function.__module__.rpartition(".")[2].replace("_", "-")
        _REGISTERED[key] = Merger(function, published, needs, survey)
        return function

    return register


def merger_keys() -> list[str]:
    """Every merger's name. Imports none of them, so that a command line may ask."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def load_merger(key: str) -> Merger:
    importlib.import_module(f"{__name__}.{key.replace('-', '_')}")
    return _REGISTERED[key]


def by_publication() -> list[str]:
    """Every merger's name, the oldest first."""
    return sorted(merger_keys(), key=lambda key: load_merger(key).published)
