"""docs/own-mixture.md: its commands in their order, on a smaller mixture."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from merit.config import load_experiment
from merit.config.branches import plan
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, read_json
from merit.io.texts import parse_object
from merit.mini import own_mixture
from merit.mini.own_mixture import write_own
from merit.run import execute, new
from merit.run.cli import main
from merit.run.pool import Task

PAGE = (Path(__file__).parent.parent / "docs" / "own-mixture.md").read_text(encoding="utf-8")
MAKING, COMMANDS, SHIPPING = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


class Here:
    """A pool that runs its tasks one by one in this process, where torch is imported."""

    def __init__(self, *_: object) -> None:
        self.slots = [""]

    def run(self, label: str, tasks: Sequence[Task], slots: object = None) -> dict[str, str]:
        for _, function, arguments in tasks:
            function(*arguments)
        return {}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The page's commands in an empty directory, on 4 tasks of 10 examples."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(execute, "Pool", Here)
        patch.setattr(new, "STEPS", 4)  # of a branch: one epoch
        assert "python -m merit.mini.own_mixture own" in MAKING
        write_own(Path("own"), num_tasks=4, num_examples=10)
        for line in (COMMANDS + SHIPPING).splitlines():
            program, *arguments = shlex.split(line)
            assert program == "merit"
            main(arguments)
    return Artifacts("mine", folder / "artifacts")


def test_a_mixture_and_a_model_as_if_they_were_ones_own(done: Artifacts) -> None:
    own = done.folder.parents[1] / "own"
    files = sorted(path.name for path in (own / "mixture").glob("*.jsonl"))
    assert len(files) == 4
    lines = (own / "mixture" / files[0]).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10
    assert list(parse_object(lines[0], "here")) == ["messages", "images"]
    assert (own / "model/tokenizer.json").is_file()
    assert not (own / "model/base.json").exists()


def test_the_report_recommends_one_of_the_models(done: Artifacts) -> None:
    folder = done.folder.parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = load_experiment("mine")
        models = plan(experiment).models
    assert list(models) == ["base", "joint-s1", "random-2-s1", "merit-1d-s1"]
    report = read_json(folder / "reports/mine/report.json")
    told = report["recommendation"]
    assert told["method"] in experiment.methods
    assert f"Ship {told['ship']}" in told["words"]
    candidates = {(row["method"], row["c"]): row["loss"] for row in report["methods"]}
    assert {(name, 1.0) for name in experiment.methods} <= set(candidates)
    assert set(candidates) <= {
        (name, c) for name in experiment.methods for c in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    }
    assert {task for group in report["groups"].values() for task in group} == {
        path.stem for path in (folder / "own/mixture").glob("*.jsonl")
    }
    assert set(report["studies"]) == {"readiness", "held_out"}
    page = (folder / "reports/mine/README.md").read_text(encoding="utf-8")
    assert told["words"] in page
    for name in re.findall(r"!\[\w+\]\(([\w./]+)\)", page):
        assert (folder / "reports/mine" / name).is_file(), name
    assert len(re.findall(r"!\[", page)) == 8


def test_nothing_of_benchmarks_is_made(done: Artifacts) -> None:
    assert not done.evaluation.exists()
    assert not (done.folder.parents[1] / "params.yaml").exists()


def test_the_pages_files_are_where_it_says(done: Artifacts) -> None:
    folder = done.folder.parents[1]
    for named in re.findall(r"`((?:artifacts|reports|experiments)/mine[\w./-]*)`", PAGE):
        assert (folder / named).exists(), named
    assert (folder / "artifacts/mine/models/merit-1d-s1/README.md").is_file()
    assert (folder / "mine_shipped/model.safetensors").is_file()


def test_without_a_clone_there_is_no_base_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_mixture, "BASE", tmp_path / "none")
    with pytest.raises(MeritError, match="not there; run it in a clone"):
        write_own(tmp_path / "own")
    assert not (tmp_path / "own").exists()
