"""The one exception that stands for a user's mistake or a broken input."""

from __future__ import annotations

import errno


class MeritError(Exception):
    """Bad input: the message names the file, line or key, what was found and what to do.

    The command line prints only the message, without a traceback, and exits with status 2.
    """


def message_of(error: BaseException) -> str | None:
    """The one line that a user reads of this error; None for a bug, which keeps its traceback."""
    if isinstance(error, MeritError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left on the disk ({error.filename}); free some and run the same command "
            "again: what was finished is kept"
        )
    return None
