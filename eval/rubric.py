"""Deterministic scores of free text and short answers: strings in, 0..1 out.

Replaces the paper's LLM judges (docs/method.md 15) for benchmarks whose truth is known exactly.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from merit.errors import MeritError

_TOKENS = re.compile(r"\d+(?:[.,]\d+)+|\w+|[.!?;:\n]+")
_BREAK = "|"  # the end of a sentence; a phrase is never found across one


@dataclass(frozen=True)
class Reference:
    """What an open answer is compared with; every phrase is normalised.

    `facts`: a tuple of alternative phrases per fact; any of them names the fact. `wrong`: phrases
    that are false of the image.
    """

    facts: tuple[tuple[str, ...], ...]
    wrong: tuple[str, ...]


def normalise(text: str) -> str:
    """Case-folded words with single spaces; only the ends of sentences stay of punctuation.

    "A red circle. It's 2.5 high!" -> "a red circle | it s 2.5 high"
    """
    tokens = _TOKENS.findall(unicodedata.normalize("NFKC", text).casefold())
    words = [token if token[0].isalnum() or token[0] == "_" else _BREAK for token in tokens]
    return " ".join(words).strip(f"{_BREAK} ")


def parse_reference(text: str) -> Reference:
    """The reference in a TSV's `answer` column: {"facts": [[phrase, ...], ...], "wrong": [...]}.

    Other keys are ignored. Raises MeritError if the text is not such JSON, has no fact, or has a
    phrase that is both a fact and wrong.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise MeritError(f"the answer is not valid JSON: {error.msg}: {text[:80]!r}") from None
    if not isinstance(value, dict):
        raise MeritError(f"the answer must be an object with `facts`; found {text[:80]!r}")
    groups = value.get("facts")
    if not isinstance(groups, list) or not groups:
        raise MeritError("`facts` must be a list of at least one list of alternative phrases")
    facts = tuple(_phrases(group, f"facts[{i}]") for i, group in enumerate(groups))
    for i, alternatives in enumerate(facts):
        if not alternatives:
            raise MeritError(f"`facts[{i}]` is empty; give at least one phrase")
    wrong = _phrases(value.get("wrong", []), "wrong")
    both = {phrase for alternatives in facts for phrase in alternatives} & set(wrong)
    if both:
        raise MeritError(f"{sorted(both)[0]!r} is both a fact and wrong; remove one of the two")
    return Reference(facts, wrong)


def _phrases(value: Any, key: str) -> tuple[str, ...]:
    """Normalised phrases without repetitions, in order."""
    if not isinstance(value, list) or not all(isinstance(phrase, str) for phrase in value):
        raise MeritError(f"`{key}` must be a list of phrases; found {str(value)[:80]!r}")
    phrases = tuple(dict.fromkeys(normalise(phrase) for phrase in value))
    if "" in phrases:
        raise MeritError(f"`{key}` holds a phrase without a word; remove it")
    return phrases


def rubric_score(prediction: str, reference: Reference) -> float:
    """max(0, named - asserted) / num_facts, in 0..1.

    `named` counts facts with an alternative that occurs, `asserted` distinct wrong phrases that
    occur. So one falsehood costs what one fact earns, and repetition changes nothing. Phrases match
    whole words of the normalised text, inside one sentence. A wrong phrase that occurs only inside
    a longer fact ("red circle" in "no red circle") is not asserted; negation is not understood
    beyond that.
    """
    text = normalise(prediction)
    named = sum(
        any(_occurs(phrase, text) for phrase in alternatives) for alternatives in reference.facts
    )
    asserted = sum(_asserted(phrase, text, reference) for phrase in reference.wrong)
    return max(0, named - asserted) / len(reference.facts)


def _asserted(wrong: str, text: str, reference: Reference) -> bool:
    if not _occurs(wrong, text):
        return False
    for alternatives in reference.facts:
        for phrase in alternatives:
            if _occurs(wrong, phrase):
                text = re.sub(rf"(?<!\S){re.escape(phrase)}(?!\S)", _BREAK, text)
    return _occurs(wrong, text)


def _occurs(phrase: str, text: str) -> bool:
    """Whole words of normalised text; "2" does not occur in "2.5", which is one word."""
    return f" {phrase} " in f" {text} "


def normalise_short(answer: str) -> str:
    """Lower case, without surrounding blanks and one final period; "3", "3.0", "three" differ."""
    return answer.strip().lower().removesuffix(".").rstrip()


def exact_score(prediction: str, answer: str) -> float:
    """1.0 if the normalised prediction is the normalised answer, else 0.0: no partial credit."""
    return float(normalise_short(prediction) == normalise_short(answer))
