"""Reading: short passages, and questions that they answer."""

from __future__ import annotations

import numpy as np

from merit.mini.text.items import Item, listed, offered, pick, several
from merit.mini.text.lexicon import COLOURS, MEN, PLACES, THINGS, WOMEN

PEOPLE = WOMEN + MEN
Passage = tuple[str, dict[str, str], dict[str, str]]


def _passage(rng: np.random.Generator) -> Passage:
    """(text, person -> place, person -> thing) of two or three people."""
    people = several(rng, PEOPLE, int(rng.integers(2, 4)))
    where = dict(zip(people, several(rng, PLACES, len(people)), strict=True))
    has = dict(zip(people, several(rng, list(THINGS), len(people)), strict=True))
    text = " ".join(f"{p} is in the {where[p]} and has a {has[p]} ." for p in people)
    return text, where, has


def yes_no(rng: np.random.Generator) -> Item:
    """Is it as the question says? A wrong question names what nobody in the passage has."""
    text, where, has = _passage(rng)
    person = pick(rng, list(where))
    answer = pick(rng, ("yes", "no"))
    place, thing = where[person], has[person]
    if answer == "no":
        place = pick(rng, [p for p in PLACES if p not in where.values()])
        thing = pick(rng, [t for t in THINGS if t not in has.values()])
    questions = f"is {person} in the {place} ?", f"does {person} have the {thing} ?"
    question = questions[0 if rng.random() < 0.5 else 1]
    return _item(text, question, answer, ("yes", "no"))


def span(rng: np.random.Generator) -> Item:
    """A word of the passage answers."""
    text, where, has = _passage(rng)
    person = pick(rng, list(where))
    kind = int(rng.integers(3))
    if kind == 0:
        return _item(text, f"where is {person} ?", where[person], tuple(where.values()))
    if kind == 1:
        return _item(text, f"what does {person} have ?", has[person], tuple(has.values()))
    return _item(text, f"who has the {has[person]} ?", person, tuple(where))


def span_or_nothing(rng: np.random.Generator) -> Item:
    """A third of the questions is about somebody else."""
    item = span(rng)
    if rng.random() < 2 / 3:
        return item
    text = item.slots["passage"]
    stranger = pick(rng, [p for p in PEOPLE if p not in text.split()])
    return _item(text, f"where is {stranger} ?", "none", ())


def is_answer(rng: np.random.Generator) -> Item:
    """Is a proposed answer right?"""
    item = span(rng)
    right = pick(rng, ("yes", "no"))
    proposed = item.answer
    if right == "no":
        proposed = pick(rng, [option for option in item.options if option != item.answer])
    slots = {**item.slots, "proposed": proposed}
    return Item(f"{item.key} {proposed}", right, slots, ("yes", "no"))


def how_many(rng: np.random.Generator) -> Item:
    """Counting and adding over a passage."""
    a, b = several(rng, PEOPLE, 2)
    m, n = int(rng.integers(1, 10)), int(rng.integers(1, 10))
    thing = pick(rng, ("book", "cup", "key", "bag"))
    text = f"{a} has {m} {thing}s . {b} has {n} {thing}s ."
    person, count = (a, m) if rng.random() < 0.5 else (b, n)
    both = f"how many {thing}s do they have ?", m + n
    one = f"how many {thing}s does {person} have ?", count
    question, answer = pick(rng, (both, one))
    return _item(text, question, str(answer), ())


def cloze(rng: np.random.Generator) -> Item:
    """A name is missing from a sentence about the passage."""
    text, where, has = _passage(rng)
    person = pick(rng, list(where))
    question = f"_ is in the {where[person]} ."
    if rng.random() < 0.5:
        question = f"_ has a {has[person]} ."
    return _item(text, question, person, tuple(where))


def open_book(rng: np.random.Generator) -> Item:
    """A sentence about one thing's colour, and four colours."""
    thing = pick(rng, list(THINGS))
    person = pick(rng, PEOPLE)
    color = pick(rng, COLOURS)
    options = offered(rng, color, COLOURS, 4)
    text = f"{person} has a {color} {thing} ."
    return _item(text, f"what color is the {thing} ?", color, options)


def dialogue(rng: np.random.Generator) -> Item:
    """Two questions about one passage; the first comes with its answer."""
    text, where, has = _passage(rng)
    person, other = several(rng, list(where), 2)
    history = f"where is {other} ? {where[other]} ."
    place, thing = (
        (f"where is {person} ?", where[person]),
        (f"what does {person} have ?", has[person]),
    )
    question, answer = pick(rng, (place, thing))
    item = _item(text, question, answer, ())
    return Item(item.key, item.answer, {**item.slots, "history": history}, item.options)


def request(rng: np.random.Generator) -> Item:
    """A letter that asks for a thing; its subject and its short report."""
    a, b = several(rng, PEOPLE, 2)
    thing, place = pick(rng, list(THINGS)), pick(rng, PLACES)
    letter = f"dear {b} , can you bring the {thing} to the {place} ? yours {a}"
    talk = f"{a} : do you have the {thing} ? {b} : yes , it is in the {place} ."
    report = f"{b} has the {thing} in the {place} ."
    return Item(letter, f"the {thing}", {"letter": letter, "talk": talk, "report": report})


def reported(rng: np.random.Generator) -> Item:
    """A dialogue in one sentence."""
    item = request(rng)
    return Item(item.key, item.slots["report"], item.slots)


def _item(text: str, question: str, answer: str, options: tuple[str, ...]) -> Item:
    slots = {"passage": text, "question": question}
    if options:
        slots["options"] = listed(options)
    return Item(f"{text} {question}", answer, slots, options)
