"""Progress of long work on stderr: done, total, time left; and the timing file of a stage."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from types import TracebackType

from merit.io.artifacts import write_json


class Progress:
    """One changing line on a terminal; elsewhere a line at most every ten seconds."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.began = self.shown = time.monotonic()
        self.tty = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def advance(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown < (0.2 if self.tty else 10.0):
            return
        self.shown = now
        left = (now - self.began) * (self.total - self.done) / max(1, self.done)
        line = f"{self.label}: {self.done}/{self.total}, about {left:.0f} s left"
        end = "" if self.tty else "\n"
        print(f"\r\x1b[K{line}" if self.tty else line, end=end, file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.tty:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def write_timing(folder: Path, stage: str, item: str | None, began: float) -> None:
    """timings/<stage>[-<item>].json: wall-clock seconds since `began` and the peak memory (MB)."""
    name = "-".join(part for part in (stage, item) if part)
    write_json(
        folder / "timings" / f"{name}.json",
        {
            "stage": name,
            "seconds": time.monotonic() - began,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
    )
