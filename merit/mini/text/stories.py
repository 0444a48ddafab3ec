"""Commonsense: what people in need do, and who is meant."""

from __future__ import annotations

import numpy as np

from merit.mini.text.items import Item, listed, offered, pick, several
from merit.mini.text.lexicon import MEN, NEEDS, PRONOUN, TIMES, WOMEN

# (sentence, reason that is about the first person, reason that is about the second)
REASONS = (
    ("{a} gave the bread to {b}", "was kind", "was hungry"),
    ("{a} helped {b}", "was strong", "was weak"),
    ("{a} asked {b} for the way", "was lost", "was clever"),
    ("{a} won against {b}", "was fast", "was slow"),
    ("{a} hid from {b}", "was afraid", "was angry"),
    ("{a} bought the bike from {b}", "wanted a bike", "wanted money"),
    ("{a} sang for {b}", "had a good voice", "could not sleep"),
    ("{a} called {b}", "had a question", "knew the answer"),
)


def _beginning(rng: np.random.Generator) -> tuple[str, str, str, str]:
    """(beginning, pronoun, need, ending)."""
    name = pick(rng, WOMEN + MEN)
    need = pick(rng, list(NEEDS))
    causes, endings = NEEDS[need]
    beginning = f"{pick(rng, TIMES)} {name} {pick(rng, causes)} ."
    return beginning, PRONOUN[name], need, pick(rng, endings)


def ending(rng: np.random.Generator, count: int = 4) -> Item:
    """How a story goes on: `count` endings, each of which suits another need."""
    beginning, pronoun, need, right = _beginning(rng)
    others = several(rng, [n for n in NEEDS if n != need], count - 1)
    texts = [right, *(pick(rng, NEEDS[n][1]) for n in others)]
    options = tuple(f"{pronoun} {text} ." for text in several(rng, texts, count))
    shown = " or ".join(option.removesuffix(" .") for option in options)
    slots = {"passage": beginning, "options": shown}
    return Item(beginning, f"{pronoun} {right} .", slots, options)


def two_endings(rng: np.random.Generator) -> Item:
    return ending(rng, 2)


def feeling(rng: np.random.Generator) -> Item:
    """How somebody feels after what happened."""
    beginning, pronoun, need, _ = _beginning(rng)
    options = offered(rng, need, list(NEEDS), 4)
    question = f"how did {pronoun} feel ?"
    slots = {"passage": beginning, "question": question, "options": listed(options)}
    return Item(beginning, need, slots, options)


def cause(rng: np.random.Generator) -> Item:
    """Which of two things happened before."""
    name = pick(rng, WOMEN + MEN)
    need, other = several(rng, list(NEEDS), 2)
    right, wrong = (f"{PRONOUN[name]} {pick(rng, NEEDS[n][0])}" for n in (need, other))
    after = f"{name} {pick(rng, NEEDS[need][1])} ."
    options = tuple(several(rng, [right, wrong], 2))
    question = "what happened before ?"
    slots = {"passage": after, "question": question, "options": " or ".join(options)}
    return Item(f"{after} {right}", right, slots, options)


def who(rng: np.random.Generator) -> Item:
    """Two people of one sex and a pronoun; the reason says who is meant."""
    sentence, first, second = pick(rng, REASONS)
    a, b = several(rng, pick(rng, (WOMEN, MEN)), 2)
    is_first = rng.random() < 0.5
    answer, reason = (a, first) if is_first else (b, second)
    what = sentence.format(a=a, b=b)
    pronoun = PRONOUN[a]
    claimed = a if rng.random() < 0.5 else b
    slots = {
        "passage": f"{what} because {pronoun} {reason} .",
        "pronoun": pronoun,
        "claimed": claimed,
        "plain": f"{answer} {reason} . so {what} .",
        "options": listed((a, b)),
    }
    return Item(f"{what} because {reason}", answer, slots, tuple(several(rng, [a, b], 2)))


def is_meant(rng: np.random.Generator) -> Item:
    """The same as a yes-or-no question about one of the two."""
    item = who(rng)
    answer = "yes" if item.slots["claimed"] == item.answer else "no"
    return Item(item.key, answer, item.slots, ("yes", "no"))
