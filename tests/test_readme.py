"""What the pages tell a reader to type works, and what they link to exists."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from merit.config import load_experiment
from merit.eval.report.index import BEGIN, END
from merit.run.cli import _parser
from merit.run.execute import check_items
from merit.run.stages import STAGES, Context

ROOT = Path(__file__).parent.parent
PAGES = [
    *(Path("README.md"), Path("CONTRIBUTING.md")),
    *sorted(path.relative_to(ROOT) for folder in ("docs", "reports/tuning")
            for path in (ROOT / folder).glob("*.md")),
]  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")
MINIMAL = ROOT / "examples" / "minimal.py"
CODE = re.compile(r"```sh\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page: Path, program: str) -> list[list[str]]:
    """The arguments of every use of `program` in a page's code, without comments."""
    code = [line for match in CODE.findall(text_of(page)) for line in "\n".join(match).splitlines()]
    lines = {line.split(" #")[0].strip().removeprefix(".venv/bin/") for line in code}
    return [shlex.split(line)[1:] for line in sorted(lines) if line.startswith(f"{program} ")]


def run(*command: str) -> str:
    """What the command prints, run in the repository's root."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout


# --- the commands ---------------------------------------------------------------------------------


def test_make_knows_its_targets_and_explains_them() -> None:
    named = {targets[0] for page in PAGES for targets in commands(page, "make")}
    assert named >= {"repro", "test", "smoke", "ui", "lint"}
    run("make", "-n", *sorted(named))
    printed = run("make")
    assert [target for target in named if f"make {target} " not in printed] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_merit_commands_parse_and_their_stages_and_items_exist(page: Path) -> None:
    for arguments in commands(page, "merit"):
        if len(arguments) == 1:
            arguments = [*arguments, "--help"]  # a command that is spoken of
        try:
            options = _parser().parse_args(arguments)
        except SystemExit as ended:
            if ended.code:
                pytest.fail(f"{page}: `merit {shlex.join(arguments)}` is no command")
            continue
        names = [options.experiment] if getattr(options, "experiment", None) else []
        stages = getattr(options, "stages", None) or list(STAGES)
        for name in names:
            if (ROOT / "experiments" / f"{name}.yaml").is_file():
                experiment = load_experiment(name, ROOT / "experiments")
                check_items(Context.of(experiment), stages, getattr(options, "only", []))
            else:
                assert name in ("mine", "own") or name.isupper() or name[0] == "<", (
                    f"{page}: {name}"
                )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_dvc_commands_parse(page: Path) -> None:
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    for arguments in commands(page, "dvc"):
        try:
            get_main_parser().parse_args(arguments)
        except (DvcParserError, SystemExit):
            pytest.fail(f"{page}: `dvc {shlex.join(arguments)}` is no command")
        for target in re.findall(r"\b([a-z]+)@\w+", " ".join(arguments)):
            assert target in STAGES


# --- the method on one page -----------------------------------------------------------------------


def test_the_method_on_one_page(capsys: pytest.CaptureFixture[str]) -> None:
    values = runpy.run_path(str(MINIMAL))
    groups = dict(zip(values["tasks"], values["groups"].tolist(), strict=True))
    assert Counter(groups.values()) == {0: 2, 1: 2, 2: 2, 3: 2}
    # task i and task i + 4 draw from the same words
    assert all(groups[f"task{i}"] == groups[f"task{i + 4}"] for i in range(4))
    assert values["weights"] == [0.25] * 4
    losses = dict(re.findall(r"loss of (\w+): ([\d.]+)", capsys.readouterr().out))
    assert float(losses["base"]) == pytest.approx(4.18, abs=0.05)  # ln 64 = 4.16
    assert float(losses["merged"]) < float(losses["base"]) - 0.2


def test_readme_shows_it() -> None:
    assert re.findall(r"```python\n(.*?)```", README, re.DOTALL) == [MINIMAL.read_text("utf-8")]


# --- the pages ------------------------------------------------------------------------------------


def test_readme_is_short_and_begins_with_a_command() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert lines.index("```sh") < 40


def test_the_results_have_their_place() -> None:
    assert [README.count(marker) for marker in (BEGIN, END)] == [1, 1]
    assert README.index(BEGIN) < README.index(END)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    for link in links:
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    text = text_of(page)
    for name in re.findall(r"`((?:merit|eval)(?:\.\w+)+)`", text):
        if (ROOT / "merit" / name.split(".")[1]).is_dir() or name.startswith("eval."):
            assert is_known(name.split(".")), f"{page}: {name}"
    for name in re.findall(r"`((?:merit|eval|tests|experiments|examples)/[\w./-]+)`", text):
        assert name.endswith(("own.yaml", "mine.yaml")) or (ROOT / name).exists(), f"{page}: {name}"


def is_known(parts: list[str]) -> bool:
    """Whether a dotted name is a module, or a class or function of one."""
    path = ROOT.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py")
    return module.is_file() and bool(re.search(rf"(class|def) {parts[-1]}\b", module.read_text()))
