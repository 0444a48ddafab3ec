"""The mixture as arrays, memory-mapped: token ids, what bears the loss, images by reference.

Examples lie one behind the other in flat arrays with offsets, so that a branch opens them in
milliseconds and reads only what it trains on, however large the mixture is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

from merit.errors import MeritError
from merit.io.artifacts import read_json, write_json

IGNORED = -100  # the label that bears no loss, as in transformers
Batch = dict[str, torch.Tensor]
# paths of images -> (pixel_values (num_patches, patch_dim), grids (num_images, 3))
ReadImages = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class TokenizedDataset:
    """Examples as arrays; n examples, m images, P tokens in all.

    tokens int32 (P,); bearing bool (P,): whether a token bears the loss; offsets int64 (n + 1,);
    image_offsets int64 (n + 1,) into image_ids int32; grids int32 (m, 3): an image's patches in
    time, height and width; paths bytes (m,), UTF-8. `features` float32 (rows, size), with rows
    feature_offsets[i] to feature_offsets[i + 1] of image i, are what the decoder (or the projector)
    sees; where there are none (shape (0, 0)), `read_images` gives the pixels.
    """

    tokens: np.ndarray
    bearing: np.ndarray
    offsets: np.ndarray
    image_offsets: np.ndarray
    image_ids: np.ndarray
    grids: np.ndarray
    paths: np.ndarray
    feature_offsets: np.ndarray
    features: np.ndarray
    image_token: int = -1
    merge_size: int = 2  # patches a side that make one token
    read_images: ReadImages | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def num_tokens(self) -> np.ndarray:
        """int64 (n,): all tokens of every example as the decoder sees it, image tokens included."""
        return np.diff(self.offsets)

    def num_loss_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """int64: loss-bearing tokens of every example (of those at `indices`)."""
        chosen = np.arange(len(self)) if indices is None else indices
        spans = zip(self.offsets[chosen], self.offsets[np.asarray(chosen) + 1], strict=True)
        return np.array([np.count_nonzero(self.bearing[a:b]) for a, b in spans], dtype=np.int64)

    def num_targets(self, indices: np.ndarray) -> np.ndarray:
        """int64: the loss-bearing tokens of these examples that follow another; the loss's terms.

        They are all of `num_loss_tokens` but the first token of a plain document.
        """
        first = self.bearing[self.offsets[indices]]
        return self.num_loss_tokens(indices) - first

    def save(self, folder: Path) -> None:
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        write_json(folder / "meta.json", {name: int(getattr(self, name)) for name in NUMBERS})

    @classmethod
    def load(cls, folder: Path, read_images: ReadImages | None = None) -> TokenizedDataset:
        """Memory-mapped. Raises MeritError where an array is missing or truncated."""
        arrays = {}
        for name in ARRAYS:
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise MeritError(
                    f"{path}: cannot be read ({error}); run `dvc repro` anew"
                ) from None
        return cls(**arrays, **read_json(folder / "meta.json"), read_images=read_images)

    def images_of(self, index: int) -> np.ndarray:
        """The images of one example: rows of `grids`."""
        return self.image_ids[self.image_offsets[index] : self.image_offsets[index + 1]]

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens (L,), labels (L,), positions (3, L)) of one example, int64."""
        start, end = self.offsets[index : index + 2]
        tokens = np.asarray(self.tokens[start:end], dtype=np.int64)
        labels = np.where(self.bearing[start:end], tokens, IGNORED)
        grids = self.grids[self.images_of(index)]
        return tokens, labels, mrope_positions(tokens, self.image_token, grids, self.merge_size)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The examples padded on the right: input_ids, labels (B, L), position_ids (3, B, L), and
        their images.

        Causal attention never looks right, so padded batches need no attention mask.
        """
        examples = [self.example(int(i)) for i in indices]
        width = max(len(tokens) for tokens, _, _ in examples)
        tokens = np.zeros((len(examples), width), dtype=np.int64)
        labels = np.full((len(examples), width), IGNORED, dtype=np.int64)
        positions = np.zeros((3, len(examples), width), dtype=np.int64)
        for row, (own_tokens, own_labels, own_positions) in enumerate(examples):
            length = len(own_tokens)
            tokens[row, :length], labels[row, :length] = own_tokens, own_labels
            positions[:, row, :length] = own_positions
        found = {"input_ids": tokens, "labels": labels, "position_ids": positions}
        return {k: torch.from_numpy(v) for k, v in found.items()} | self._images(indices)

    def pack(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The examples one behind the other in a single row, none of which sees another.

        input_ids, labels (1, L); position_ids (4, 1, L): the text positions, by which transformers
        tells the examples apart, then the three of M-RoPE; bounds int32 (B + 1,): where each
        begins. The first token of an example bears no loss: nothing of its own comes before it.
        """
        examples = [self.example(int(i)) for i in indices]
        lengths = [len(tokens) for tokens, _, _ in examples]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        labels = np.concatenate([labels for _, labels, _ in examples])
        labels[bounds[:-1]] = IGNORED
        text = np.concatenate([np.arange(length) for length in lengths])
        grid = np.concatenate([positions for _, _, positions in examples], axis=1)
        found = {
            "input_ids": np.concatenate([tokens for tokens, _, _ in examples])[None],
            "labels": labels[None],
            "position_ids": np.concatenate([text[None], grid])[:, None],
            "bounds": bounds.astype(np.int32),
        }
        return {k: torch.from_numpy(v) for k, v in found.items()} | self._images(indices)

    def _images(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """`features` of the examples' images, or else their `pixel_values` and `grids`.

        Raises MeritError where an image cannot be read or is not what was encoded.
        """
        images = [int(i) for index in indices for i in self.images_of(int(index))]
        if not images:
            return {}
        if len(self.features):
            bounds = self.feature_offsets
            rows = [self.features[bounds[i] : bounds[i + 1]] for i in images]
            return {"features": torch.from_numpy(np.concatenate(rows))}
        if self.read_images is None:
            raise ValueError("neither cached features nor a reader of images")
        paths = [self.path_of(i) for i in images]
        pixels, grids = self.read_images(paths)
        for path, found, expected in zip(paths, grids.tolist(), self.grids[images], strict=True):
            if found != expected.tolist():
                raise MeritError(
                    f"{path}: the image has {found} patches now, {expected.tolist()} when it was "
                    "encoded; run the encode stage again"
                )
        return {"pixel_values": pixels, "grids": grids}

    def path_of(self, image: int) -> str:
        return bytes(self.paths[image]).decode()


ARRAYS = tuple(f.name for f in fields(TokenizedDataset) if f.type == "np.ndarray")
NUMBERS = ("image_token", "merge_size")


def mrope_positions(
    tokens: np.ndarray, image_token: int, grids: np.ndarray, merge_size: int = 2
) -> np.ndarray:
    """int64 (3, L): M-RoPE positions (temporal, height, width) of one example.

    Text advances all three together; an image of h x w tokens spans a grid and advances the
    position by max(h, w). Equal to transformers' `get_rope_index` (tested).

    Args: grids (num_images, 3): patches of the images in the order of their tokens.
    """
    positions = np.empty((3, len(tokens)), dtype=np.int64)
    marks = np.flatnonzero(tokens == image_token)
    current = place = used = 0
    for _, height, width in grids:
        rows, columns = int(height) // merge_size, int(width) // merge_size
        start, count = int(marks[used]), rows * columns
        run = start - place
        positions[:, place:start] = np.arange(current, current + run)
        current += run
        row, column = np.divmod(np.arange(count), columns)
        positions[:, start : start + count] = current + np.stack([np.zeros_like(row), row, column])
        current, place, used = current + max(rows, columns), start + count, used + count
    positions[:, place:] = np.arange(current, current + len(tokens) - place)
    return positions


def packed_rows(lengths: np.ndarray, limit: int) -> list[np.ndarray]:
    """The examples of one step in as few rows of at most `limit` tokens as first-fit finds.

    Longest first, each into the first row that has room; a longer one has a row to itself. int64
    positions in `lengths` (n,), in the order in which they were given.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        length = int(lengths[index])
        row = next((i for i, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(limit)
        rows[row].append(int(index))
        room[row] -= length
    return [np.array(sorted(row)) for row in rows]
