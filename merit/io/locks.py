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
    """Only this process, and children that inherit the lock, write `path` while the block runs; the
    lock is the hidden .<name>.lock.

    Raises MeritError that names `what` is being done (`branch x is being trained`) and by whom, or
    that the file system has no locks.
    """
    place = path.parent / f".{path.name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place, f"{path}: {what}") as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


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


def _locked(place: Path, what: str) -> IO[str]:
    while True:
        file = place.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                owner = file.read().strip() or "another process"
            raise MeritError(
                f"{what} by {owner} already; wait for it or end it, then run the same command again"
            ) from None
        except OSError as error:
            file.close()
            raise MeritError(
                f"{place}: the file system refuses to lock it ({error.strerror}); mount it with "
                "locks (Lustre: `flock`), or keep artifacts/ elsewhere"
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), place.stat()):
                return file
        file.close()  # who had it has just removed it: what is locked is no longer at `place`
