"""The tokenized mixture as memory-mapped arrays: token ids, loss mask, images by reference.

Examples lie one behind the other in flat arrays with offsets, so that a branch opens them in
milliseconds and reads only what it trains on, however large the mixture is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merit.errors import MeritError
from merit.io.artifacts import read_array, read_json

IGNORED = -100  # the label of a token that is not supervised, as in transformers
Batch = dict[str, torch.Tensor]
# paths of images -> (pixel_values (num_patches, patch_dim), grids (num_images, 3))
ReadImages = Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class TokenizedDataset:
    """Examples as arrays; n examples, m images, P tokens in all.

    tokens int32 (P,); loss_mask bool (P,): which tokens are supervised; offsets int64 (n + 1,);
    image_offsets int64 (n + 1,) into image_ids int32; grids int32 (m, 3): an image's patches in
    time, height and width; paths bytes (m,), UTF-8. `features` float32 (rows, size), with rows
    feature_offsets[i] to feature_offsets[i + 1] of image i, are what the decoder (or the projector)
    sees; without them (shape (0, 0)) `read_images` gives the pixels.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray
    image_offsets: np.ndarray
    image_ids: np.ndarray
    grids: np.ndarray
    paths: np.ndarray
    feature_offsets: np.ndarray
    features: np.ndarray
    image_token: int = -1
    merge_size: int = 2  # patches per side that make one token
    read_images: ReadImages | None = field(default=None, compare=False)

    @classmethod
    def load(cls, folder: Path, read_images: ReadImages | None = None) -> TokenizedDataset:
        """Memory-mapped. Raises MeritError for an array that is missing or truncated."""
        arrays: dict[str, Any] = {name: read_array(array_file(folder, name)) for name in ARRAYS}
        return cls(**arrays, **read_json(folder / "meta.json"), read_images=read_images)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def num_tokens(self) -> np.ndarray:
        """int64 (n,): all tokens of every example as the decoder sees it, image tokens included."""
        return np.diff(self.offsets)

    def num_loss_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """int64: supervised tokens of every example (of those at `indices`)."""
        chosen = np.arange(len(self)) if indices is None else indices
        spans = zip(self.offsets[chosen], self.offsets[np.asarray(chosen) + 1], strict=True)
        return np.array([np.count_nonzero(self.loss_mask[a:b]) for a, b in spans], dtype=np.int64)

    def num_targets(self, indices: np.ndarray) -> np.ndarray:
        """int64: supervised tokens of these examples that follow another; the loss's terms.

        They are all of `num_loss_tokens` but the first token of a plain document.
        """
        return self.num_loss_tokens(indices) - self.loss_mask[self.offsets[indices]]

    def path_of(self, image: int) -> str:
        """The path of an image, a row of `grids`."""
        return bytes(self.paths[image]).decode()

    def images_of(self, index: int) -> np.ndarray:
        """The images of one example: rows of `grids`."""
        return self.image_ids[self.image_offsets[index] : self.image_offsets[index + 1]]

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens (L,), labels (L,), positions (3, L)) of one example, int64."""
        start, end = self.offsets[index : index + 2]
        tokens = np.asarray(self.tokens[start:end], dtype=np.int64)
        labels = np.where(self.loss_mask[start:end], tokens, IGNORED)
        grids = self.grids[self.images_of(index)]
        return tokens, labels, mrope_positions(tokens, self.image_token, grids, self.merge_size)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The examples padded on the right: input_ids, labels (B, L), position_ids (3, B, L), and
        their images.

        Causal attention never looks right, so padded batches need no attention mask.
        """
        examples = [self.example(int(i)) for i in indices]
        width = max(len(tokens) for tokens, _, _ in examples)
        batch = {
            "input_ids": np.zeros((len(examples), width), dtype=np.int64),
            "labels": np.full((len(examples), width), IGNORED, dtype=np.int64),
            "position_ids": np.zeros((3, len(examples), width), dtype=np.int64),
        }
        for row, (tokens, labels, positions) in enumerate(examples):
            batch["input_ids"][row, : len(tokens)] = tokens
            batch["labels"][row, : len(tokens)] = labels
            batch["position_ids"][:, row, : len(tokens)] = positions
        return {k: torch.from_numpy(v) for k, v in batch.items()} | self._images(indices)

    def pack(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The examples one behind the other in a single row, none of which sees another.

        input_ids, labels (1, L); position_ids (4, 1, L): the text positions, by which transformers
        tells the examples apart, then the three of M-RoPE; bounds int32 (B + 1,): where each
        begins. The first token of an example is not supervised: no token of its own precedes it.
        """
        examples = [self.example(int(i)) for i in indices]
        lengths = [len(tokens) for tokens, _, _ in examples]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        labels = np.concatenate([labels for _, labels, _ in examples])
        labels[bounds[:-1]] = IGNORED
        text = np.concatenate([np.arange(length) for length in lengths])
        grid = np.concatenate([positions for _, _, positions in examples], axis=1)
        row = {
            "input_ids": np.concatenate([tokens for tokens, _, _ in examples])[None],
            "labels": labels[None],
            "position_ids": np.concatenate([text[None], grid])[:, None],
            "bounds": bounds.astype(np.int32),
        }
        return {k: torch.from_numpy(v) for k, v in row.items()} | self._images(indices)

    def _images(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """`features` of the examples' images, or else their `pixel_values` and `grids`.

        Raises MeritError for an image that cannot be read or is not what was encoded.
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
        for path, now, then in zip(paths, grids.tolist(), self.grids[images].tolist(), strict=True):
            if now != then:
                raise MeritError(
                    f"{path}: the image has {now} patches now, {then} when it was encoded; run "
                    "the encode stage again"
                )
        return {"pixel_values": pixels, "grids": grids}


ARRAYS = tuple(f.name for f in fields(TokenizedDataset) if f.type == "np.ndarray")
NUMBERS = ("image_token", "merge_size")


def array_file(folder: Path, name: str) -> Path:
    """The file of one of `ARRAYS`."""
    return folder / f"{'bearing' if name == 'loss_mask' else name}.npy"


def example_tasks(folder: Path) -> tuple[np.ndarray, list[str]]:
    """(int32 (n,): the index of every example's task, the tasks' names) of an encoded mixture."""
    names = [entry["task"] for entry in read_json(folder / "tasks.json")]
    return read_array(folder / "task_of_example.npy"), names


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
