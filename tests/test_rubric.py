"""Open-answer rubric and exact short answers, by hand and as properties."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merit.errors import MeritError
from merit.eval.rubric import Reference, exact_score, normalise, parse_reference, rubric_score


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


def test_phrases_inside_phrases() -> None:
    absent = reference([["no red circle"], ["blue square"]], ("red circle", "square"))
    assert rubric_score("There is no red circle.", absent) == 0.5
    assert rubric_score("There is no red circle. A red circle.", absent) == 0.0
    assert rubric_score("a blue square", absent) == 0.5
    # a fact inside a wrong phrase does not excuse it
    assert rubric_score("a red square", reference([["red"]], ("red square",))) == 0.0
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red", "JSON"),
        ('{"wrong": []}', "`facts`"),
        ('{"facts": ["red"]}', r"`facts\[0\]`"),
        ('{"facts": [["red"], []]}', r"`facts\[1\]` is empty"),
        ('{"facts": [["."]]}', "word"),
        ('{"facts": [["red"]], "wrong": "blue"}', "`wrong`"),
        ('{"facts": [["Red"]], "wrong": ["red."]}', "both"),
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
        ("red circle", "red", 0.0),
        ("", "red", 0.0),
        ("red..", "red", 0.0),
        ("12", "1", 0.0),
    ],
)
def test_exact_by_hand(prediction: str, answer: str, score: float) -> None:
    assert exact_score(prediction, answer) == score
