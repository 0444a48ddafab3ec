"""An item: the content of one question, before a task words it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

Part = Literal["train", "validation", "test"]
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """`slots` fill a template, `answer` is right, `options` (with the answer) are offered.

    `key` is the question in canonical words. It decides the item's part of the world, so that no
    benchmark question is asked in training, in any wording.
    """

    key: str
    answer: str
    slots: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


Make = Callable[[np.random.Generator], Item]


def part_of(key: str) -> Part:
    """Two tenths of all items are for tests, one for validation; equal on every machine."""
    bucket = zlib.crc32(key.encode()) % 10
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def draw(make: Make, rng: np.random.Generator, part: Part) -> Item:
    """The first item of `part`."""
    while True:
        item = make(rng)
        if part_of(item.key) == part:
            return item


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


def several(rng: np.random.Generator, choices: Sequence[T], count: int) -> list[T]:
    """`count` different ones, in random order."""
    return [choices[int(i)] for i in rng.permutation(len(choices))[:count]]


def offered(
    rng: np.random.Generator, answer: str, others: Sequence[str], count: int
) -> tuple[str, ...]:
    """The answer among `count` options in random order."""
    rest = several(rng, [other for other in others if other != answer], count - 1)
    return tuple(several(rng, [answer, *rest], count))


def listed(options: Sequence[str]) -> str:
    """ "a , b or c"."""
    return f"{' , '.join(options[:-1])} or {options[-1]}"
