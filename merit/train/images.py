"""Images as the model sees them: grid of patches, pixels, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merit.config import Encoding
from merit.data.images import image_size, load_image
from merit.errors import MeritError
from merit.io.artifacts import Artifacts
from merit.train.dataset import ReadImages, TokenizedDataset
from merit.train.model import load_processor


@dataclass(frozen=True)
class ImageReader:
    """Images below `root` as pixels; a limit that is None is the image processor's."""

    root: Path
    processor: Any  # the model's image processor
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def limits(self) -> dict[str, int]:
        default = self.processor.size
        return {
            "shortest_edge": self.min_pixels or default["shortest_edge"],
            "longest_edge": self.max_pixels or default["longest_edge"],
        }

    def __call__(self, paths: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixel_values (num_patches, patch_dim), grids int64 (n, 3)) of n images."""
        pictures = [load_image(self.root / path) for path in paths]
        batch = self.processor(pictures, size=self.limits, return_tensors="pt")
        return batch["pixel_values"], batch["image_grid_thw"]

    def grid(self, path: str) -> tuple[int, int, int]:
        """(1, height, width) in patches, from only the image's header.

        Raises MeritError if the image cannot be read or is more than 200 times as long as wide.
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        width, height = image_size(self.root / path)
        patch = self.processor.patch_size
        limits = self.limits
        try:
            rows, columns = smart_resize(
                height,
                width,
                factor=patch * self.processor.merge_size,
                min_pixels=limits["shortest_edge"],
                max_pixels=limits["longest_edge"],
            )
        except ValueError as error:
            raise MeritError(
                f"{self.root / path}: {width} x {height} pixels: {error}; crop or remove it"
            ) from None
        return 1, rows // patch, columns // patch

    def grids(self, paths: Sequence[str]) -> np.ndarray:
        """int32 (n, 3): the grids of n images."""
        return np.array([self.grid(path) for path in paths], dtype=np.int32).reshape(-1, 3)


def image_reader(root: Path, processor: Any, settings: Encoding) -> ImageReader | None:
    """The reader that goes with a model's processor; None for a text model."""
    images = getattr(processor, "image_processor", None)
    if images is None:
        return None
    return ImageReader(root, images, settings.min_pixels, settings.max_pixels)


def open_mixture(paths: Artifacts, settings: Encoding) -> TokenizedDataset:
    """The encoded mixture, with a reader of its images unless they are cached."""
    data = TokenizedDataset.load(paths.encoded)
    if len(data.features) or not len(data.paths):
        return data
    read = image_reader(paths.mixture, load_processor(paths.base), settings)
    return replace(data, read_images=read)


def vision_features(
    read: ReadImages,
    paths: Sequence[str],
    see: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batch_size: int = 64,
) -> Iterator[np.ndarray]:
    """float32 (rows, size), batch by batch: what `see` makes of the images' pixels and grids."""
    for start in range(0, len(paths), batch_size):
        pixels, grids = read(paths[start : start + batch_size])
        with torch.no_grad():
            yield see(pixels, grids).float().cpu().numpy()
