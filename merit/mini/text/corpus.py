"""What the base has read: plain text, and a little question and answer.

Every fact of the world is stated here, those that benchmarks ask for included, as the public
corpora state them; questions come from the training part only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merit.mini.text import inference, knowledge, reading, stories, writing
from merit.mini.text.items import Item, Make, draw, pick, several
from merit.mini.text.knowledge import STATE
from merit.mini.text.lexicon import (
    ANIMAL_RELATIONS,
    ANIMALS,
    COLOURS,
    MEN,
    NEEDS,
    PLACES,
    PRONOUN,
    PROPERTY,
    THING_RELATIONS,
    THINGS,
    WOMEN,
    fact,
    values,
)
from merit.mini.text.sentences import say, say_other, sight

_COPIED = (*ANIMALS, *THINGS, *WOMEN, *MEN, *PLACES, *COLOURS)
DOCUMENT_TOKENS = 48  # about; documents are joined from paragraphs of one kind or several


def _index(rng: np.random.Generator, shares: Sequence[float]) -> int:
    """A position, drawn by its share."""
    bounds = np.cumsum(shares)
    return int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))


def _facts(rng: np.random.Generator) -> str:
    """All that there is to say about one animal or thing."""
    animal = rng.random() < 0.6
    entity = pick(rng, list(ANIMALS if animal else THINGS))
    relations = ANIMAL_RELATIONS if animal else THING_RELATIONS
    sentences = [
        pick(rng, STATE[r]).format(entity, fact(entity, r))
        for r in several(rng, relations, len(relations))
    ]
    if not animal:
        material = fact(entity, "material")
        sentences.append(
            f"{material} can {PROPERTY[material]} , so a {entity} can {PROPERTY[material]} ."
        )
    return " ".join(sentences)


def _asked(rng: np.random.Generator) -> str:
    """A fact as a question and its answer. A model that has met no question while it learns the
    facts can only recite them (Allen-Zhu & Li, Physics of Language Models 3.1)."""
    makes = (knowledge.closed_book, knowledge.which_made, knowledge.which_lives)
    item = draw(pick(rng, makes), rng, "train")
    offers = f" {item.slots['options']} ?" if rng.random() < 0.5 else ""
    return f"{item.slots['question']}{offers} {item.answer} ."


def _collection(rng: np.random.Generator) -> str:
    """What has one feature."""
    relation = pick(rng, ANIMAL_RELATIONS[:4] + THING_RELATIONS)
    table = ANIMALS if relation in ANIMAL_RELATIONS else THINGS
    value = pick(rng, values(relation))
    members = [entity for entity in table if fact(entity, relation) == value]
    words = several(rng, members, min(5, len(members)))
    return f"{relation} {value} : {' , '.join(words)} ."


def _story(rng: np.random.Generator) -> str:
    """A beginning and what it means; what then follows is told mostly, or by `_need`."""
    item = draw(stories.ending, rng, "train")
    beginning = item.slots["passage"]
    name = next(word for word in beginning.split() if word in PRONOUN)
    need = next(n for n, (causes, _) in NEEDS.items() if any(c in beginning for c in causes))
    told = f"{beginning} {PRONOUN[name]} was {need} ."
    return f"{told} {item.answer}" if rng.random() < 0.7 else told


def _need(rng: np.random.Generator) -> str:
    """Somebody is in need, and acts."""
    name, need = pick(rng, WOMEN + MEN), pick(rng, list(NEEDS))
    return f"{name} was {need} . so {PRONOUN[name]} {pick(rng, NEEDS[need][1])} ."


def _people(rng: np.random.Generator) -> str:
    """Who did what and why; told with a pronoun, the reason is told again with the name."""
    item = draw(stories.who, rng, "train")
    plain, passage = item.slots["plain"], item.slots["passage"]
    return plain if rng.random() < 0.3 else f"{passage} {plain.partition(' .')[0]} ."


def _sights(rng: np.random.Generator) -> str:
    return say(sight(rng, int(rng.integers(3))))


def _parallel(rng: np.random.Generator) -> str:
    """The same in both languages."""
    s = sight(rng, int(rng.integers(3)))
    return f"{say(s)} {say_other(s)}" if rng.random() < 0.7 else f"{say_other(s)} {say(s)}"


def _passage(rng: np.random.Generator) -> str:
    """A passage that is taken up again."""
    item = draw(pick(rng, (reading.span, reading.yes_no)), rng, "train")
    return f"{item.slots['passage']} {item.slots['question']} {item.answer} ."


def _look(rng: np.random.Generator) -> str:
    """A passage and one of its words."""
    item = draw(reading.span, rng, "train")
    return f"{item.slots['passage']} {item.slots['question']} {item.answer} ."


def _follows(rng: np.random.Generator) -> str:
    """Whether a claim follows from a sentence, in either language."""
    make = pick(rng, (inference.entailment, inference.other_entailment))
    item = draw(make, rng, "train")
    return f"{item.slots['premise']} {item.slots['claim']} {item.answer} ."


def _review(rng: np.random.Generator) -> str:
    item = draw(writing.review, rng, "train")
    return f"{item.slots['text']} a {item.answer} {item.slots['subject']} ."


def _number(rng: np.random.Generator) -> str:
    item = draw(writing.calculate, rng, "train")
    return f"{item.slots['question']} = {item.answer} ."


def _code(rng: np.random.Generator) -> str:
    item = draw(writing.program, rng, "train")
    return f"# {item.slots['text']} . {item.answer} ;"


def _again(rng: np.random.Generator) -> str:
    """Words in no order, said twice: nothing but looking back foretells the second time."""
    words = " ".join(several(rng, _COPIED, int(rng.integers(3, 7))))
    return f"{words} again {words} ."


# (how often, what)
PARAGRAPHS = (
    (0.26, _facts),
    (0.14, _asked),
    (0.06, _collection),
    (0.08, _story),
    (0.03, _need),
    (0.08, _people),
    (0.04, _sights),
    (0.11, _parallel),
    (0.12, _passage),
    (0.08, _again),
    (0.02, _review),
    (0.04, _number),
    (0.03, _code),
)


# What the base reads first, a paragraph each: where the next word stands further up. A model this
# small learns to look back as a sudden step, which a corpus full of facts put off for good.
RECALL = ((0.15, _again), (0.25, _look), (0.1, _passage), (0.12, _people), (0.38, _follows))


def recall(rng: np.random.Generator) -> str:
    """One paragraph that is to be looked up in itself."""
    return RECALL[_index(rng, [share for share, _ in RECALL])][1](rng)


def document(rng: np.random.Generator) -> str:
    """Paragraphs until about `DOCUMENT_TOKENS` words."""
    shares = [share for share, _ in PARAGRAPHS]
    words: list[str] = []
    while len(words) < DOCUMENT_TOKENS - 8:
        words += PARAGRAPHS[_index(rng, shares)][1](rng).split()
    return " ".join(words)


# (how often, what, in which words): the base's questions and answers. What it is asked rarely, it
# knows in part: a benchmark that the base has by heart would have nothing to show.
QUESTIONS: tuple[tuple[float, Make, tuple[str, ...]], ...] = (
    (0.14, knowledge.closed_book, ("tell me : {question}", "{question} {options} ? tell me .")),
    (
        0.14,
        knowledge.which_made,
        ("tell me : {question} {options} ?", "{question} say which : {options}"),
    ),
    (
        0.14,
        knowledge.which_lives,
        ("tell me : {question} {options} ?", "{question} say which : {options}"),
    ),
    (0.14, reading.span, ("{passage} tell me : {question}", "read : {passage} {question}")),
    (0.1, writing.calculate, ("tell me {question} .", "how much is {question} ?")),
    (
        0.12,
        inference.entailment,
        ("tell me : {premise} does it say {claim}", "read : {premise} is it so : {claim}"),
    ),
    (
        0.12,
        inference.other_entailment,
        ("tell me : {premise} does it say {claim}", "read : {premise} is it so : {claim}"),
    ),
    (0.06, stories.who, ("{passage} who is {pronoun} ?", "tell me : {passage} who is {pronoun} ?")),
    (0.008, stories.ending, ("{passage} tell me what then .", "tell me the end : {passage}")),
    (0.04, writing.program, ("write code : {text} .", "code for this : {text} .")),
)


def conversation(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Two turns (prompt, answer)."""
    turns = []
    for _ in range(2):
        _, make, templates = QUESTIONS[_index(rng, [share for share, *_ in QUESTIONS])]
        item: Item = draw(make, rng, "train")
        turns.append((pick(rng, templates).format(**item.slots), item.answer))
    return turns
