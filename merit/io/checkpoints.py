"""Checkpoints: safetensors only, one file or shards with an index, read tensor by tensor.

A checkpoint is a folder with `model.safetensors`, a folder with `model.safetensors.index.json` and
the shards that it names, or a safetensors file. Bytes are read when asked for, into memory of
their own: a memory map would count every page that was ever touched.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merit.errors import MeritError
from merit.io.checkpoint_files import INDEX, checkpoint_files, other_weights, weight_map
from merit.io.disk import check_file, writing

# computed when a model is made, yet stored by some libraries
DERIVED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias)")
# wrappers' prefixes and the places of a decoder and an encoder in files of several releases
LAYOUTS = (
    (re.compile(r"^(module\.|_orig_mod\.)+"), ""),
    (re.compile(r"^(model\.language_model|language_model\.model)\."), "model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^model\.visual\."), "visual."),
)
# safetensors' names of the types, in the order in which its writer lays tensors down: by width
DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# what can be averaged, and for each type those that hold it exactly; float8 needs its scales
WIDER = {
    torch.bfloat16: (torch.bfloat16, torch.float32, torch.float64),
    torch.float16: (torch.float16, torch.float32, torch.float64),
    torch.float32: (torch.float32, torch.float64),
    torch.float64: (torch.float64,),
}


class TensorInfo(NamedTuple):
    """A stored tensor: its type, its shape, and the bytes that it takes."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def is_real(self) -> bool:
        """Whether it holds numbers that can be averaged as they are."""
        return self.dtype in WIDER

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Of one row, an index of the first dimension; a number without dimensions is one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1


class _File:
    """One safetensors file: what it holds and where. The library checks the header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self._starts: dict[str, int] = {}
        check_file(path)
        try:
            with safe_open(path, framework="pt"):
                pass  # magic, size of the header, its offsets against the file's size
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise MeritError(f"{path}: checkpoint not found{other_weights(path)}") from None
        except PermissionError as error:
            raise MeritError(f"{path}: may not be read ({error.strerror})") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise MeritError(
                f"{path}: truncated or not a safetensors file ({error}); take a whole copy of it"
            ) from None
        weakref.finalize(self, os.close, self._descriptor)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise MeritError(
                    f"{path}: tensor {name!r} is of type {entry['dtype']}, which cannot be read; "
                    f"known are {', '.join(DTYPES)}"
                )
            self.tensors[name] = TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]))
            self._starts[name] = 8 + size + entry["data_offsets"][0]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        info = self.tensors[name]
        buffer = torch.empty((stop - start) * info.row_bytes, dtype=torch.uint8)
        rest, offset = buffer.numpy().data, self._starts[name] + start * info.row_bytes
        while rest:  # the system reads at most 2 GB at a time
            count = os.preadv(self._descriptor, [rest], offset)
            if count == 0:
                raise MeritError(f"{self.path}: the file became shorter while it was read")
            rest, offset = rest[count:], offset + count
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        return buffer.view(info.dtype).reshape(shape)


class Checkpoint:
    """An open checkpoint; tensors are read when asked for, none is kept.

    `path` is a folder or a file; what is kept of it is the file, or the folder of shards. Raises
    MeritError, naming the file, where one is missing, truncated, not safetensors, or at odds with
    the index.
    """

    def __init__(self, path: Path) -> None:
        files = [_File(file) for file in checkpoint_files(path)]
        self.path = files[0].path
        if path.is_dir() and (path / INDEX).exists():
            self.path = path
            _check_index(path, files)
        self._file_of = {
            name: (file, name)  # its name in the file
            for file in files
            for name in file.tensors
            if not DERIVED.fullmatch(name)
        }
        self.names: list[str] = sorted(self._file_of)

    def has(self, name: str) -> bool:
        return name in self._file_of

    def info(self, name: str) -> TensorInfo:
        file, stored = self._file_of[name]
        return file.tensors[stored]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.info(name).shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """A whole tensor, or its rows (indices of the first dimension) start to stop."""
        file, stored = self._file_of[name]
        return file.read(stored, start, self.info(name).num_rows if stop is None else stop)

    def forget(self, name: str) -> None:
        """Go on without a tensor."""
        del self._file_of[name]
        self.names.remove(name)

    def name_as(self, other: Checkpoint) -> None:
        """Call tensors as `other` does, where the two files differ by a known layout only."""
        known = {_plain(name): name for name in other.names}
        named = {known.get(_plain(name), name): at for name, at in self._file_of.items()}
        if len(named) == len(self._file_of):
            self._file_of, self.names = named, sorted(named)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.names:
            yield name, self.read(name)


def _plain(name: str) -> str:
    """The tensor's name in the layout of a plain text decoder."""
    for pattern, replacement in LAYOUTS:
        name = pattern.sub(replacement, name)
    return name


def _check_index(folder: Path, files: list[_File]) -> None:
    """Raises MeritError where a shard does not hold the tensors that the index says."""
    listed = weight_map(folder)
    for file in files:
        promised = {name for name, found in listed.items() if found == file.path.name}
        if wrong := sorted(promised ^ set(file.tensors)):
            name, says = wrong[0], f"{INDEX} says"
            how = f"is missing, {says} it" if name in promised else f"is not one that {says}"
            raise MeritError(
                f"{file.path}: tensor {name!r} {how} lies there; take a whole copy of both"
            )


def check_same_tensors(
    checkpoint: Checkpoint, base: Checkpoint, names: set[str] | None = None
) -> None:
    """Raise MeritError unless the checkpoint's tensors are the base's by name, shape and type.

    A wider type passes: branches keep the float32 weights that they trained of a bfloat16 base.
    With `names`, the checkpoint must also hold exactly these tensors.
    """
    known = set(base.names)
    for name in checkpoint.names:
        if name not in known:
            raise MeritError(
                f"{checkpoint.path}: tensor {name!r} does not exist in the base {base.path}; "
                "it comes from another base"
            )
        found, wanted = checkpoint.info(name), base.info(name)
        if found.shape != wanted.shape:
            raise MeritError(
                f"{checkpoint.path}: tensor {name!r} has shape {found.shape}, the base "
                f"{base.path} has {wanted.shape}; it comes from another base"
            )
        if found.dtype not in WIDER.get(wanted.dtype, (wanted.dtype,)):
            raise MeritError(
                f"{checkpoint.path}: tensor {name!r} is {found.dtype}, the base {base.path} has "
                f"{wanted.dtype}: only a wider type holds what was learnt; write it "
                "as it was trained"
            )
    if names is not None and set(checkpoint.names) != names:
        missing = sorted(names - set(checkpoint.names))
        extra = sorted(set(checkpoint.names) - names)
        raise MeritError(
            f"{checkpoint.path}: tensors differ from the other branches': missing {missing[:3]}, "
            f"not expected {extra[:3]}; merge only branches that trained the same tensors"
        )


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file; names sorted, so that equal tensors are equal bytes.

    Raises MeritError where the disk is full; then nothing of it is there.
    """
    ordered = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    with writing(path):
        save_file(ordered, path, metadata={"format": "pt"})
