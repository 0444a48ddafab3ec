"""Progress of long work on stderr: done, total, time left; and the timing file of a stage."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from merit.io.artifacts import write_json


class Progress(tqdm):
    """A bar on a terminal, gone at the end; in a log, or of a process among others, a line of text
    at most every ten seconds.

    `with Progress(label, total) as progress: ... progress.advance()`. The time left follows from
    the average speed: work that finishes in bursts would make a recent one jump.
    """

    monitor_interval = 0  # no watching thread: with miniters=1 every advance looks at the clock

    def __init__(self, label: str, total: int) -> None:
        options: dict[str, Any] = {
            "file": sys.stderr,
            "mininterval": 0.2,
            "colour": None if os.environ.get("NO_COLOR") else "blue",
            "ncols": shutil.get_terminal_size().columns - 1,  # 79 if the terminal names none
        }
        if multiprocessing.parent_process() or not sys.stderr.isatty():
            options = {
                "file": _Lines(sys.stderr),
                "mininterval": 10,
                "delay": 10,
                "bar_format": "{desc}: {n_fmt}/{total_fmt}, about {remaining} left",
            }
        # `disable` is said, or TQDM_DISABLE, which quiets the libraries' bars, would decide
        super().__init__(
            desc=label, total=total, leave=False, miniters=1, smoothing=0, disable=False, **options
        )

    def advance(self, count: int = 1) -> None:
        """`count` more are done, `n` in all."""
        self.update(count)


class _Lines:
    """A log as tqdm's terminal: what would be redrawn in place becomes a line of its own."""

    def __init__(self, log: TextIO) -> None:
        self.log = log

    def write(self, text: str) -> None:
        if line := text.strip():
            self.log.write(f"{line}\n")

    def flush(self) -> None:
        self.log.flush()


def clock(seconds: float) -> str:
    """Seconds as a person says them: "45 s", "3:20 min", "2:05 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


def write_timing(folder: Path, stage: str, item: str | None, began: float) -> None:
    """timings/<stage>[-<item>].json: wall-clock seconds since `began` and the peak memory (MB), of
    a GPU, too, where the stage used one.
    """
    torch = sys.modules.get("torch")
    gpu = {}
    if torch is not None and torch.cuda.is_initialized():
        peaks = map(torch.cuda.max_memory_reserved, range(torch.cuda.device_count()))
        gpu = {"peak_gpu_memory_mb": max(peaks) / 2**20}
    name = "-".join(part for part in (stage, item) if part)
    write_json(
        folder / "timings" / f"{name}.json",
        {
            "stage": name,
            "seconds": time.monotonic() - began,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **gpu,
        },
    )
