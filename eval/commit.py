"""Which commit numbers come from."""

from __future__ import annotations

import subprocess
from pathlib import Path

# what the numbers depend on: not dvc.lock, which a pipeline writes while it runs
SOURCES = ("merit", "eval", "experiments", "params.yaml")


def git_commit(folder: Path = Path()) -> str:
    """The checked-out commit, "-dirty" with uncommitted sources, "unknown" outside a git tree."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", *SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit
