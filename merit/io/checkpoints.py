"""Checkpoints: safetensors only, read tensor by tensor, checked against the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merit.errors import MeritError


class Checkpoint:
    """An open safetensors file; tensors are read when asked for, none is kept.

    Raises MeritError, naming the file, where it is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self.names: list[str] = sorted(self._file.keys())
        except FileNotFoundError:
            raise MeritError(f"{path}: checkpoint not found; `dvc repro` writes it") from None
        except (SafetensorError, OSError) as error:
            raise MeritError(
                f"{path}: truncated or not a safetensors file ({error}); train or fetch it anew"
            ) from None

    def read(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.names:
            yield name, self.read(name)


def check_same_tensors(
    checkpoint: Checkpoint, base: Checkpoint, names: set[str] | None = None
) -> None:
    """Raise MeritError unless the checkpoint's tensors are the base's by name and shape.

    With `names`, the checkpoint must also hold exactly these tensors.
    """
    known = set(base.names)
    for name in checkpoint.names:
        if name not in known:
            raise MeritError(
                f"{checkpoint.path}: tensor {name!r} does not exist in the base {base.path}; "
                "it was trained from another base: train it again"
            )
        if checkpoint.shape(name) != base.shape(name):
            raise MeritError(
                f"{checkpoint.path}: tensor {name!r} has shape {checkpoint.shape(name)}, the base "
                f"{base.path} has {base.shape(name)}; it comes from another base: train it again"
            )
    if names is not None and set(checkpoint.names) != names:
        missing = sorted(names - set(checkpoint.names))
        extra = sorted(set(checkpoint.names) - names)
        raise MeritError(
            f"{checkpoint.path}: tensors differ from the other branches': missing {missing[:3]}, "
            f"not expected {extra[:3]}; merge only branches that trained the same tensors"
        )


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; names sorted, so that equal tensors are equal bytes."""
    ordered = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    save_file(ordered, path, metadata={"format": "pt"})
