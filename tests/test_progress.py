"""merit.io.progress: what a terminal and what a log see, on a clock that the test sets."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest

from merit.io.artifacts import read_json
from merit.io.progress import Progress, write_timing


class Stream(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("tqdm.std.time", found)
    return found


def test_a_log_gets_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    log = Stream(tty=False)
    monkeypatch.setattr(sys, "stderr", log)
    with Progress("losses", 8) as progress:
        for second in (3, 9, 10, 19, 25):
            clock.now = 1000.0 + second
            progress.advance()
        clock.now = 1080.0
        progress.advance(2)
        assert progress.n == 7
    # 3 of 8 in 10 s leave 16.7 s, 5 in 25 s 15 s, 7 in 80 s 11.4 s
    assert log.getvalue().splitlines() == [
        "losses: 3/8, about 00:16 left",
        "losses: 5/8, about 00:15 left",
        "losses: 7/8, about 00:11 left",
    ]
    assert log.getvalue().endswith("left\n")


def test_a_terminal_gets_one_bar_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    terminal = Stream(tty=True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    with Progress("losses", 4) as progress:
        clock.now += 5
        progress.advance()
        clock.now += 0.1
        progress.advance()  # too soon to be drawn
    drawn = terminal.getvalue()
    assert re.findall(r"losses: +(\d+)%.*?(\d/4) \[(\d\d:\d\d)<([\d:?]+)", drawn) == [
        ("0", "0/4", "00:00", "?"),
        ("25", "1/4", "00:05", "00:15"),
    ]
    assert "\n" not in drawn
    assert drawn.split("\r")[-2].strip() == ""  # wiped
    assert drawn.endswith("\r")


def test_timing_of_a_stage(tmp_path: Path) -> None:
    write_timing(tmp_path, "train", "m-s1-g0", time.monotonic() - 5)
    write_timing(tmp_path, "data", None, time.monotonic())
    found = read_json(tmp_path / "timings" / "train-m-s1-g0.json")
    assert set(found) == {"stage", "seconds", "peak_memory_mb"}
    assert found["stage"] == "train-m-s1-g0"
    assert 5 <= found["seconds"] < 60
    assert found["peak_memory_mb"] > 1
    assert read_json(tmp_path / "timings" / "data.json")["stage"] == "data"
