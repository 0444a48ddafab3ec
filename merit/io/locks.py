"""Locks between processes: who writes a file or folder, which jobs run, which slots are taken.

They are the kernel's (flock), so a lock ends with the process that has it, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from merit.errors import MeritError


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Only this process writes `path` while the block runs; the lock is the hidden .<name>.lock.

    Raises MeritError that names `what` is being done (`branch x is being trained`) and by whom.
    """
    file = try_lock(lock_file(path))
    if file is None:
        raise MeritError(
            f"{path}: {what} by {lock_owner(path)} already; wait for it or end it, then run the "
            "same command again"
        )
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            lock_file(path).unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(path: Path, needed: bool = False) -> Iterator[None]:
    """Mark a folder as one in which this process writes, where the file system has locks.

    Raises OSError if `needed` and the lock cannot be had.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.nullcontext() if needed else contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def lock_file(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


def lock_owner(path: Path) -> str:
    """Which process has, or had last, `path` to itself."""
    with contextlib.suppress(FileNotFoundError):
        return lock_file(path).read_text(encoding="utf-8").strip() or "another process"
    return "another process"  # and it has just ended


def try_lock(path: Path) -> IO[str] | None:
    """The file, locked until it and every copy that a child inherited are closed; None where
    another process has it.

    Raises MeritError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            file.close()
            raise MeritError(
                f"{path}: the file system refuses to lock it ({error.strerror}); mount it with "
                "locks (Lustre: `flock`), or keep artifacts/ elsewhere"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # who had it has just removed it: what is locked is no longer at `path`
