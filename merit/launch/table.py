"""How the branches are: on a terminal a table that is redrawn, in a log a line a change."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

HEADERS = ("branch", "state", "step", "time", "job", "")
ORDER = ("running", "unknown", "waiting", "failed", "ended", "finished")


@dataclass(frozen=True)
class Row:
    """One branch."""

    branch: str
    state: str
    detail: str = ""
    job: str = ""
    step: str = ""
    seconds: float = 0.0  # since it was submitted

    @property
    def cells(self) -> tuple[str, ...]:
        time_taken = clock(self.seconds) if self.seconds else ""
        return (self.branch, self.state, self.step, time_taken, self.job, self.detail)


class Table:
    """Rows on stderr; branches whose row is not given again keep their last one."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._num_lines = 0

    def show(self, rows: Sequence[Row]) -> None:
        before = self.rows
        self.rows = {**before, **{row.branch: row for row in rows}}
        if sys.stderr.isatty():
            self._redraw()
            return
        for row in rows:
            old = before.get(row.branch)
            if old is None or (old.state, old.job) != (row.state, row.job):
                words = [row.state, row.job, row.detail and f"({row.detail})"]
                stamp = time.strftime("%H:%M:%S")
                print(stamp, f"{row.branch}:", *filter(None, words), file=sys.stderr, flush=True)

    def end(self) -> None:
        """What comes next stands below the table."""
        self._num_lines = 0

    def _redraw(self) -> None:
        size = shutil.get_terminal_size()
        lines = [line[: size.columns - 1] for line in self.lines(size.lines - 4)]
        up = f"\x1b[{self._num_lines}F" if self._num_lines else ""
        print(up + "\x1b[J" + "\n".join(lines), file=sys.stderr, flush=True)
        self._num_lines = len(lines)

    def lines(self, height: int) -> list[str]:
        """The table, running branches first, in at most `height` rows, and how many are how."""
        rows = sorted(self.rows.values(), key=lambda row: ORDER.index(row.state))
        body = [row.cells for row in rows[: max(1, height)]]
        counts = Counter(row.state for row in rows)
        total = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
        return [*tabulate(body, HEADERS, tablefmt="simple").splitlines(), total]


def clock(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds: "2h05m", "3m20s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"
