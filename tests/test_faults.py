"""A write that fails is one line and leaves what stood there; the same call finishes afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merit.errors import message_of
from merit.io.artifacts import atomic_folder, partial_folder, write_json, write_jsonl
from merit.io.checkpoint_writer import CheckpointWriter
from merit.io.checkpoints import TensorInfo, save_tensors
from merit.io.rows import create_array

SIZE = 10_000  # of what is written


def folder(path: Path, value: int) -> None:
    with atomic_folder(path) as new:
        (new / "a").write_bytes(bytes([value]) * SIZE)


def partial(path: Path, value: int) -> None:
    with partial_folder(path, f"{value:016x}") as new:
        (new / "a").write_bytes(bytes([value]) * SIZE)


def checkpoint(path: Path, value: int) -> None:
    rows = torch.full((SIZE,), value, dtype=torch.uint8)
    layout = {"a": TensorInfo(rows.dtype, (SIZE,))}
    with atomic_folder(path) as new, CheckpointWriter(new, layout) as writer:
        writer.write("a", rows)


def array(path: Path, value: int) -> None:
    with atomic_folder(path) as new:
        create_array(new / "a.npy", np.dtype(np.uint8), (SIZE,))[:] = value


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "json": lambda path, value: write_json(path, [value] * SIZE),
    "jsonl": lambda path, value: write_jsonl(path, [{"a": value}] * SIZE),
    "tensors": lambda path, value: save_tensors({"a": torch.full((SIZE,), value)}, path),
    "folder": folder,
    "partial": partial,
    "checkpoint": checkpoint,
    "array": array,
}
CALLS = ("open", "replace", "pwrite", "fdopen", "chmod", "link", "mkdir", "posix_fallocate")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)


def once(call: Callable[..., Any], code: int) -> Callable[..., Any]:
    """The call, of which the first fails."""
    calls: list[int] = []

    def failing_first(*args: Any, **named: Any) -> Any:
        calls.append(code)
        if len(calls) == 1:
            raise OSError(code, os.strerror(code), "x")
        return call(*args, **named)

    return failing_first


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def failing(
    path: Path, write: Callable[[Path, int], None], before: dict[str, bytes]
) -> BaseException | None:
    """What the second writing raises; what stood at `path` is still there then."""
    try:
        write(path, 2)
    except Exception as error:
        text = message_of(error)
        assert text
        assert len(text.splitlines()) == 1
        assert content(path) == before
        left = {p.name for p in path.parent.iterdir()} - {path.name}
        assert all(name.startswith(f".{path.name}.") for name in left)  # unfinished, of this key
        assert len(left) <= 1
        return error
    return None


@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path, write, failed = tmp_path / "x", WRITERS[kind], 0
    for call in CALLS:
        for code in ERRORS:
            write(path, 1)
            before = content(path)
            with monkeypatch.context() as patch:
                patch.setattr(os, call, once(getattr(os, call), code))
                failed += failing(path, write, before) is not None
            write(path, 2)
            assert content(path) != before
    assert failed or kind == "tensors"  # safetensors writes by itself
