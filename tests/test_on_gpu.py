"""benchmarks.on_gpu: its parts at a tiny size on the CPU, and what it makes of those that fail."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import gradients, on_gpu, on_gpu_generation, training
from merit.config import load_experiment
from merit.io.artifacts import read_json


@pytest.fixture(autouse=True)
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("benchmarks.synthetic.REPORTS_DIR", tmp_path / "reports")
    return tmp_path / "reports" / "benchmarks"


def tiny(folder: Path) -> dict[str, on_gpu.Step]:
    return on_gpu.steps(
        argparse.Namespace(shape="", examples=100, tiny=True, folder=folder / "work")
    )


@pytest.mark.parametrize("module", [training, on_gpu_generation, gradients])
def test_every_part_writes_a_file_of_the_device(
    module: Any, reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [command for _, command, _ in tiny(tmp_path).values()]
    (command,) = [c for c in commands if module.__name__ in c]
    monkeypatch.setattr(sys, "argv", list(command[2:]))
    module.main()
    (path,) = reports.glob("*-cpu.json")
    result = read_json(path)
    assert result["device"].startswith("CPU")
    assert result["shape"] == "small"
    if module is training:
        losses = result["first_loss"]
        assert losses["packed"] == pytest.approx(losses["padded"], rel=1e-4)
    elif module is gradients:
        assert result["num_examples"] == 8
    else:
        assert (result["batch"], result["new_tokens"]) == (4, 8)


def test_a_step_that_fails_or_is_slow_leaves_the_others_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 1.0, 2.0, 3.0, 5.0, 58.0, 59.0, 61.0, 62.0])
    monkeypatch.setattr(on_gpu.time, "monotonic", lambda: next(seconds, 70.0))
    waited: list[float] = []
    monkeypatch.setattr(on_gpu.subprocess, "Popen", lambda *_, **__: Process(waited))
    out = tmp_path / "on_gpu.json"
    todo: dict[str, on_gpu.Step] = dict.fromkeys("abcd", (10, ("x",), tmp_path))
    on_gpu.run(todo, [], 60, out)
    found = read_json(out)
    assert [(s["step"], s["status"]) for s in found["steps"]] == [
        *(
            ("a", 3),
            ("b", "stopped after 10 s"),
            ("c", "stopped after 2 s"),
            ("d", "no time was left"),
        )
    ]
    assert found["device"] == "CPU"
    on_gpu.run(todo, ["a"], 600, out)  # another call keeps what the first one found
    assert [s["step"] for s in read_json(out)["steps"]] == list("abcd")


class Process:
    """The first one fails, the others do not end before they are told to."""

    def __init__(self, waited: list[float]) -> None:
        self.waited = waited

    def wait(self, limit: float | None = None) -> int:
        assert limit is not None
        self.waited.append(limit)
        if len(self.waited) > 1 and limit < 20:
            raise on_gpu.subprocess.TimeoutExpired("x", limit)
        return 3

    def terminate(self) -> None:
        pass


def test_the_experiment_has_more_examples_and_three_seeds(tmp_path: Path) -> None:
    limit, command, folder = tiny(tmp_path)["reasoning"]
    assert (limit, command[-2:], folder) == (600, ("run", "mini_text_rehearsal"), tmp_path / "work")
    found = load_experiment("smollm2_reasoning_gpu", folder / "experiments")
    assert found.data.num_examples == found.gradients.num_examples == 100  # type: ignore[union-attr]
    assert {len(m.seeds) for m in found.methods.values() if m.partition != "base"} == {3}
    params = yaml.safe_load((folder / "params.yaml").read_text())
    assert params["launch"] == {"gpus_per_branch": 0, "slots": 2}
