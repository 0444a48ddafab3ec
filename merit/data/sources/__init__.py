"""Where an experiment's data come from: one writer per source, imported only if it is used.

A writer takes the experiment's `data` settings and an empty folder, and fills the folder with the
mixture, the base's data and the benchmarks in the canonical formats (docs/formats.md).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCES = {  # `data.source` -> module:function
    "mini_world": "merit.mini.world.write_world:write_mini_world",
    "mini_text": "merit.mini.world.write_world:write_mini_world",
    "public": "merit.data.mixture:write_public",
    "jsonl": "merit.data.mixture:write_own",
    "reasoning_gym": "merit.data.sources.reasoning:write_reasoning",
}


def writer(source: str) -> Callable[[Any, Path], None]:
    """The function that writes a source's data."""
    found: Callable[[Any, Path], None] = pkgutil.resolve_name(SOURCES[source])
    return found
