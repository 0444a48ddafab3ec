"""Folders that survive a kill: reused with the same key, dropped with another."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from merit.errors import MeritError
from merit.io.artifacts import (
    atomic_folder,
    atomic_write,
    open_partial,
    partial_folder,
    value_hash,
)
from merit.io.rows import create_rows, scratch_rows, write_row

KEY, OTHER = value_hash("settings"), value_hash("other settings")
WRITER = """
import os, signal, sys
from pathlib import Path
from merit.io.artifacts import partial_folder
with partial_folder(Path(sys.argv[1]), sys.argv[2]) as folder:
    (folder / "first").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path: Path, mask: int) -> None:
    """safetensors writes 0600, which nobody else could read on a shared file system."""
    before = os.umask(mask)
    try:
        for write in (atomic_folder, partial(partial_folder, key=KEY)):
            with write(tmp_path / "out") as folder:
                (folder / "deeper").mkdir()
                save_file({"a": np.zeros(1)}, folder / "deeper" / "x.safetensors")
                (folder / "linked").write_text("x")
                os.chmod(folder / "linked", 0o444)  # as DVC's cache
            modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").rglob("*")}
            assert modes["x.safetensors"] == 0o666 & ~mask
            assert modes["linked"] == 0o444
            assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
        atomic_write(tmp_path / "y", "y")
        assert (tmp_path / "y").stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)


def test_what_a_killed_writer_left_is_there_again_and_takes_the_place_at_the_end(
    tmp_path: Path,
) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("old")
    killed = subprocess.run([sys.executable, "-c", WRITER, str(target), KEY], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(p.name for p in target.iterdir()) == ["old"]
    with partial_folder(target, KEY) as folder:
        assert (folder / "first").read_text() == "1"  # and no lock of the dead writer's
        (folder / "second").write_text("2")
    assert sorted(p.name for p in target.iterdir()) == ["first", "second"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_writer_left_without_a_key_is_removed_by_the_next(tmp_path: Path) -> None:
    """And what another writer is at stays."""
    target = tmp_path / "out"
    writer = WRITER.replace("partial_folder", "atomic_folder").replace(", sys.argv[2]", "")
    killed = subprocess.run([sys.executable, "-c", writer, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    with atomic_folder(target) as first, atomic_folder(target) as second:
        (first / "text").write_text("1")
        (second / "text").write_text("2")
        assert not left.exists()
    assert (target / "text").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_key_starts_anew_and_removes_what_is_stale_of_this_target_alone(
    tmp_path: Path,
) -> None:
    for name in ("out", "out.more"):
        (open_partial(tmp_path / name, KEY) / "part").write_text("1")
    (tmp_path / ".out.a_temporary").mkdir()
    assert list(open_partial(tmp_path / "out", OTHER).iterdir()) == []
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {".out.a_temporary", f".out.more.{KEY[:16]}", f".out.{OTHER[:16]}"}


def test_two_writers_of_one_folder_are_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with partial_folder(target, KEY) as folder:
        (folder / "mine").write_text("1")
        with (
            pytest.raises(MeritError, match="out: is being written by process"),
            partial_folder(target, KEY),
        ):
            pass
    assert os.listdir(target) == ["mine"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_without_locks_long_work_is_refused_and_short_work_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """What may be another writer's folder is left alone then."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    target, other = tmp_path / "out", tmp_path / ".out.abcdefgh.new"
    other.mkdir()
    with (
        pytest.raises(MeritError, match=r"out\.lock: the file system refuses to lock it \(.*\); "),
        partial_folder(target, KEY),
    ):
        pass
    with atomic_folder(target) as folder:
        (folder / "text").write_text("1")
    assert (target / "text").read_text() == "1"
    assert other.is_dir()


# --- rows on disk -------------------------------------------------------------------------------


def test_rows_have_the_bytes_of_numpy_whoever_writes_them_in_whatever_order(
    tmp_path: Path,
) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "whole.npy", rows)
    path = tmp_path / "rows.npy"
    for index in (2, 0, 1):
        create_rows(path, 3, 4)  # a second process' call: takes nothing away
        write_row(path, index, rows[index])
    assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    for index, row in ((3, rows[0]), (-1, rows[0]), (0, rows[0, :3])):
        with pytest.raises(ValueError, match=r"does not fit into \(3, 4\)"):
            write_row(path, index, row)


def test_scratch_rows_have_no_name_and_are_gone_with_the_block(tmp_path: Path) -> None:
    with scratch_rows(tmp_path / "new", 3, 4) as rows:
        rows[1] = 2.0
        assert rows.sum() == 8.0
        assert isinstance(rows, np.memmap)
        assert list((tmp_path / "new").iterdir()) == []
