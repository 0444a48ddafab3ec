"""Prompts and scores by VLMEvalKit, through one scoring process for the whole file."""

import csv
import json
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from merit.errors import MeritError
from merit.eval.engine import BenchmarkScore, ScoringEngine
from tests.tsv import write_tsv

FACTS = json.dumps({"facts": [["red circle"], ["blue square"]], "wrong": ["green star"]})
CHOICE = {"question": "what colour ?", "A": "red", "B": "blue", "C": "3", "D": "None"}


@pytest.fixture(scope="module")
def engine() -> Iterator[ScoringEngine]:
    with ScoringEngine() as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "mini_mcq": write_tsv(
            tmp_path / "mcq.tsv",
            [
                {**CHOICE, "answer": "B"},
                {**CHOICE, "answer": "D"},
                {**CHOICE, "D": "", "answer": "C"},
            ],
        ),
        "mini_signs": write_tsv(
            tmp_path / "signs.tsv",
            [{"question": "read it .", "answer": a} for a in ("7", "None", "007", "stop")],
        ),
        "mini_describe": write_tsv(
            tmp_path / "describe.tsv", [{"question": "describe it .", "answer": FACTS}] * 2
        ),
    }


def test_prompts_are_vlmevalkits(engine: ScoringEngine, files: dict[str, Path]) -> None:
    prompts = engine.prompts(files)
    head = "Question: what colour ?\nOptions:\nA. red\nB. blue\nC. 3\n"
    tail = "Please select the correct answer from the options above. \n"

    def shown(index: str, text: str) -> list[dict[str, object]]:
        return [{"image": [index, 0]}, {"text": text}]

    assert prompts["mini_mcq"] == {
        "0": shown("0", f"{head}D. None\n{tail}"),
        "1": shown("1", f"{head}D. None\n{tail}"),
        "2": shown("2", f"{head}{tail}"),
    }
    assert prompts["mini_signs"] == {i: shown(i, "read it .") for i in "0123"}


def test_scores_by_hand(engine: ScoringEngine, files: dict[str, Path]) -> None:
    predictions = {
        "good": {
            "mini_mcq": {"0": "B. blue", "1": "D", "2": "C."},
            "mini_signs": {"0": "7.", "1": "none", "2": "007", "3": "Stop"},
            "mini_describe": {"0": "a red circle . a blue square .", "1": "blue square"},
        },
        "odd": {
            "mini_mcq": {"0": "", "1": 'D . "\n\t\0', "2": "nan"},
            "mini_signs": {"0": "7.0", "1": "", "2": "7", "3": "stop sign"},
            "mini_describe": {"0": "red circle\n\tgreen star", "1": ""},
        },
        "partial": {"mini_signs": {"0": "7", "1": "", "2": "", "3": ""}},
    }
    scores = engine.score(files, predictions)
    assert scores["good"]["mini_mcq"] == BenchmarkScore(100, {"0": 1, "1": 1, "2": 1})
    assert scores["good"]["mini_signs"] == BenchmarkScore(100, dict.fromkeys("0123", 1.0))
    assert scores["good"]["mini_describe"] == BenchmarkScore(75, {"0": 1.0, "1": 0.5})
    assert scores["odd"]["mini_mcq"].questions == {"0": 0, "1": 1, "2": 0}
    assert scores["odd"]["mini_mcq"].score == pytest.approx(100 / 3)
    assert scores["odd"]["mini_signs"] == BenchmarkScore(0, dict.fromkeys("0123", 0.0))
    assert scores["odd"]["mini_describe"] == BenchmarkScore(0, {"0": 0.0, "1": 0.0})
    # a lone "7" among empty answers stays "7"
    assert scores["partial"] == {"mini_signs": BenchmarkScore(25, {"0": 1, "1": 0, "2": 0, "3": 0})}


def test_scores_of_stored_answers_are_golden(engine: ScoringEngine, world: Path) -> None:
    """Golden: every third question gets its own answer, others that of the question before; of a
    rubric it is the whole text."""
    csv.field_size_limit(1 << 30)  # a cell holds an image
    files = {path.stem: path for path in sorted((world / "benchmarks").glob("*.tsv"))}
    predictions = {}
    for name, path in files.items():
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        answers = [row["answer"] for row in rows]
        written = [json.loads(a)["text"] if a.startswith("{") else a for a in answers]
        predictions[name] = {row["index"]: written[i - (i % 3 > 0)] for i, row in enumerate(rows)}
    scores = engine.score(files, {"neighbour": predictions})["neighbour"]
    assert {name: round(score.score, 6) for name, score in scores.items()} == {
        **{"mini_charts": 37.5, "mini_describe": 36.680556, "mini_digits": 35.0},
        **{"mini_explain": 39.375, "mini_mcq": 55.0, "mini_multihop": 35.0, "mini_scene": 50.0},
        **{"mini_signs": 35.0},
    }


def test_what_counts_as_a_letter(engine: ScoringEngine, tmp_path: Path) -> None:
    hits = {
        **{"B": 1, "(B)": 1, "b": 0, "Blue .": 1, "the answer is B": 1, "B B": 1, "A B": 0},
        "blue": 1,  # the only option whose text occurs
        "blue or red": 0,
        "A blue one": 0,  # "A" is read as the letter
        "B it is , for all to see": 0,  # the letter must be among the last four words
    }
    file = write_tsv(tmp_path / "q.tsv", [{**CHOICE, "answer": "B"}] * len(hits))
    answers = {str(i): text for i, text in enumerate(hits)}
    scores = engine.score({"mini_scene": file}, {"m": {"mini_scene": answers}})
    found = scores["m"]["mini_scene"].questions
    assert {text: found[i] for i, text in answers.items()} == hits


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**CHOICE, "D": "", "answer": "D"}, "index '0': `answer` is 'D'"),
        ({**CHOICE, "answer": "A", "question": " "}, "index '0': `question`"),
        ({**CHOICE, "answer": "A", "image": "9"}, "index '0': `image`"),
        ({"question": "q", "A": "red", "answer": "A"}, "`B`"),
    ],
)
def test_malformed_question_is_refused(
    engine: ScoringEngine, tmp_path: Path, row: dict[str, str], message: str
) -> None:
    file = write_tsv(tmp_path / "bad.tsv", [row])
    with pytest.raises(MeritError, match=message) as caught:
        engine.prompts({"mini_mcq": file})
    assert str(file) in str(caught.value)


def test_bad_requests_are_refused_and_survived(
    engine: ScoringEngine, files: dict[str, Path], tmp_path: Path
) -> None:
    signs = {"mini_signs": files["mini_signs"]}
    twice = write_tsv(tmp_path / "t.tsv", [{"index": "3", "question": "q", "answer": "a"}] * 2)
    broken = write_tsv(tmp_path / "o.tsv", [{"question": "q", "answer": "{}"}])
    for wrong, message in (
        ({"mini_sign": files["mini_signs"]}, "`mini_signs`"),
        ({"mini_signs": tmp_path / "absent.tsv"}, r"absent\.tsv"),
        ({"mini_signs": twice}, "index '3' occurs twice"),
        ({"mini_explain": broken}, "index '0': `answer`: `facts`"),
    ):
        with pytest.raises(MeritError, match=message):
            engine.prompts(wrong)
    for given, message in (
        ({"mini_signs": {"0": "7"}}, r"m: mini_signs: .*index '1' \(3 missing\)"),
        ({"mini_signs": dict.fromkeys("01239", "7")}, "index '9'"),
        ({"mini_mcq": {"0": "A"}}, "m: mini_mcq: "),
    ):
        with pytest.raises(MeritError, match=message):
            engine.score(signs, {"m": given})
    assert len(engine.prompts(signs)["mini_signs"]) == 4
    # vlmeval stays out of this process
    assert not {"vlmeval", "LMUData"} & {*sys.modules, *os.environ}
    assert ssl._create_default_https_context is ssl.create_default_context


def test_death_of_the_process_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a stand-in vlmeval that fails on import, ahead of the real one
    fails = tmp_path / "vlmeval" / "dataset" / "image_base.py"
    fails.parent.mkdir(parents=True)
    for package in (fails.parent, fails.parent.parent):
        (package / "__init__.py").touch()
    fails.write_text("raise RuntimeError('no such thing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        ScoringEngine() as dying,
        pytest.raises(MeritError, match=r"ended with status 1(.|\n)*RuntimeError: no such thing"),
    ):
        dying.prompts({"mini_signs": tmp_path / "x.tsv"})
