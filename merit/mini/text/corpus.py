"""What the base reads: plain text, and a few questions with answers.

Every fact of the world is stated here, including those that benchmarks ask for, as in public
corpora; questions come only from the training part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from merit.mini.text import inference, knowledge, reading, stories, writing
from merit.mini.text.items import Make, draw, pick, several
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

Write = Callable[[np.random.Generator], str]
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


def _say(template: str, *makes: Make) -> Write:
    """A paragraph: an item of the training part in the words of `template`."""

    def write(rng: np.random.Generator) -> str:
        make = pick(rng, makes) if len(makes) > 1 else makes[0]
        item = draw(make, rng, "train")
        return template.format(answer=item.answer, **item.slots)

    return write


_passage = _say("{passage} {question} {answer} .", reading.span, reading.yes_no)
_look = _say("{passage} {question} {answer} .", reading.span)  # the answer stands in the passage
_follows = _say("{premise} {claim} {answer} .", inference.entailment, inference.other_entailment)
_review = _say("{text} a {answer} {subject} .", writing.review)
_number = _say("{question} = {answer} .", writing.calculate)
_code = _say("# {text} . {answer} ;", writing.program)


def _again(rng: np.random.Generator) -> str:
    """Random words, said twice: only looking back predicts the second time."""
    words = " ".join(several(rng, _COPIED, int(rng.integers(3, 7))))
    return f"{words} again {words} ."


PARAGRAPHS: tuple[tuple[float, Write], ...] = (  # (share, what)
    *((0.26, _facts), (0.14, _asked), (0.06, _collection), (0.08, _story), (0.03, _need)),
    *((0.08, _people), (0.04, _sights), (0.11, _parallel), (0.12, _passage), (0.08, _again)),
    *((0.02, _review), (0.04, _number), (0.03, _code)),
)
# What the base reads first, one paragraph each: the next word stands further up. A model this small
# learns to look back in a sudden step, which a corpus full of facts would delay for good.
RECALL: tuple[tuple[float, Write], ...] = (
    *((0.15, _again), (0.25, _look), (0.1, _passage), (0.12, _people), (0.38, _follows)),
)


def recall(rng: np.random.Generator) -> str:
    """One paragraph that can be completed by looking back in it."""
    return RECALL[_index(rng, [share for share, _ in RECALL])][1](rng)


def document(rng: np.random.Generator) -> str:
    """Paragraphs until about `DOCUMENT_TOKENS` words."""
    shares = [share for share, _ in PARAGRAPHS]
    words: list[str] = []
    while len(words) < DOCUMENT_TOKENS - 8:
        words += PARAGRAPHS[_index(rng, shares)][1](rng).split()
    return " ".join(words)


_CHOOSE = ("tell me : {question} {options} ?", "{question} say which : {options}")
_CLAIM = ("tell me : {premise} does it say {claim}", "read : {premise} is it so : {claim}")
# (share, what, in which words): the base's questions and answers. It knows in part what it is
# rarely asked: a benchmark that the base has by heart would have nothing to show.
QUESTIONS: tuple[tuple[float, Make, tuple[str, ...]], ...] = (
    (0.14, knowledge.closed_book, ("tell me : {question}", "{question} {options} ? tell me .")),
    (0.14, knowledge.which_made, _CHOOSE),
    (0.14, knowledge.which_lives, _CHOOSE),
    (0.14, reading.span, ("{passage} tell me : {question}", "read : {passage} {question}")),
    (0.1, writing.calculate, ("tell me {question} .", "how much is {question} ?")),
    (0.12, inference.entailment, _CLAIM),
    (0.12, inference.other_entailment, _CLAIM),
    (0.06, stories.who, ("{passage} who is {pronoun} ?", "tell me : {passage} who is {pronoun} ?")),
    (0.008, stories.ending, ("{passage} tell me what then .", "tell me the end : {passage}")),
    (0.04, writing.program, ("write code : {text} .", "code for this : {text} .")),
)


def conversation(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Two turns (prompt, answer)."""
    turns = []
    for _ in range(2):
        _, make, templates = QUESTIONS[_index(rng, [share for share, *_ in QUESTIONS])]
        item = draw(make, rng, "train")
        turns.append((pick(rng, templates).format(**item.slots), item.answer))
    return turns
