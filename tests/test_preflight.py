"""What a run refuses before it computes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from merit.config import Experiment, Method
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, write_json
from merit.run.preflight import check_place, check_tasks
from tests import synthetic


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifacts:
    """A mixture of three tasks, with something held out of the first two."""
    monkeypatch.chdir(tmp_path)
    found = Artifacts("mine")
    write_json(found.mixture / "tasks.json", [{"task": task} for task in "abc"])
    write_json(found.data / "held_out/tasks.json", [{"task": task} for task in "ab"])
    return found


def experiment(groups: int, **changes: Any) -> Experiment:
    methods = {"random": Method(partition="random", groups=groups)}
    whole = synthetic.experiment("mine")
    return whole.model_copy(update={"methods": methods, "studies": {}, **changes})


def test_as_many_tasks_as_groups_are_enough(paths: Artifacts) -> None:
    check_tasks(experiment(3), paths)
    with pytest.raises(MeritError, match=r"`methods\.random`: 4 groups of 3 task"):
        check_tasks(experiment(4), paths)


def test_every_task_needs_something_held_out(paths: Artifacts) -> None:
    asked = experiment(2, studies={"held_out": {}})
    with pytest.raises(MeritError, match=r"`studies\.held_out`: nothing is held out of c: set"):
        check_tasks(asked, paths)
    write_json(paths.data / "held_out/tasks.json", [{"task": task} for task in "abc"])
    check_tasks(asked, paths)


def test_a_base_that_cannot_generate(paths: Artifacts) -> None:
    Path("model").mkdir()
    config = {"architectures": ["BertModel"]}
    Path("model/config.json").write_text(json.dumps(config))
    base = synthetic.experiment("mine").base.model_copy(
        update={"checkpoint": "model", "architecture": None}
    )
    with pytest.raises(MeritError, match=r"model/config\.json: key `architectures`"):
        check_place(experiment(2, base=base), paths)


def test_a_directory_that_cannot_be_written(
    paths: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: mode != os.W_OK)
    with pytest.raises(MeritError, match=r": cannot be written; run in a directory"):
        check_place(experiment(2), paths)
