"""What a user's mistake or a broken input raises, and what a signal; others in plain words."""

from __future__ import annotations

import errno
import os
import signal

STOPPED = os.EX_TEMPFAIL  # 75: the exit status of a training that was stopped and can resume
STOPPING = (signal.SIGTERM, signal.SIGUSR2)  # Slurm says the second before a time limit
BUG = (
    "merit: this is a bug of merit, or a library's that it does not know: please report the "
    "command and the lines above"
)
# what is wrong with a machine or a folder: nothing that a program could mend
WHAT_TO_DO = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        "free some space and run the same command again: what was finished is kept",
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "change its permissions, or name a folder in which you may write",
    ),
    errno.EISDIR: "a file is expected there; remove or rename the folder",
    errno.ENOTDIR: "a folder is expected there; remove or rename the file",
    errno.ENAMETOOLONG: "give it a shorter name",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (`ulimit -n`)"),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT), "the disk fails; run the same command again"
    ),
}
OUT_OF_MEMORY = (
    "out of memory ({}). In training, lower `training.pack_tokens` or set "
    "`training.gradient_checkpointing`; raise `launch.gpus_per_branch`; run fewer at a time "
    "(`workers` of params.yaml)"
)
READERS_DIED = (
    "a process that reads images died, mostly since /dev/shm or the memory is full: give a "
    "container more (`docker run --shm-size 8g`), or lower `training.workers`; 0 needs none"
)
# of torch, for GPUs that are there
NO_GPU = ("NVIDIA driver", "No CUDA GPUs are available", "busy or unavailable", "ECC error")
GPU_ADVICE = (
    "look at `nvidia-smi` for its driver, its number and what runs on it; CUDA_VISIBLE_DEVICES "
    "names others, or nothing for the CPU"
)
REPRO = ("dvc", "mlflow", "lm_eval", "vlmeval", "datasets")  # of the extra `repro`


class MeritError(Exception):
    """Bad input: the message names the file, line or key, what was found and what to do.

    The command line prints only the message, without a traceback, and exits with status 2.
    """


class Stopped(Exception):
    """A signal asked the work to end; its checkpoint is written, and it resumes from there."""


def message_of(error: BaseException) -> str | None:
    """The one line that a user reads of this error; None for a bug, which keeps its traceback."""
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, MeritError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in REPRO:
        return f"package {error.name} is missing: pip install 'merit[repro]'"
    if isinstance(error, OSError) and error.errno in WHAT_TO_DO:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{(error.strerror or first).lower()}; {WHAT_TO_DO[error.errno]}"
    names = {kind.__name__ for kind in type(error).__mro__}  # of libraries that are not imported
    if names & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in first:
        return OUT_OF_MEMORY.format(first.split(". ")[0] or "of this machine")
    if any(words in first for words in NO_GPU):
        return f"{first.split('. ')[0]}; {GPU_ADVICE}"
    if first.startswith("DataLoader worker"):  # "is killed by signal", "exited unexpectedly"
        return READERS_DIED
    return None
