"""What the pages tell a reader to do works, and what they link to exists."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from merit.config import load_experiment
from merit.config.branches import plan
from merit.eval.report.index import BEGIN, END
from merit.run.cli import _parser, main
from merit.run.stages import STAGES

ROOT = Path(__file__).parent.parent
PAGES = [
    *(Path("README.md"), Path("CONTRIBUTING.md")),
    *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(r"```sh\n(.*?)```|`([^`\n]+)`", re.DOTALL)
TARGET = re.compile(r"\b[a-z]+@\w[\w.-]*")  # <stage>@<what it is run for>
# the report writes this page, so a checkout without results lacks it
GENERATED = {"reports/README.md"}


def commands(page: str, program: str) -> list[list[str]]:
    """Every use of `program` in code as its arguments, comments cut off."""
    code = [line for match in CODE.findall(page) for line in "\n".join(match).splitlines()]
    lines = [line.split(" #")[0].strip().removeprefix(".venv/bin/") for line in code]
    found = sorted({line for line in lines if line.startswith(f"{program} ")})
    return [shlex.split(line)[1:] for line in found]


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def run(*command: str) -> str:
    """What the command prints, run in the repository's root."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout


# --- the commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_make_knows_its_targets(page: Path) -> None:
    for targets in commands(text_of(page), "make"):
        run("make", "-n", *targets)


def test_the_targets_are_explained() -> None:
    named = {target for targets in commands(README, "make") for target in targets}
    assert named >= {"repro", "test", "smoke", "ui", "lint"}
    printed = run("make")
    assert [target for target in sorted(named) if f"make {target} " not in printed] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_merit_commands_parse(page: Path) -> None:
    for arguments in commands(text_of(page), "merit"):
        if arguments == ["--help"]:
            continue  # asked below
        try:
            _parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: `merit {shlex.join(arguments)}` is no command")


def test_help_of_every_command_that_is_named() -> None:
    named = {arguments[0] for arguments in commands(README, "merit")} - {"--help"}
    assert named >= {"plan", "train"}
    for command in sorted(named):
        assert run(sys.executable, "-m", "merit", command, "--help").startswith(
            f"usage: merit {command} "
        )
    listed = run(sys.executable, "-m", "merit", "--help")
    assert set(STAGES) <= set(re.findall(r"^ {4}(\w+)", listed, re.MULTILINE))


def test_the_plan_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", symlinks=True)
    (tmp_path / "experiments" / "mini_text" / "plan.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    main(["plan"])
    main(["plan"])
    assert capsys.readouterr().out == (
        "experiments/mini_text/plan.yaml: written\nevery plan is unchanged\n"
    )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_dvc_commands_parse(page: Path) -> None:
    from dvc.cli import DvcParserError
    from dvc.cli.parser import get_main_parser

    for arguments in commands(text_of(page), "dvc"):
        try:
            get_main_parser().parse_args(arguments)
        except (DvcParserError, SystemExit):
            pytest.fail(f"{page}: `dvc {shlex.join(arguments)}` is no command")


def test_dvc_knows_every_stage_that_is_named() -> None:
    listed = run(sys.executable, "-m", "dvc", "stage", "list", "--all", "--name-only").split()
    # what is typed in an experiment's folder, as the pages do, has no path before it
    known = [name.removeprefix("experiments/mini_vision/dvc.yaml:") for name in listed]
    named = {
        target
        for page in PAGES
        for arguments in commands(text_of(page), "dvc")
        for argument in arguments
        for target in TARGET.findall(argument)
    }
    assert len(named) >= 3
    assert sorted(named - set(known)) == []


def test_the_branch_in_the_example_exists() -> None:
    trained = [arguments for arguments in commands(README, "merit") if arguments[0] == "train"]
    assert len(trained) >= 1
    for _, experiment, branch in trained:
        assert branch in plan(load_experiment(experiment, ROOT / "experiments")).branches


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    # a and d (10 + 40 samples) pull one way, b and c (20 + 30) the other
    np.save("gradients.npy", np.array([[1, 0.1], [-1, 0], [-1, 0.1], [1, 0]], dtype=np.float32))
    values: dict[str, object] = {}
    exec(code, values)
    groups = np.asarray(values["groups"])
    assert sorted(groups.tolist()) == [0, 0, 1, 1]
    assert groups[0] == groups[3]
    assert groups[1] == groups[2]


# --- the page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page: Path) -> None:
    text = text_of(page)
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
        name = file.removesuffix(".py").replace("/", ".")
        module = importlib.import_module(name.replace("eval.", "merit.eval.", 1))
        for function in re.findall(r"`(\w+)`", functions):
            assert callable(getattr(module, function)), f"{file}: {function}"


def test_the_results_have_their_place() -> None:
    assert README.count(BEGIN) == README.count(END) == 1
    assert README.index(BEGIN) < README.index(END)
