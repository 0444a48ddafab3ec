"""reasoning-gym as a source and as a scorer: with a stand-in for the package, and with itself."""

from __future__ import annotations

import sys
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from merit.config.data import ReasoningData
from merit.data.examples import read_examples
from merit.data.sources import reasoning
from merit.errors import MeritError
from merit.eval.answering import reasoning as scorer
from merit.eval.answering.lm_engine import task_config
from merit.io.artifacts import read_json, read_jsonl


def settings(**changes: Any) -> ReasoningData:
    values = {"source": "reasoning_gym", "seed": 3, "tasks": ["adding", "spelling"]}
    return ReasoningData.model_validate(values | {"num_examples": 2, "num_questions": 2} | changes)


class Adding:
    """Sums of item and seed; every second question is the one before it."""

    category = "arithmetic"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, item: int) -> dict[str, Any]:
        number = item // 2
        return {"question": f"{number} + {self.seed}?", "answer": str(number + self.seed)}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return 1.0 if int(answer) == int(entry["answer"]) else 0.25


class Spelling(Adding):
    category = "algorithmic"

    def __getitem__(self, item: int) -> dict[str, Any]:
        return {"question": f"spell {item}", "answer": f"{item}" * 2}


class Foreign(Adding):
    category = "astrology"


class Narrow(Adding):
    def __getitem__(self, item: int) -> dict[str, Any]:
        return {"question": f"{item % 3}", "answer": "x"}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in with tasks of every kind."""
    tasks = {
        **{"adding": Adding, "spelling": Spelling, "narrow": Narrow},
        **{"foreign": Foreign, "countdown": Adding, "ransom_note": Adding},
    }
    made, factory = types.ModuleType("reasoning_gym"), types.ModuleType("reasoning_gym.factory")
    made.create_dataset = lambda name, seed, size: tasks[name](seed)  # type: ignore[attr-defined]
    factory.DATASETS = tasks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", made)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    monkeypatch.setattr("importlib.metadata.version", lambda name: reasoning.VERSION)
    scorer._task.cache_clear()
    yield made
    scorer._task.cache_clear()


def test_examples_and_questions_by_hand(package: Any, tmp_path: Path) -> None:
    """The repeated question is asked once; what is asked is not trained on."""
    reasoning.write_reasoning(settings(), tmp_path)
    adding = read_examples(tmp_path / "mixture" / "adding.jsonl")
    assert [[m["content"] for m in e.messages] for e in adding] == [
        ["0 + 3?", "3"],
        ["1 + 3?", "4"],
    ]
    assert read_jsonl(tmp_path / "benchmarks" / "reasoning_mathematics.jsonl") == [
        {"index": "adding/4", "question": "2 + 3?", "answer": "5"}
        | {"task": "adding", "seed": 3, "item": 4},
        {"index": "adding/6", "question": "3 + 3?", "answer": "6"}
        | {"task": "adding", "seed": 3, "item": 6},
    ]
    asked = read_jsonl(tmp_path / "benchmarks" / "reasoning_algorithms.jsonl")
    assert [row["index"] for row in asked] == ["spelling/2", "spelling/3"]
    assert not (tmp_path / "benchmarks" / "reasoning_logic.jsonl").exists()
    assert read_json(tmp_path / "mixture" / "tasks.json") == [
        {"task": "adding", "family": "arithmetic", "style": "", "num_examples": 2},
        {"task": "spelling", "family": "algorithmic", "style": "", "num_examples": 2},
    ]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("addng", "'addng'.*`adding`"),
        ("countdown", "countdown"),
        ("ransom_note", "ransom_note"),
        ("narrow", "3 .*4 "),
        ("foreign", "'astrology'"),
    ],
)
def test_tasks_that_cannot_be_used(package: Any, tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(MeritError, match=message):
        reasoning.write_reasoning(settings(tasks=[task]), tmp_path)


def test_a_missing_or_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(MeritError, match=r"reasoning-gym"):
        reasoning.reasoning_gym()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    with pytest.raises(MeritError, match=r"9\.9 .*0\.1\.25"):
        reasoning.reasoning_gym()


def test_the_package_s_own_scorer_judges(package: Any, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"index": "a/1", "question": "q", "answer": "a"}\n', encoding="utf-8")
    config = task_config("reasoning_logic", questions, tmp_path, 7)
    assert config["process_results"] is scorer.score
    doc = {"index": "adding/4", "question": "2 + 3?", "answer": "5"}
    doc |= {"task": "adding", "seed": 3, "item": 4}
    assert scorer.score(doc, [" 5\n"]) == {"score": 1.0}
    assert scorer.score(doc, ["6"]) == {"score": 0.25}
    assert scorer.score(doc, ["five, I think"]) == {"score": 0.0}  # it stumbles: int("five...")
    with pytest.raises(MeritError, match="'adding/4'"):
        scorer.score(doc | {"question": "3 + 3?"}, ["5"])


def test_the_real_package_gives_full_marks_to_its_own_answers(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="pip install '.[reasoning]' (a C compiler)")
    assert version("reasoning-gym") == reasoning.VERSION
    scorer._task.cache_clear()
    tasks = ["chain_sum", "prime_factorization", "word_sorting", "knights_knaves"]
    reasoning.write_reasoning(settings(tasks=tasks, num_questions=3), tmp_path)
    found = [
        row for file in sorted((tmp_path / "benchmarks").iterdir()) for row in read_jsonl(file)
    ]
    assert len(found) == 12
    assert [scorer.score(row, [row["answer"]])["score"] for row in found] == [1.0] * 12
    wrong = [scorer.score(row, ["I do not know"])["score"] for row in found]
    assert max(wrong) < 0.5
