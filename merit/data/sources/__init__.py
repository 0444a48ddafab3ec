"""Where an experiment's data come from: one writer per source, imported only if it is used.

A writer takes the experiment's `data` settings and an empty folder, and fills the folder with the
mixture, the base's data and the benchmarks in the canonical formats (docs/formats.md).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merit.errors import MeritError

SOURCES = {  # `data.source` -> module:function, for the generated worlds
    "mini_world": "merit.mini.world.write_world:write_mini_world",
    "mini_text": "merit.mini.text.write_text:write_mini_text",
}


def writer(source: str) -> Callable[[Any, Path], None]:
    """The function that writes a source's data. Raises MeritError for an unknown source."""
    if source in SOURCES:
        found: Callable[[Any, Path], None] = pkgutil.resolve_name(SOURCES[source])
        return found
    from merit.data.mixture import write_own, write_public
    from merit.data.sources.reasoning import write_reasoning

    writers: dict[str, Callable[[Any, Path], None]] = {
        **{"public": write_public, "jsonl": write_own, "reasoning_gym": write_reasoning}
    }
    if source not in writers:
        known = sorted([*SOURCES, *writers])
        raise MeritError(f"key `data.source`: found {source!r}, expected one of {known}")
    return writers[source]
