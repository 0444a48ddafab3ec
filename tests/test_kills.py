"""What is killed and typed again is the same bytes: the short form of benchmarks/kills.py."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from benchmarks import kills


def test_six_kills(smoke_folder: Path, tmp_path: Path) -> None:
    """A stage without torch, one with it, a training, a merge of own checkpoints."""
    folder = tmp_path / "killed"
    shutil.copytree(smoke_folder, folder, ignore=shutil.ignore_patterns(".git", "mlruns", "cache"))
    kills.large_branches(folder)
    names = ["partition"] * 2 + ["merge", "a branch"] + ["merit merge"] * 2
    found = kills.disturbed(folder.resolve(), names, random.Random(0))
    assert found.total() == len(names)
