"""What the README tells a reader to do and to open exists."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from eval.report.pages import BEGIN, END
from merit.cli import _parser
from merit.config import load_experiment
from merit.methods import plan

ROOT = Path(__file__).parent.parent
PAGES = [Path("README.md"), *(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(r"```sh\n(.*?)```|`([^`\n]+)`", re.DOTALL)
# the report writes this page, so a checkout without results lacks it
GENERATED = {"reports/README.md"}


def commands(page: str, program: str) -> list[str]:
    """Every use of `program` in code, comments cut off."""
    code = [line for match in CODE.findall(page) for line in "\n".join(match).splitlines()]
    lines = [line.split(" #")[0].strip().removeprefix(".venv/bin/") for line in code]
    return sorted({line for line in lines if line.startswith(f"{program} ")})


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {c.split()[1] for c in commands((ROOT / page).read_text(encoding="utf-8"), "make")}
    assert named <= targets


def test_the_fixed_targets_are_explained() -> None:
    named = {command.split()[1] for command in commands(README, "make")}
    assert named == {"repro", "smoke", "test", "ui", "lint"}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_merit_commands_parse(page: Path) -> None:
    for command in commands((ROOT / page).read_text(encoding="utf-8"), "merit"):
        try:
            _parser().parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"{page}: `{command}` is no command")


def test_the_branch_in_the_example_exists() -> None:
    (command,) = [c for c in commands(README, "merit") if c.startswith("merit train")]
    *_, experiment, branch = command.split()
    assert branch in plan(load_experiment(experiment, ROOT / "experiments")).branches


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [link for link in links if "://" not in link]
    missing = [
        link
        for link in local
        if link not in GENERATED and not ((ROOT / page).parent / link).exists()
    ]
    assert missing == []


def test_functions_of_the_method_are_where_the_table_says() -> None:
    rows = re.findall(r"^\|.*\| ((?:`\w+`(?:, )?)+) in \[([\w/.]+)\]", README, re.MULTILINE)
    assert len(rows) >= 7
    for functions, file in rows:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for function in re.findall(r"`(\w+)`", functions):
            assert callable(getattr(module, function)), f"{file}: {function}"


def test_the_results_have_their_place() -> None:
    assert README.count(BEGIN) == README.count(END) == 1
    assert README.index(BEGIN) < README.index(END)
