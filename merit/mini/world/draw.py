"""From a scene to pixels: 56 x 56 RGB, one 14-pixel cell per grid position."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from merit.mini.world.scene import GRID, SHAPES, Scene

CELL = 14
IMAGE_SIZE = CELL * GRID
RGB = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (40, 80, 200),
    "yellow": (235, 210, 30),
    "purple": (140, 60, 180),
    "orange": (250, 130, 20),
}
GROUND_RGB = (205, 205, 200)
BOARD_RGB = (250, 250, 250)
INK_RGB = (15, 15, 15)
PEN_RGB = (20, 20, 90)


def draw_scene(scene: Scene, pen: Pen | None = None) -> np.ndarray:
    """uint8 (56, 56, 3). `pen` supplies handwritten digits if the scene has them."""
    rng = np.random.default_rng(scene.noise_seed)
    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    image[:] = np.asarray(GROUND_RGB, dtype=np.float32)
    image -= 28.0 * _texture(scene.ground)[:, :, None]
    for thing in scene.things:
        mask = _shape_mask(SHAPES.index(thing.shape), thing.size)
        _stamp(image, mask, RGB[thing.colour], thing.row, thing.column)
    if scene.text:
        image[:CELL] = BOARD_RGB
        offset = (GRID - len(scene.text)) // 2
        for i, character in enumerate(scene.text):
            _stamp(image, _glyph(character), INK_RGB, 0, offset + i)
    for bar in scene.bars:
        top = IMAGE_SIZE - bar.height * CELL // 2
        image[top:, bar.column * CELL + 2 : (bar.column + 1) * CELL - 2] = RGB[bar.colour]
    if scene.digits:
        image[:CELL] = BOARD_RGB
        _stamp(image, _glyph("+"), INK_RGB, 0, 1)
        for digit, column in zip(scene.digits, (0, 2), strict=True):
            if scene.handwritten and pen is not None:
                _stamp(image, pen.digit(digit, rng), PEN_RGB, 0, column)
            else:
                _stamp(image, _glyph(str(digit)), INK_RGB, 0, column)
    image += rng.normal(0.0, 6.0, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


class Pen:
    """Scanned digits (scikit-learn's bundled set, 1,797 scans of 8 x 8).

    `split` "test" takes the scans whose index is divisible by 4, "train" the others: no scan is
    both in training and in a benchmark.
    """

    def __init__(self, split: str) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        index = np.arange(len(digits.target))
        keep = index % 4 == 0 if split == "test" else index % 4 != 0
        self._masks = {
            d: [_upscale(scan) for scan in digits.images[keep & (digits.target == d)]]
            for d in range(10)
        }

    def digit(self, digit: int, rng: np.random.Generator) -> np.ndarray:
        """One scan of `digit` as a float32 (14, 14) mask in 0..1."""
        masks = self._masks[digit]
        return masks[int(rng.integers(len(masks)))]


def _upscale(scan: np.ndarray) -> np.ndarray:
    picture = Image.fromarray((scan / 16.0 * 255).astype(np.uint8))
    resized = np.asarray(picture.resize((CELL - 2, CELL - 2), Image.Resampling.BICUBIC))
    return np.pad(resized.astype(np.float32) / 255.0, 1)


def _stamp(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], row: int, column: int
) -> None:
    area = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
    area += mask[:, :, None] * (np.asarray(colour, dtype=np.float32) - area)


@cache
def _texture(ground: str) -> np.ndarray:
    """float32 (56, 56): where the ground is darker."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    pattern = {
        "plain": np.zeros_like(x),
        "striped": (y // 2) % 2,
        "dotted": ((x % 4 == 1) & (y % 4 == 1)) * 2,
        "checked": ((x // 4) + (y // 4)) % 2,
    }[ground]
    return pattern.astype(np.float32)


@cache
def _shape_mask(shape: int, size: str) -> np.ndarray:
    """float32 (14, 14) anti-aliased mask, drawn at 8 times the size."""
    scale, name = 8, SHAPES[shape]
    side = CELL * scale
    margin = (1 if size == "large" else 3) * scale
    lo, hi, mid = margin, side - margin - 1, side / 2
    picture = Image.new("L", (side, side))
    pen = ImageDraw.Draw(picture)
    if name == "circle":
        pen.ellipse((lo, lo, hi, hi), fill=255)
    elif name == "square":
        pen.rectangle((lo, lo, hi, hi), fill=255)
    elif name == "triangle":
        pen.polygon([(mid, lo), (hi, hi), (lo, hi)], fill=255)
    elif name == "diamond":
        pen.polygon([(mid, lo), (hi, mid), (mid, hi), (lo, mid)], fill=255)
    elif name == "cross":
        arm = (hi - lo) / 6
        pen.rectangle((mid - arm, lo, mid + arm, hi), fill=255)
        pen.rectangle((lo, mid - arm, hi, mid + arm), fill=255)
    elif name == "star":
        radius = (hi - lo) / 2
        angles = np.pi / 5 * np.arange(10) - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, radius, radius * 0.4)
        x, y = mid + radii * np.cos(angles), mid + radii * np.sin(angles)
        pen.polygon(list(zip(x, y, strict=True)), fill=255)
    small = picture.resize((CELL, CELL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255.0


@cache
def _glyph(character: str) -> np.ndarray:
    """float32 (14, 14) mask of a printed character (Pillow's built-in font)."""
    picture = Image.new("L", (CELL, CELL))
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(picture).text(
        (CELL / 2, CELL / 2), character.upper(), fill=255, font=font, anchor="mm"
    )
    return np.asarray(picture, dtype=np.float32) / 255.0
