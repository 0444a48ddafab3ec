"""From examples to arrays: token ids, labels, M-RoPE positions and images, memory-mapped.

Examples lie one behind the other in flat arrays with offsets, so that a branch opens them in
milliseconds and reads only what it trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merit.data.examples import IMAGE_TOKEN, TEXT_ROLE, Example, load_image
from merit.errors import MeritError
from merit.training.models import SPECIAL_TOKENS

IGNORED = -100  # the label that bears no loss, as in transformers


@dataclass(frozen=True)
class Encoded:
    """Examples as arrays; `features[i]` is image i as the decoder (or the projector) sees it.

    Shapes: tokens, labels int32 (total,); positions int16 (3, total); offsets int64 (n + 1,);
    image_offsets int64 (n + 1,) into image_ids int32; features float32 (num_images, tokens, size).
    """

    tokens: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    offsets: np.ndarray
    image_offsets: np.ndarray
    image_ids: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def num_tokens(self) -> np.ndarray:
        """int64 (n,): all tokens of every example as the decoder sees it, image tokens included."""
        return np.diff(self.offsets)

    def num_loss_tokens(self) -> np.ndarray:
        """int64 (n,): loss-bearing tokens of every example."""
        bearing = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return bearing[self.offsets[1:]] - bearing[self.offsets[:-1]]

    def save(self, folder: Path) -> None:
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Encoded:
        """Memory-mapped. Raises MeritError where an array is missing or truncated."""
        arrays = {}
        for name in cls.__dataclass_fields__:
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise MeritError(
                    f"{path}: cannot be read ({error}); run `dvc repro` anew"
                ) from None
        return cls(**arrays)

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """The examples padded on the right: input_ids, labels (B, L), position_ids (3, B, L),
        images (N, tokens, size).

        Causal attention never looks right, so padded batches need no attention mask.
        """
        starts, ends = self.offsets[indices], self.offsets[np.asarray(indices) + 1]
        width = int((ends - starts).max())
        tokens = np.zeros((len(indices), width), dtype=np.int64)
        labels = np.full((len(indices), width), IGNORED, dtype=np.int64)
        positions = np.zeros((3, len(indices), width), dtype=np.int64)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            tokens[row, : end - start] = self.tokens[start:end]
            labels[row, : end - start] = self.labels[start:end]
            positions[:, row, : end - start] = self.positions[:, start:end]
        first, last = self.image_offsets[indices], self.image_offsets[np.asarray(indices) + 1]
        images = [i for a, b in zip(first, last, strict=True) for i in self.image_ids[a:b]]
        return {
            "input_ids": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
            "images": torch.from_numpy(np.ascontiguousarray(self.features[images])),
        }


def encode_examples(
    examples: Sequence[Example], processor: Any, features: np.ndarray, images: dict[str, int]
) -> Encoded:
    """Examples as arrays; the loss is borne by the assistant's words and its end mark.

    A plain document bears it throughout. Args: features as in `Encoded`; images: image path -> row
    of `features`; processor: a text model's is its tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    image_id = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS["image"])
    per_image = num_image_tokens(processor) if len(features) else 0
    side = int(per_image**0.5)
    marks = (
        SPECIAL_TOKENS["vision_start"]
        + SPECIAL_TOKENS["image"] * per_image
        + SPECIAL_TOKENS["vision_end"]
    )
    segments: list[str] = []
    bearing: list[bool] = []
    counts = []
    for example in examples:
        before = len(segments)
        for message in example.messages:
            if message["role"] == TEXT_ROLE:
                segments.append(f"{message['content']}{SPECIAL_TOKENS['pad']}")
                bearing.append(True)
                continue
            content = message["content"].replace(IMAGE_TOKEN, marks)
            segments.append(f"{SPECIAL_TOKENS['start']}{message['role']}\n")
            segments.append(f"{content}{SPECIAL_TOKENS['end']}")
            bearing += [False, message["role"] == "assistant"]
            segments.append("\n")
            bearing.append(False)
        counts.append(len(segments) - before)
    encoded = tokenizer(segments, add_special_tokens=False)["input_ids"]
    lengths = np.array([len(ids) for ids in encoded])
    tokens = np.fromiter((t for ids in encoded for t in ids), dtype=np.int32, count=lengths.sum())
    labels = np.where(np.repeat(bearing, lengths), tokens, IGNORED).astype(np.int32)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    cumulative = np.concatenate([[0], np.cumsum(lengths)])
    offsets = cumulative[bounds].astype(np.int64)
    positions = np.concatenate(
        [mrope_positions(tokens[a:b], image_id, side) for a, b in pairwise(offsets)],
        axis=1,
    )
    return Encoded(
        tokens=tokens,
        labels=labels,
        positions=positions.astype(np.int16),
        offsets=offsets,
        image_offsets=np.cumsum([0, *(len(e.images) for e in examples)]).astype(np.int64),
        image_ids=np.array([images[i] for e in examples for i in e.images], dtype=np.int32),
        features=features,
    )


def mrope_positions(tokens: np.ndarray, image_id: int, side: int) -> np.ndarray:
    """int64 (3, length): M-RoPE positions (temporal, height, width) of one example.

    Text advances all three together; an image of side x side tokens spans a grid and advances the
    position by `side`. Equal to transformers' `get_rope_index` (tested).
    """
    is_image = tokens == image_id
    positions = np.empty((3, len(tokens)), dtype=np.int64)
    grid = np.stack(
        [np.zeros(side * side, dtype=np.int64), *np.divmod(np.arange(side * side), side)]
    )
    current, i = 0, 0
    while i < len(tokens):
        if is_image[i]:
            positions[:, i : i + side * side] = grid + current
            current, i = current + side, i + side * side
            continue
        run = int(np.argmax(is_image[i:])) if is_image[i:].any() else len(tokens) - i
        positions[:, i : i + run] = np.arange(current, current + run)
        current, i = current + run, i + run
    return positions


def num_image_tokens(processor: Any) -> int:
    """Tokens that one image takes in the decoder; all images of a mixture have one size here."""
    size = processor.image_processor.size
    edge = int(size["longest_edge"] ** 0.5)
    patches = (edge // processor.image_processor.patch_size) ** 2
    return patches // processor.image_processor.merge_size**2


def pixel_values(paths: Sequence[Path], processor: Any) -> torch.Tensor:
    """float32 (num_images, num_patches, patch_dim) of images on disk, in their order."""
    if not paths:
        return torch.zeros(0, 0, 0)
    pictures = [load_image(path) for path in paths]
    values = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return values.view(len(pictures), -1, values.shape[-1])


def vision_features(
    model: object, processor: object, paths: list[Path], after: Callable, batch_size: int = 64
) -> np.ndarray:
    """float32 (num_images, ...): `after` of the vision encoder's hidden states, batch by batch."""
    from merit.training.models import vision_hidden_states

    parts = [] if paths else [np.zeros((0, 0, 0), dtype=np.float32)]
    for start in range(0, len(paths), batch_size):
        pixels = pixel_values(paths[start : start + batch_size], processor)
        parts.append(after(vision_hidden_states(model, pixels)).detach().numpy())
    return np.concatenate(parts)
