"""Open-answer rubric and exact short answers, by hand and as properties."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merit.errors import MeritError
from merit.eval.benchmarks import BENCHMARKS, benchmark
from merit.eval.rubric import (
    Reference,
    exact_score,
    normalise,
    parse_reference,
    rubric_score,
)


def reference(facts: list[list[str]], wrong: tuple[str, ...] = ()) -> Reference:
    return parse_reference(json.dumps({"facts": facts, "wrong": list(wrong)}))


SCENE = reference(
    [["red circle"], ["blue square", "square that is blue"], ["wooden ground"], ["3"]],
    ("green star", "red square"),
)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("", 0.0),
        ("A red circle.", 0.25),
        ("A RED   circle, on WOODEN ground!", 0.5),
        ("a square that is blue and a blue square", 0.25),  # two alternatives, one fact
        ("red circle . blue square . wooden ground . 3 .", 1.0),
        ("red circle . green star .", 0.0),  # one fact, one falsehood
        ("red circle . blue square . green star .", 0.25),
        ("red circle . blue square . green star . green star .", 0.25),  # counted once
        ("green star . red square .", 0.0),  # clipped
        ("a red. circle", 0.0),  # not across sentences
        ("infrared circles", 0.0),  # whole words
        ("3.5 or 13", 0.0),
        ("there are 3.", 0.25),
    ],
)
def test_score_by_hand(prediction: str, score: float) -> None:
    assert rubric_score(prediction, SCENE) == score


def test_wrong_phrase_inside_a_longer_fact_is_not_asserted() -> None:
    absent = reference([["no red circle"], ["blue square"]], ("red circle", "square"))
    assert rubric_score("There is no red circle.", absent) == 0.5
    assert rubric_score("There is no red circle. A red circle.", absent) == 0.0
    assert rubric_score("a blue square", absent) == 0.5


def test_fact_inside_a_wrong_phrase_does_not_excuse_it() -> None:
    assert rubric_score("a red square", reference([["red"]], ("red square",))) == 0.0


def test_normalise_by_hand() -> None:
    assert normalise("A red circle. It's 2.5 high!") == "a red circle | it s 2.5 high"
    assert normalise(" . ") == ""


PHRASES = ["red circle", "blue square", "wooden ground", "3", "green star", "red square"]
sentences = st.lists(st.sampled_from([*PHRASES, "something", "a bird"]), max_size=8)


@given(sentences)
def test_score_counts_phrases(parts: list[str]) -> None:
    named = len({"red circle", "blue square", "wooden ground", "3"} & set(parts))
    asserted = len({"green star", "red square"} & set(parts))
    text = " . ".join(parts)
    assert rubric_score(text, SCENE) == max(0, named - asserted) / 4
    assert rubric_score(f"{text}. {text}", SCENE) == rubric_score(text, SCENE)
    assert rubric_score(text.upper() + "!", SCENE) == rubric_score(text, SCENE)


@given(st.text(max_size=60))
def test_any_text_scores_within_bounds(text: str) -> None:
    assert 0.0 <= rubric_score(text, SCENE) <= 1.0
    assert normalise(normalise(text).replace("|", ".")) == normalise(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red", "not valid JSON"),
        ("[]", "an object"),
        ('{"wrong": []}', "`facts` must be"),
        ('{"facts": []}', "`facts` must be"),
        ('{"facts": ["red"]}', r"`facts\[0\]` must be a list"),
        ('{"facts": [["red"], []]}', r"`facts\[1\]` is empty"),
        ('{"facts": [["."]]}', "without a word"),
        ('{"facts": [["red"]], "wrong": "blue"}', "`wrong` must be a list"),
        ('{"facts": [["Red"]], "wrong": ["red."]}', "both a fact and wrong"),
    ],
)
def test_malformed_reference_is_refused(text: str, message: str) -> None:
    with pytest.raises(MeritError, match=message):
        parse_reference(text)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("Red .", "red", 1.0),
        (" 3.\n", "3", 1.0),
        ("3.0", "3", 0.0),
        ("three", "3", 0.0),
        ("red circle", "red", 0.0),
        ("the red", "red", 0.0),
        ("", "red", 0.0),
        ("red..", "red", 0.0),
        ("12", "1", 0.0),
    ],
)
def test_exact_by_hand(prediction: str, answer: str, score: float) -> None:
    assert exact_score(prediction, answer) == score


@given(st.text(alphabet="aB3 .", max_size=8))
def test_exact_ignores_case_and_one_period(answer: str) -> None:
    assert exact_score(f" {answer.swapcase()} ", answer) == 1.0
    longer = f"{answer}x"
    assert exact_score(f"{longer}.", longer) == 1.0
    assert exact_score(f"{longer} x", longer) == 0.0


def test_table_stands_for_the_papers_columns() -> None:
    minis = [record for record in BENCHMARKS.values() if record.name.startswith("mini_")]
    vision, text = minis[:8], minis[8:]
    assert [record.paper_column for record in vision] == [
        "seedbench", "mmbench", "llava_wild", "mmvet", "textvqa", "ai2d", "mathvista", "mmmu",
    ]  # fmt: skip
    assert [record.kind for record in vision] == ["choice"] * 2 + ["open"] * 2 + ["exact"] * 4
    assert [record.paper_column for record in text] == [
        "mmlu", "gpqa", "hellaswag", "winogrande", "boolq", "xnli", "arc_challenge", "humaneval",
    ]  # fmt: skip
    assert [record.kind for record in text] == ["likelihood"] * 6 + ["generation"] * 2
    for records in (vision, text):
        categories = [record.category for record in records]
        assert categories[::2] == categories[1::2]
        assert len(set(categories)) == 4
    assert benchmark("mini_mcq").metric == "accuracy"


def test_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(MeritError, match=r"mini_chart.*did you mean `mini_charts`"):
        benchmark("mini_chart")
    with pytest.raises(MeritError, match="known: mini_scene, mini_mcq"):
        benchmark("zzz")


def test_open_ended_benchmarks_are_those_with_a_rubric() -> None:
    """The minis' and the public ones; benchmarks that a judge reads for an answer are not."""
    assert [name for name, record in BENCHMARKS.items() if record.open_ended] == [
        "mini_describe", "mini_explain", "llava_wild", "mmvet", "miabench",
    ]  # fmt: skip
