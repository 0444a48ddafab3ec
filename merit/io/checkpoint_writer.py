"""Writing a checkpoint piece by piece: where every byte goes is known before the first is there.

safetensors' own writer wants all tensors of a file in memory. The format is simple enough to be
written here: the header's length (8 bytes, little-endian), the header (JSON, padded with spaces to
8 bytes) and the tensors' bytes. The same tensors give the same bytes as `save_tensors`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from merit.errors import MeritError
from merit.io.checkpoint_files import INDEX
from merit.io.checkpoints import DTYPES, TensorInfo
from merit.io.disk import writing

MAX_SHARD_BYTES = 5 * 10**9
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ORDER = {dtype: place for place, dtype in enumerate(DTYPES.values())}


class CheckpointWriter:
    """Tensors of a known layout into `folder`, whole or by rows, in any order, by any threads.

    Up to `max_shard_bytes` in all (a tensor is never divided) it is `model.safetensors`, beyond it
    shards of at most that size and `model.safetensors.index.json`, as transformers writes them.
    `with CheckpointWriter(folder, layout) as writer: writer.write(name, rows, start)`.

    Raises MeritError where the disk has or gets no space left, and ValueError where a tensor is not
    written once and whole by the end of the block. What is there then is no checkpoint: write into
    `merit.io.artifacts.atomic_folder`.
    """

    def __init__(
        self, folder: Path, layout: Mapping[str, TensorInfo], max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        self.folder, self.layout = folder, dict(layout)
        self.num_bytes = sum(info.num_bytes for info in layout.values())
        self._place: dict[str, tuple[int, int]] = {}  # descriptor, offset of the first byte
        self._written: Counter[str] = Counter()
        self._lock = Lock()
        self._split = split_state_dict_into_shards_factory(
            {name: layout[name] for name in sorted(layout)},
            get_storage_size=lambda info: info.num_bytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_bytes,
        )

    def __enter__(self) -> CheckpointWriter:
        free = shutil.disk_usage(self.folder).free
        if free < self.num_bytes:
            raise MeritError(
                f"{self.folder.parent}: no space left on the disk: the checkpoint takes "
                f"{self.num_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free. Free some and run "
                "the same command again"
            )
        try:
            for file, names in self._split.filename_to_tensors.items():
                head, starts = header({name: self.layout[name] for name in names})
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                descriptor = os.open(self.folder / file, flags, 0o644)
                self._place |= {name: (descriptor, start) for name, start in starts.items()}
                self._put(descriptor, memoryview(head), 0)
        except BaseException:
            self._close()
            raise
        return self

    def write(self, name: str, rows: torch.Tensor, start: int = 0) -> None:
        """The rows of a tensor from `start` on (an index of its first dimension)."""
        info = self.layout[name]
        if rows.dtype != info.dtype:
            raise ValueError(f"{name}: {rows.dtype} in place of {info.dtype}")
        data = bytes_of(rows).numpy().data
        descriptor, offset = self._place[name]
        self._put(descriptor, data, offset + start * info.row_bytes)
        with self._lock:
            self._written[name] += len(data)

    def _put(self, descriptor: int, data: memoryview, offset: int) -> None:
        with writing(self.folder.parent):
            while data:
                count = os.pwrite(descriptor, data, offset)
                data, offset = data[count:], offset + count

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()
        if kind is not None:
            return
        for name, info in self.layout.items():
            if self._written[name] != info.num_bytes:
                raise ValueError(f"{name}: {self._written[name]} bytes written of {info.num_bytes}")
        if self._split.is_sharded:
            weight_map = self._split.tensor_to_filename
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.folder / INDEX).write_text(text, encoding="utf-8")

    def _close(self) -> None:
        for descriptor in {descriptor for descriptor, _ in self._place.values()}:
            os.close(descriptor)
        self._place.clear()


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes as they lie in a file, uint8 (num_bytes,)."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def header(layout: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, int]]:
    """A safetensors file's bytes before its tensors, and every tensor's offset in the file."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    offset = 0
    for name in sorted(layout, key=lambda name: (ORDER[layout[name].dtype], name)):
        info, starts[name] = layout[name], offset
        offset += info.num_bytes
        content[name] = {
            "dtype": NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [starts[name], offset],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}
