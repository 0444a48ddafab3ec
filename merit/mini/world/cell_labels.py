"""The content of every cell as class labels: the vision encoder's pre-training.

It replaces a public encoder, which would need a download.
"""

from __future__ import annotations

import string

import numpy as np

from merit.mini.world.draw import Pen, draw_scene
from merit.mini.world.scene import (
    COLOURS,
    GRID,
    GROUNDS,
    MAX_BAR,
    SHAPES,
    SIZES,
    Scene,
    sample_scene,
)

CHARACTERS = string.ascii_lowercase + string.digits + "+"
# classes of every head; class 0 of the first five means that the cell has none
HEADS = {
    "shape": 1 + len(SHAPES),
    "colour": 1 + len(COLOURS),
    "size": 1 + len(SIZES),
    "character": 1 + len(CHARACTERS),
    "bar": 1 + MAX_BAR,  # the height of the bar in the cell's column
    "ground": len(GROUNDS),
    # public encoders know a cell's place from absolute position embeddings, which we lack
    "row": GRID,
    "column": GRID,
}


def cell_labels(scene: Scene) -> np.ndarray:
    """int64 (len(HEADS), 16): the class of every head in every cell, cells in reading order."""
    labels = {name: np.zeros((GRID, GRID), dtype=np.int64) for name in HEADS}
    labels["ground"][:] = GROUNDS.index(scene.ground)
    labels["row"][:], labels["column"][:] = np.indices((GRID, GRID))
    for thing in scene.things:
        at = thing.row, thing.column
        labels["shape"][at] = 1 + SHAPES.index(thing.shape)
        labels["colour"][at] = 1 + COLOURS.index(thing.colour)
        labels["size"][at] = 1 + SIZES.index(thing.size)
    offset = (GRID - len(scene.text)) // 2
    for i, character in enumerate(scene.text):
        labels["character"][0, offset + i] = 1 + CHARACTERS.index(character)
    if scene.digits:
        for column, character in enumerate(f"{scene.digits[0]}+{scene.digits[1]}"):
            labels["character"][0, column] = 1 + CHARACTERS.index(character)
    for bar in scene.bars:
        labels["bar"][:, bar.column] = bar.height
        filled = GRID - (bar.height + 1) // 2
        labels["colour"][filled:, bar.column] = 1 + COLOURS.index(bar.colour)
    return np.stack([labels[name].reshape(-1) for name in HEADS])


def labelled_batch(
    batch_size: int, rng: np.random.Generator, pen: Pen
) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (B, 56, 56, 3), labels int64 (B, len(HEADS), 16)) of fresh scenes."""
    scenes = [sample_scene(rng) for _ in range(batch_size)]
    images = np.stack([draw_scene(scene, pen) for scene in scenes])
    return images, np.stack([cell_labels(scene) for scene in scenes])
