"""What is in an image: a 4 x 4 grid of cells on a ground, drawn at random from a seed.

Four kinds of scene: loose shapes; a sign (a word or a number) above shapes; a bar chart; a sum of
two digits (printed, or handwritten scans) above shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

GRID = 4
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
GROUNDS = ("plain", "striped", "dotted", "checked")
WORDS = {
    "animal": ("bear", "duck", "frog", "goat", "lion", "wolf", "crab", "swan"),
    "food": ("cake", "corn", "milk", "rice", "soup", "plum", "fish", "meat"),
    "tool": ("nail", "rake", "drum", "rope", "lamp", "fork", "comb", "vase"),
    "place": ("park", "bank", "farm", "lake", "shop", "home", "zone", "port"),
}
LEXICON = tuple(word for group in WORDS.values() for word in group)
NUMBERS = (10, 30)  # two-digit numbers on signs: from, below; few enough to be learned
MAX_BAR = 8  # bar heights in half cells: a bar of 8 fills its column
KINDS = ("shapes", "sign", "chart", "sum")


@dataclass(frozen=True)
class Thing:
    """A coloured shape in the cell (row, column), both counted from 0 at the top left."""

    shape: str
    colour: str
    size: str
    row: int
    column: int


@dataclass(frozen=True)
class Bar:
    """A bar of a chart: `height` half cells in column `column`."""

    colour: str
    height: int
    column: int


@dataclass(frozen=True)
class Scene:
    """One image's content. Only the fields of its kind are filled."""

    kind: str
    ground: str
    things: tuple[Thing, ...] = ()
    text: str = ""  # a sign's word, or its number as digits
    bars: tuple[Bar, ...] = ()
    digits: tuple[int, ...] = ()
    handwritten: bool = False
    noise_seed: int = field(default=0, compare=False)


def plural(shape: str) -> str:
    """A shape's plural."""
    return "crosses" if shape == "cross" else f"{shape}s"


def phrase(thing: Thing) -> str:
    """What a thing is called: "red circle"."""
    return f"{thing.colour} {thing.shape}"


def cell(thing: Thing) -> str:
    """Where a thing is, to the cell; rows and columns count from 1."""
    return f"row {thing.row + 1} column {thing.column + 1}"


def place(thing: Thing) -> str:
    """Where a thing is, to the quarter of the image."""
    return f"{'top' if thing.row < 2 else 'bottom'} {'left' if thing.column < 2 else 'right'}"


def sample_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """A scene of `kind`, or of a kind drawn at random."""
    if kind is None:
        kind = KINDS[int(rng.choice(4, p=[0.36, 0.18, 0.28, 0.18]))]
    base = Scene(kind, _pick(rng, GROUNDS), noise_seed=int(rng.integers(2**31)))
    if kind == "shapes":
        return replace(base, things=_things(rng, int(rng.integers(2, 6)), range(GRID)))
    if kind == "sign":
        is_word = rng.random() < 0.7
        text = _pick(rng, LEXICON) if is_word else str(int(rng.integers(*NUMBERS)))
        return replace(
            base, text=text, things=_things(rng, int(rng.integers(1, 4)), range(2, GRID))
        )
    if kind == "chart":
        colours = rng.permutation(len(COLOURS))[:GRID]
        heights = rng.permutation(np.arange(1, MAX_BAR + 1))[:GRID]  # all differ: one is tallest
        pairs = zip(colours, heights, strict=True)
        bars = tuple(Bar(COLOURS[int(c)], int(h), i) for i, (c, h) in enumerate(pairs))
        return replace(base, bars=bars)
    if kind == "sum":
        digits = (int(rng.integers(10)), int(rng.integers(10)))
        things = _things(rng, int(rng.integers(1, 4)), range(2, GRID))
        return replace(base, digits=digits, things=things, handwritten=bool(rng.random() < 0.5))
    raise ValueError(f"unknown kind of scene {kind!r}")


def _things(rng: np.random.Generator, count: int, rows: range) -> tuple[Thing, ...]:
    """`count` things in different cells, in reading order."""
    cells = [(row, column) for row in rows for column in range(GRID)]
    chosen = sorted(int(i) for i in rng.permutation(len(cells))[:count])
    # few colours and shapes in one image, so that counting and comparing have something to count
    shapes = [SHAPES[int(i)] for i in rng.permutation(len(SHAPES))[:4]]
    colours = [COLOURS[int(i)] for i in rng.permutation(len(COLOURS))[:4]]
    return tuple(
        Thing(_pick(rng, shapes), _pick(rng, colours), _pick(rng, SIZES), *cells[i]) for i in chosen
    )


def _pick(rng: np.random.Generator, values: tuple[str, ...] | list[str]) -> str:
    return values[int(rng.integers(len(values)))]
