"""What tells that two images, or two questions, are the same (docs/decisions.md)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16  # of the grid that a difference hash looks at
NEAR = 10  # of its 256 bits, how many may differ
PLAIN = 24  # bits at least that differ from both 0 and 1 throughout: a plain page is like any other
MIN_WORDS = 4  # of a question; "what is this" is everywhere

_PARTS = re.compile(r"[\n.?!]+")
_NO_WORD = re.compile(r"[\W_]+")


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of an image's size and RGB pixels: the same whatever lossless file holds it."""
    size = f"{image.width}x{image.height}:".encode()
    return hashlib.sha256(size + image.convert("RGB").tobytes()).hexdigest()


def difference_hash(image: Image.Image) -> NDArray[np.uint64]:
    """uint64 (4,): of each of 16 x 16 places, whether the grey level rises to the right.

    Little of it changes when an image is resized or compressed again.
    """
    grey = np.asarray(image.convert("L").resize((SIDE + 1, SIDE)), dtype=np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).view(np.uint64)


def near(one: NDArray[np.uint64], many: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Positions in `many` (n, 4) of the hashes that differ from `one` (4,) in at most NEAR bits.

    Empty where `one` is of a plain image.
    """
    ones = int(np.bitwise_count(one).sum())
    if not PLAIN <= ones <= SIDE**2 - PLAIN or not len(many):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.bitwise_count(many ^ one).sum(axis=1) <= NEAR)


def normalised(text: str) -> str:
    """Only the words, in lower case, one space between them."""
    text = unicodedata.normalize("NFKC", text.replace("<image>", " ")).casefold()
    return _NO_WORD.sub(" ", text).strip()


def question_parts(prompt: str) -> Iterator[str]:
    """A prompt as a whole and every sentence or line of it, normalised; short ones are left out.

    Training prompts hold a question among instructions and options.
    """
    for part in {normalised(prompt), *map(normalised, _PARTS.split(prompt))}:
        if part.count(" ") >= MIN_WORDS - 1:
            yield part
