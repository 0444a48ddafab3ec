"""`merit new`: what it finds in data and base, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merit.config import load_experiment
from merit.config.branches import plan
from merit.config.data import JsonlData
from merit.errors import MeritError
from merit.run.new import new
from tests import tiny_models
from tests.public_fixtures import picture, save, save_lines


def mixture(folder: Path, num_tasks: int, num_examples: int, **extra: Any) -> None:
    """Examples of one turn; byte tokens make all of a task equally long."""
    for i in range(num_tasks):
        turns = [("user", f"{i:02d}?" + "<image>" * len(extra)), ("assistant", "y")]
        row = {"messages": [{"role": r, "content": c} for r, c in turns], **extra}
        save_lines(folder / f"task{i:02d}.jsonl", [row] * num_examples)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a base and nothing else."""
    monkeypatch.chdir(tmp_path)
    tiny_models.llama(Path("own/model"))
    return tmp_path


def test_settings_follow_from_the_data_and_the_base(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 tasks of 60: four groups; 768 examples to train on leave a branch 48 steps of 4, too few
    in one epoch. 24 tokens stand around a turn of 3 + 1 bytes.
    """
    mixture(place / "own/mixture", 16, 60)
    new("mine", "own/mixture", "own/model")
    text = Path("experiments/mine.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    found = load_experiment("mine")
    assert isinstance(found.data, JsonlData)
    assert (found.data.folder, found.data.held_out) == ("own/mixture", 0.2)
    assert found.base.checkpoint == "own/model"
    assert (found.encoding.template, found.encoding.max_tokens) == ("chat", 128)
    assert list(found.methods) == ["base", "joint", "random-4", "merit-2d"]
    assert found.training.optimizer.batch_size == 4
    assert {m.epochs for m in found.methods.values() if m.trained} == {2.0}
    assert found.evaluation.benchmarks == []
    assert set(found.studies) == {"held_out", "readiness", "retention"}
    assert "16 tasks, 960 examples (60 to 60 per task), text, 28 tokens each" in (
        capsys.readouterr().out
    )


def test_a_rehearsal_of_it_is_cut_down(place: Path) -> None:
    mixture(place / "own/mixture", 4, 10)
    new("mine", "own/mixture", "own/model")
    found = load_experiment("mine_rehearsal")
    assert (found.data.max_examples, found.data.tasks.draw) == (50, 3)  # type: ignore[union-attr]
    assert list(plan(found).models) == ["base", "merit-1d-s1"]
    assert found.studies == {}


@pytest.mark.parametrize(
    ("num_tasks", "num_examples", "groups", "batch"),
    [(2, 10, 2, 4), (8, 500, 2, 16), (27, 40, 4, 4), (32, 40, 8, 4)],
)
def test_more_tasks_are_more_groups_and_more_examples_larger_batches(
    place: Path, num_tasks: int, num_examples: int, groups: int, batch: int
) -> None:
    mixture(place / "own/mixture", num_tasks, num_examples)
    new("mine", "own/mixture", "own/model")
    found = load_experiment("mine")
    assert list(found.methods.values())[-1].num_groups == groups
    assert found.training.optimizer.batch_size == batch


def test_a_base_without_a_template_and_a_name_with_every_character(place: Path) -> None:
    tiny_models.qwen(Path('own/a "base": #1'))
    mixture(place / "own/mine: {x}", 4, 10)
    new("mine", "own/mine: {x}", 'own/a "base": #1')
    found = load_experiment("mine")
    assert found.encoding.template == "plain"
    assert (found.data.folder, found.base.checkpoint) == (  # type: ignore[union-attr]
        "own/mine: {x}",
        'own/a "base": #1',
    )


def test_images_have_a_limit_where_the_base_has_a_higher_one(place: Path) -> None:
    tiny_models.qwen_vl(Path("own/vision"))
    mixture(place / "own/mixture", 2, 4, images=["a.png"])
    save(place / "own/mixture/a.png", picture(1, size=(56, 28)))
    new("mine", "own/mixture", "own/vision")
    found = load_experiment("mine")
    assert found.encoding.max_pixels == 784 * 784
    assert "retention" not in found.studies
    with pytest.raises(MeritError, match="has images, and the base is a text model"):
        new("other", "own/mixture", "own/model")


def damaged(change: dict[str, Any]) -> None:
    path = Path("own/model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("num_tasks", "num_examples", "name", "base", "message"),
    [
        (1, 10, "mine", "own/model", r"own/mixture: one task, 'task00': there is nothing to split"),
        (3, 1, "mine", "own/model", r"own/mixture: one example only: task00, task01, task02"),
        (3, 10, "Mine", "own/model", r"'Mine': a name has small letters"),
        (3, 10, "mine", "own/none", r"own/none is not here|no such folder"),
        (3, 10, "mine", "own", r"no model in own"),
    ],
)
def test_what_cannot_be_split_or_trained_is_refused(
    place: Path, num_tasks: int, num_examples: int, name: str, base: str, message: str
) -> None:
    mixture(place / "own/mixture", num_tasks, num_examples)
    with pytest.raises(MeritError, match=message):
        new(name, "own/mixture", base)
    assert not Path("experiments").exists()


def test_a_base_that_cannot_generate_is_refused(place: Path) -> None:
    mixture(place / "own/mixture", 3, 10)
    damaged({"architectures": ["BertModel"]})
    with pytest.raises(MeritError, match=r"key `architectures`: found \['BertModel'\]"):
        new("mine", "own/mixture", "own/model")


def test_an_experiment_is_not_overwritten(place: Path) -> None:
    mixture(place / "own/mixture", 3, 10)
    new("mine", "own/mixture", "own/model")
    with pytest.raises(MeritError, match=r"experiments/mine\.yaml: is there already"):
        new("mine", "own/mixture", "own/model")
