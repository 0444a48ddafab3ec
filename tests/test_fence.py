"""The miniature worlds stand apart: what is general reaches them by name alone."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from merit.data.sources import SOURCES, writer
from merit.errors import MeritError
from merit.train.base_phases import INITIALISERS, PRETRAINING

ROOT = Path(__file__).parents[1]
MINI = "merit.mini"


def imported(path: Path) -> set[str]:
    """The absolute names of all that a file imports, inside functions too."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    package = module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(origin, package)
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def importers(folder: str, package: str) -> set[str]:
    """The files under `folder` that import `package` or something in it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if any(f"{name}.".startswith(f"{package}.") for name in imported(path))
    }


def test_nothing_general_imports_the_miniature_worlds() -> None:
    general = {
        path for folder in ("merit", "eval") for path in importers(folder, MINI)
        if not path.startswith("merit/mini/")
    }  # fmt: skip
    assert general == set()


def test_the_miniature_worlds_do_not_know_the_evaluation() -> None:
    assert importers("merit/mini", "eval") == set()
    assert "merit/mini/world/write_world.py" in importers(
        "merit/mini", MINI
    )  # the search finds imports


def test_measuring_does_not_know_drawing() -> None:
    """Studies give numbers and files; what the report draws from them is its own."""
    measuring = ("eval/studies/", "eval/measuring/", "eval/stages/study.py")
    drawing = importers("eval", "merit.eval.report")
    assert "eval/stages/report.py" in drawing  # the search finds imports
    assert [path for path in sorted(drawing) if path.startswith(measuring)] == []


@pytest.mark.parametrize(
    "location", [*SOURCES.values(), *INITIALISERS.values(), *PRETRAINING.values()]
)
def test_what_a_registry_names_is_there(location: str) -> None:
    module, function = location.split(":")
    path = ROOT / f"{module.replace('.', '/')}.py"
    defined = ast.parse(path.read_text(encoding="utf-8")).body
    assert function in [node.name for node in defined if isinstance(node, ast.FunctionDef)]


def test_an_unknown_source_is_refused_with_those_that_there_are() -> None:
    message = r"`data\.source`: found 'vision_flan', expected one of \['jsonl', 'mini_text', "
    with pytest.raises(MeritError, match=message):
        writer("vision_flan")
