"""Questions that the world's facts answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from merit.mini.text.items import Item, listed, offered, pick, several
from merit.mini.text.lexicon import (
    ANIMAL_RELATIONS,
    ANIMALS,
    PROPERTY,
    THING_RELATIONS,
    THINGS,
    fact,
    values,
)

ASK = {
    "kind": "what kind of animal is the {} ?",
    "home": "where does the {} live ?",
    "food": "what does the {} eat ?",
    "color": "what color is the {} ?",
    "size": "what size is the {} ?",
    "material": "what is the {} made of ?",
    "room": "where is the {} kept ?",
    "use": "what is the {} used to do ?",
}
STATE = {
    "kind": ("the {} is a kind of {} .", "every {} is a {} ."),
    "home": ("the {} lives in the {} .", "you find the {} in the {} ."),
    "food": ("the {} eats {} .", "the food of the {} is {} ."),
    "color": ("the {} is {} .", "the color of the {} is {} ."),
    "size": ("the {} is {} .", "the size of the {} is {} ."),
    "material": ("the {} is made of {} .", "a {} is a thing of {} ."),
    "room": ("the {} is kept in the {} .", "you find the {} in the {} ."),
    "use": ("the {} is used to {} .", "with a {} you can {} ."),
}
FEATURES = {"home": "lives in the {}", "food": "eats {}", "color": "is {}", "kind": "is a {}"}


def closed_book(rng: np.random.Generator) -> Item:
    """One fact; in training, a fact that a benchmark asks for is only stated."""
    animal = rng.random() < 0.6
    entity = pick(rng, list(ANIMALS if animal else THINGS))
    relation = pick(rng, ANIMAL_RELATIONS if animal else THING_RELATIONS)
    answer = fact(entity, relation)
    others = values(relation)
    options = offered(rng, answer, others, min(4, len(others)))
    slots = {"question": ASK[relation].format(entity), "options": listed(options)}
    return Item(f"{entity} {relation}", answer, {**slots, "subject": entity}, options)


def four_way(rng: np.random.Generator) -> Item:
    """A fact with at least four possible values."""
    while True:
        item = closed_book(rng)
        if len(item.options) == 4:
            return item


def which_animal(rng: np.random.Generator) -> Item:
    """The animal that has two features; each of the others lacks exactly one (hard)."""
    entity = pick(rng, list(ANIMALS))
    first, second = several(rng, tuple(FEATURES), 2)
    a, b = fact(entity, first), fact(entity, second)
    near = [x for x in ANIMALS if (fact(x, first) == a) != (fact(x, second) == b)]
    question = f"which one {FEATURES[first].format(a)} and {FEATURES[second].format(b)} ?"
    return _choice(question, entity, offered(rng, entity, near, 4))


def which_lives(rng: np.random.Generator) -> Item:
    """The animal with one feature."""
    entity = pick(rng, list(ANIMALS))
    relation = pick(rng, tuple(FEATURES))
    value = fact(entity, relation)
    others = [x for x in ANIMALS if fact(x, relation) != value]
    question = f"which one {FEATURES[relation].format(value)} ?"
    return _choice(question, entity, offered(rng, entity, others, 4))


def which_can(rng: np.random.Generator) -> Item:
    """The thing whose material has a property: two steps, thing -> material -> property."""
    return _by_material(rng, lambda material: f"which one can {PROPERTY[material]} ?")


def which_made(rng: np.random.Generator) -> Item:
    """The thing of one material."""
    return _by_material(rng, lambda material: f"which one is made of {material} ?")


def _by_material(rng: np.random.Generator, ask: Callable[[str], str]) -> Item:
    entity = pick(rng, list(THINGS))
    material = fact(entity, "material")
    others = [x for x in THINGS if fact(x, "material") != material]
    return _choice(ask(material), entity, offered(rng, entity, others, 4))


def tool_for(rng: np.random.Generator) -> Item:
    """Which of two things serves a purpose."""
    entity = pick(rng, list(THINGS))
    use = fact(entity, "use")
    others = [x for x in THINGS if fact(x, "use") != use]
    options = offered(rng, entity, others, 2)
    return _choice(f"what do you take to {use} ?", entity, options)


def _choice(question: str, answer: str, options: tuple[str, ...]) -> Item:
    slots = {"question": question, "options": listed(options)}
    return Item(f"{question} {' '.join(sorted(options))}", answer, slots, options)


def topic(rng: np.random.Generator) -> Item:
    """What a statement is about; facts that a benchmark asks for do not occur."""
    item = closed_book(rng)
    entity = item.slots["subject"]
    relation = item.key.split()[1]
    text = pick(rng, STATE[relation]).format(entity, item.answer)
    label = fact(entity, "kind") if entity in ANIMALS else fact(entity, "room")
    return Item(item.key, label, {"text": text}, item.options)
