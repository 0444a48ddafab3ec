"""docs/method.md: numbers of its formulas, functions of its table, and who cites it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
SECTIONS = [int(n) for n in re.findall(r"^## (\d+) ", PAGE, re.MULTILINE)]
EQUATIONS = [int(n) for n in re.findall(r"^ {4}.* \((\d+)\)$", PAGE, re.MULTILINE)]
CITATION = re.compile(r"docs/method\.md(?:, eq\. \((\d+)\)| (\d+)(?: and (\d+))?)")


def test_sections_and_formulas_are_numbered_in_order() -> None:
    assert list(range(1, 17)) == SECTIONS
    assert list(range(1, 55)) == EQUATIONS


def test_functions_are_where_the_table_says() -> None:
    rows = re.findall(r"^\|.*\| ((?:`\w+`(?:, )?)+) in \[([\w/.]+)\]", PAGE, re.MULTILINE)
    assert len(rows) >= 24
    for functions, file in rows:
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = importlib.import_module(name.replace("eval.", "merit.eval.", 1))
        for function in re.findall(r"`(\w+)`", functions):
            assert callable(getattr(module, function)), f"{file}: {function}"


def test_what_the_code_cites_exists() -> None:
    wrong = []
    for folder in ("merit", "eval", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for found in CITATION.finditer(path.read_text(encoding="utf-8")):
                equation, *sections = (int(n) if n else None for n in found.groups())
                known = equation in (None, *EQUATIONS) and set(sections) <= {None, *SECTIONS}
                wrong += [] if known else [f"{path.relative_to(ROOT)}: {found.group()}"]
    assert wrong == []
