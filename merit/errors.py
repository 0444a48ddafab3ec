"""The one exception that stands for a user's mistake or a broken input."""


class MeritError(Exception):
    """Bad input: the message names the file, line or key, what was found and what to do.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
