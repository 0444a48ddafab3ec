"""Rooms know only the rooms to their left; the miniature worlds are reached only by name."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from merit.data.sources import SOURCES
from merit.train.registry import INITIALISERS, PRETRAINING

ROOT = Path(__file__).parents[1]
ROOMS = (  # from left to right; rooms of one entry do not know each other
    *(("errors", "pins"), ("method",), ("config",), ("io",), ("data",), ("train", "partition")),
    *(("merge",), ("eval",), ("check", "track"), ("run",)),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}


def imports() -> Iterator[tuple[str, str, str]]:
    """(room, file, absolute name) of all that merit's files import, inside functions too."""
    for folder in ("merit", "eval"):  # merit/eval is a link, which rglob does not follow
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT)
            place = file if folder == "merit" else "merit" / file
            package = ".".join(place.parts[:-1])
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    origin = "." * node.level + (node.module or "")
                    origin = importlib.util.resolve_name(origin, package)
                    names = [f"{origin}.{alias.name}" for alias in node.names]
                yield from ((place.parts[1], file.as_posix(), name) for name in names)


def test_rooms_know_only_what_is_to_their_left() -> None:
    found = set()
    for room, file, name in imports():
        other = name.split(".")[1] if name.startswith("merit.") else ""
        if room in RANK and (other == "mini" or (other in RANK and other != room)):
            found.add((file, name, other != "mini" and RANK[other] < RANK[room]))
    assert len([entry for entry in found if entry[2]]) > 100  # the search finds imports
    assert [entry[:2] for entry in sorted(found) if not entry[2]] == []


def test_worlds_know_no_evaluation_and_measuring_knows_no_drawing() -> None:
    every = list(imports())
    assert [f for room, f, name in every if room == "mini" and name.startswith("merit.eval")] == []
    drawing = {file for _, file, name in every if name.startswith("merit.eval.report")}
    assert "eval/stages/report.py" in drawing
    measuring = ("eval/measuring/", "eval/stages/study.py")
    assert [f for f in drawing if f.startswith(measuring) or f.endswith("/measure.py")] == []


@pytest.mark.parametrize(
    "location", [*SOURCES.values(), *INITIALISERS.values(), *PRETRAINING.values()]
)
def test_what_a_registry_names_is_there(location: str) -> None:
    module, function = location.split(":")
    path = ROOT / f"{module.replace('.', '/')}.py"
    defined = ast.parse(path.read_text(encoding="utf-8")).body
    assert function in [node.name for node in defined if isinstance(node, ast.FunctionDef)]
