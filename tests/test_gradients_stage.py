"""The gradients stage: one file whoever computes which row, resumed task by task."""

from __future__ import annotations

import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merit.config import Gradients
from merit.errors import MeritError
from merit.io.artifacts import Artifacts, atomic_write, read_json, write_json
from merit.method.gradients import Sketch, Stride
from merit.train import task_gradients as stage
from merit.train.task_gradients import BaseGradients, share
from tests import synthetic
from tests.conftest import Tiny

OWNER = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])  # tasks of the tiny fixture's mixture


class Place:
    """An experiment with a base and an encoded mixture, as far as the stage looks at them."""

    def __init__(self, tiny: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from merit.train.model import set_trainable

        model = deepcopy(tiny.model)
        parameters = set_trainable(model, ["decoder"])
        self.base = BaseGradients(
            model, parameters, tiny.encoded, OWNER, ["a", "b", "c"], batch_size=2
        )
        self.paths = Artifacts("tiny", folder)
        self.settings = Gradients(num_examples=3)
        self.computed: list[int] = []
        write_json(self.paths.base / "base.json", {"base_hash": "1"})
        atomic_write(self.paths.encoded / "tokens", "1")
        original = BaseGradients.task_gradients

        def counted(base: BaseGradients, task: int, *rest: Any) -> list[torch.Tensor]:
            self.computed.append(task)
            return original(base, task, *rest)

        monkeypatch.setattr(BaseGradients, "task_gradients", counted)
        monkeypatch.setattr(BaseGradients, "load", lambda *_: self.base)
        monkeypatch.setattr(stage, "Artifacts", lambda _: self.paths)
        monkeypatch.setattr(
            stage,
            "load_experiment",
            lambda _: synthetic.experiment().model_copy(update={"gradients": self.settings}),
        )

    def run(self, shard: str | None = None) -> list[int]:
        """The tasks that this run has computed."""
        self.computed.clear()
        stage.run("tiny", shard)
        return list(self.computed)

    @property
    def result(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.paths.gradients.iterdir()}


@pytest.fixture
def place(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tiny, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "representation", "stored"),
    [
        ({}, Stride(5), {"stride": 5}),
        (
            {"representation": "sketch", "sketch_size": 64},
            Sketch(64),
            {"sketch_size": 64, "sketch_seed": 0},
        ),
    ],
)
def test_the_files_are_those_of_the_whole_matrix_saved_at_once(
    place: Place, tmp_path: Path, settings: Any, representation: Any, stored: dict[str, int]
) -> None:
    place.settings = Gradients(num_examples=3, **settings)
    assert place.run() == [0, 1, 2]
    rows = np.stack([place.base.task_gradient(t, 3, 0, representation).numpy() for t in range(3)])
    np.save(tmp_path / "rows.npy", rows)
    assert sorted(place.result) == ["gradients.npy", "tasks.json"]
    assert place.result["gradients.npy"] == (tmp_path / "rows.npy").read_bytes()
    assert read_json(place.paths.gradients / "tasks.json") == {
        "tasks": ["a", "b", "c"],
        "norms": [float(np.linalg.norm(row.astype(np.float64))) for row in rows],
        "num_examples": [3, 3, 3],
        "num_parameters": place.base.num_parameters,
        "base_hash": "1",
        **stored,
    }


def test_shares_and_interrupted_runs_give_the_same_bytes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.run()
    expected = place.result
    shutil.rmtree(place.paths.gradients)
    assert place.run("2/3") == [1]
    assert place.run("2/3") == []
    counted = BaseGradients.task_gradients

    def interrupted(base: BaseGradients, task: int, *rest: Any) -> list[torch.Tensor]:
        if task == 2:
            raise KeyboardInterrupt
        return counted(base, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(BaseGradients, "task_gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            place.run()
    assert place.computed == [0]
    assert not place.paths.gradients.exists()
    assert place.run() == [2]
    assert place.result == expected
    assert sorted(os.listdir(place.paths.folder)) == ["base", "encoded", "gradients"]


@pytest.mark.parametrize("what", ["settings", "base", "mixture"])
def test_rows_of_other_settings_another_base_or_another_mixture_are_not_used(
    place: Place, what: str
) -> None:
    place.run("1/1")
    if what == "settings":
        place.settings = Gradients(num_examples=3, stride=2)
    elif what == "base":
        write_json(place.paths.base / "base.json", {"base_hash": "2"})
    else:
        atomic_write(place.paths.encoded / "tokens", "2")
    assert place.run() == [0, 1, 2]


def test_shares_cover_every_task_once() -> None:
    assert sorted(t for i in (1, 2, 3) for t in share(f"{i}/3", 8)) == list(range(8))
    assert list(share("5/5", 3)) == []
    for wrong in ("0/3", "4/3", "2", "a/b", "1/0"):
        with pytest.raises(MeritError, match=f"'{wrong}'"):
            share(wrong, 8)
