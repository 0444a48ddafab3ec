"""One message for a disk that is full and for what is no file, whichever library is used."""

from __future__ import annotations

import contextlib
import errno
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from merit.errors import MeritError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def check_file(path: Path) -> None:
    """Raise MeritError for a named pipe, a socket or a device, of which a reader may see no end.

    What is missing or a folder passes: whoever opens it says so.
    """
    with contextlib.suppress(OSError, ValueError):  # ValueError: NUL in the name
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise MeritError(f"{path}: a pipe, socket or device, no file; copy what it gives")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """For a block that writes `path`: MeritError, naming it and the free space, on a full disk.

    safetensors says so in words of its own (SafetensorError, "os error 28") and leaves nothing of
    the file; another file of that name stays as it was.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in NO_SPACE:
            if error.errno == errno.EIO and error.filename is None:
                error.filename = str(path)
            raise  # merit.errors has a line for it
        free = shutil.disk_usage(path.parent).free
        raise MeritError(
            f"{path}: cannot be written ({error}); {free / 1e9:.2f} GB are free on its disk. Free "
            "some and run the same command again: what was finished is kept"
        ) from None
