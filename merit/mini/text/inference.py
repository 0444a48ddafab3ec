"""Text inference and paraphrase: does one sentence follow from, or say the same as, another?"""

from __future__ import annotations

import numpy as np

from merit.mini.text.items import Item, pick, several
from merit.mini.text.knowledge import ASK
from merit.mini.text.lexicon import MEN, THINGS, WOMEN
from merit.mini.text.sentences import KINDS, Sight, changed, feature, phrase, say, say_other, sight

YES, NO, MAYBE = "yes", "no", "maybe"
NLI = (YES, MAYBE, NO)


def _claim(rng: np.random.Generator, labels: tuple[str, ...]) -> tuple[Sight, str, str, str]:
    """(premise, kind, value, label): a feature that is told, told otherwise, or not told."""
    premise = sight(rng, int(rng.integers(1, 3)))
    label = pick(rng, labels)
    if label == MAYBE:
        kind = pick(rng, [kind for kind in KINDS if not getattr(premise, kind)])
        return premise, kind, pick(rng, KINDS[kind]), label
    kind = pick(rng, premise.told())
    told = premise if label == YES else changed(rng, premise, kind)
    return premise, kind, getattr(told, kind), label


def entailment(rng: np.random.Generator, labels: tuple[str, ...] = NLI) -> Item:
    """Three-way inference in the first language."""
    premise, kind, value, label = _claim(rng, labels)
    return _pair(say(premise), feature(premise, kind, value), label, labels)


def two_way(rng: np.random.Generator) -> Item:
    return entailment(rng, (YES, NO))


def other_entailment(rng: np.random.Generator) -> Item:
    """Premise in the other language, claim in the first; the mixture never asks it."""
    premise, kind, value, label = _claim(rng, NLI)
    return _pair(say_other(premise), feature(premise, kind, value), label, NLI)


def phrase_entailment(rng: np.random.Generator) -> Item:
    """The claim keeps or changes everything at once (longer hypotheses)."""
    premise = sight(rng, 2)
    label = pick(rng, (YES, NO))
    told = premise if label == YES else changed(rng, premise, pick(rng, premise.told()))
    return _pair(say(premise), f"there is a {phrase(told)} in the {told.place} .", label, (YES, NO))


def answers(rng: np.random.Generator) -> Item:
    """Does a sentence answer a question?"""
    s = sight(rng, 1)
    label = pick(rng, (YES, NO))
    about = s if label == YES else sight(rng, 1)
    while label == NO and about.animal == s.animal:
        about = sight(rng, 1)
    question = f"where is the {about.animal} ?"
    slots = {"premise": say(s), "question": question}
    return Item(f"{say(s)} {question}", label, slots, (YES, NO))


def paraphrase(rng: np.random.Generator) -> Item:
    """Active and passive voice; a changed actor or thing is no paraphrase."""
    a, b = several(rng, WOMEN + MEN, 2)
    thing, other = several(rng, list(THINGS), 2)
    label = pick(rng, (YES, NO))
    if label == NO and rng.random() < 0.5:
        passive = f"the {other} was taken by {a} ."
    else:
        passive = f"the {thing} was taken by {a if label == YES else b} ."
    return _pair(f"{a} took the {thing} .", passive, label, (YES, NO))


def swapped(rng: np.random.Generator) -> Item:
    """Same words, another order: who sees whom."""
    a, b = several(rng, WOMEN + MEN, 2)
    label = pick(rng, (YES, NO))
    who, whom = (a, b) if label == YES else (b, a)
    return _pair(f"{a} sees {b} .", f"{whom} is seen by {who} .", label, (YES, NO))


def same_question(rng: np.random.Generator) -> Item:
    """Do two questions ask the same?"""
    relation, other = several(rng, ("material", "room", "use"), 2)
    thing, another = several(rng, list(THINGS), 2)
    label = pick(rng, (YES, NO))
    same_thing = rng.random() < 0.5
    second = ASK[relation if label == YES or not same_thing else other]
    subject = thing if label == YES or same_thing else another
    return _pair(ASK[relation].format(thing), second.format(subject), label, (YES, NO))


def similarity(rng: np.random.Generator) -> Item:
    """How many of the features two sentences share, 0 to 3."""
    s = sight(rng, 1)
    kinds = ["place", "verb", next(k for k in ("size", "color", "mood") if getattr(s, k))]
    other = s
    num_changed = int(rng.integers(4))
    for kind in several(rng, kinds, num_changed):
        other = changed(rng, other, kind)
    answer = str(3 - num_changed)
    return _pair(say(s), say(other), answer, ("0", "1", "2", "3"))


def _pair(premise: str, claim: str, label: str, labels: tuple[str, ...]) -> Item:
    return Item(f"{premise} {claim}", label, {"premise": premise, "claim": claim}, labels)
