"""Scores of every question as a file, and differences pooled over bases: values by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.errors import MeritError
from merit.eval.questions import models_of, packed, read_questions, unpacked, write_questions

SCORES = [
    ("base", None, {"mini_scene": [1.0, 0.0, 1.0], "mini_describe": [1 / 3, 1.0, 6 / 7]}),
    ("merit-1d", 1, {"mini_scene": [0.0, 0.0, 0.0], "mini_describe": [0.0, 1.0, 0.0]}),
    ("merit-1d", 2, {"mini_scene": [1.0, 1.0, 1.0], "mini_describe": [0.1234567, 5.0, 0.0]}),
]


# --- the table ----------------------------------------------------------------------------------


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    write_questions(path, SCORES)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "method,seed,benchmark,scores",
        "base,,mini_scene,101",
        "base,,mini_describe,1/3 1 6/7",
        "merit-1d,1,mini_scene,000",
        "merit-1d,1,mini_describe,010",
        "merit-1d,2,mini_scene,111",
        "merit-1d,2,mini_describe,0.1234567 5.0 0",
    ]
    found = read_questions(path)
    assert found.benchmarks == ("mini_scene", "mini_describe")
    assert found.open_ended == ("mini_describe",)
    assert found.seeds == {"base": (), "merit-1d": (1, 2)}
    assert found.answers["base"][1].tolist() == [[1 / 3, 1.0, 6 / 7]]
    assert found.scores["merit-1d"][:, 0].tolist() == [0.0, 100.0]
    again = [(m, s, {n: list(v) for n, v in scores.items()}) for m, s, scores in models_of(found)]
    assert again == SCORES


@pytest.mark.parametrize("values", [[11.0], [1.0], [0.0, 1.0], [100 / 19, 0.05], [2.0, 1.0]])
def test_no_score_is_mistaken_for_digits(values: list[float]) -> None:
    assert unpacked(packed(values)).tolist() == values


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("method,seed", "method,need", "line 1: expected the columns"),
        ("1/3 1 6/7", "1/3 1 6/x", "line 3: "),
        ("merit-1d,1,mini_scene,000", "merit-1d,one,mini_scene,000", "line 4: "),
        ("base,,mini_scene,101", "base,,mini_scene,1011", "different questions"),
        ("base,,mini_scene,101\n", "", "different questions"),
    ],
)
def test_a_table_that_does_not_fit_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    path = tmp_path / "questions.csv"
    write_questions(path, SCORES)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(MeritError, match=rf"questions\.csv.*{named}"):
        read_questions(path)
    with pytest.raises(MeritError, match=r"none\.csv: file not found"):
        read_questions(tmp_path / "none.csv")
