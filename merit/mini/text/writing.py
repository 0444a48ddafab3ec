"""Writing: translate, summarise, put into words, put in order, judge, compute, program."""

from __future__ import annotations

import numpy as np

from merit.mini.text.items import Item, pick, several
from merit.mini.text.lexicon import BAD, GOOD, MEN, REVIEWED, THINGS, WOMEN
from merit.mini.text.sentences import Sight, phrase, phrase_other, say, say_other, sight

PEOPLE = WOMEN + MEN

# --- the two languages, structure to text -----------------------------------------------------


def translate(rng: np.random.Generator, num_adjectives: int = 1) -> Item:
    """A sentence and its translation."""
    s = sight(rng, num_adjectives)
    return Item(say(s), say_other(s), {"text": say(s), "other": say_other(s)})


def translate_back(rng: np.random.Generator, num_adjectives: int = 1) -> Item:
    s = sight(rng, num_adjectives)
    return Item(say(s), say(s), {"text": say_other(s)})


def translate_phrase(rng: np.random.Generator) -> Item:
    s = sight(rng, int(rng.integers(3)))
    return Item(f"the {phrase(s)}", phrase_other(s), {"text": f"the {phrase(s)}"})


def translate_phrase_back(rng: np.random.Generator) -> Item:
    s = sight(rng, int(rng.integers(3)))
    return Item(f"the {phrase(s)}", f"the {phrase(s)}", {"text": phrase_other(s)})


def long_translate(rng: np.random.Generator) -> Item:
    return translate(rng, 2)


def long_translate_back(rng: np.random.Generator) -> Item:
    return translate_back(rng, 2)


def from_words(rng: np.random.Generator) -> Item:
    """A sentence that uses the given words."""
    s = sight(rng, 0)
    return _sight_item(s, " , ".join(several(rng, [s.animal, s.verb, s.place], 3)))


def from_table(rng: np.random.Generator) -> Item:
    """A sentence from attributes."""
    s = sight(rng, 2)
    cells = [f"animal : {s.animal}", *(f"is : {a}" for a in s.adjectives())]
    return _sight_item(s, " , ".join([*cells, f"place : {s.place}", f"does : {s.verb}"]))


def from_triples(rng: np.random.Generator) -> Item:
    """A sentence from subject-relation-object triples."""
    s = sight(rng, 1)
    (adjective,) = s.adjectives()
    rows = [f"{s.animal} is {adjective}", f"{s.animal} place {s.place}", f"{s.animal} {s.verb}"]
    return _sight_item(s, " ; ".join(rows))


# --- shorter ----------------------------------------------------------------------------------


def headline(rng: np.random.Generator) -> Item:
    """Who does what."""
    s = sight(rng, 2)
    return Item(say(s), f"{s.animal} {s.verb}", {"text": say(s)})


def first_news(rng: np.random.Generator) -> Item:
    """The first of three sentences, without its adjectives."""
    three = [sight(rng, 1) for _ in range(3)]
    text = " ".join(map(say, three))
    s = three[0]
    return Item(text, f"the {s.animal} {s.verb} in the {s.place} .", {"text": text})


def topics(rng: np.random.Generator) -> Item:
    """All animals of three sentences."""
    three = [sight(rng, 1) for _ in range(3)]
    text = " ".join(map(say, three))
    return Item(text, " , ".join(s.animal for s in three), {"text": text})


def steps(rng: np.random.Generator) -> Item:
    """The title of instructions."""
    thing, other = several(rng, list(THINGS), 2)
    verb, past = pick(rng, (("wash", "clean"), ("fix", "whole"), ("sell", "sold")))
    text = f"first take the {thing} . then bring the {other} . at last the {thing} is {past} ."
    return Item(text, f"how to {verb} the {thing}", {"text": text})


# --- opinions ---------------------------------------------------------------------------------


def review(rng: np.random.Generator) -> Item:
    """Good or bad; half of the clauses are negated."""
    subject, other = several(rng, REVIEWED, 2)
    good = rng.random() < 0.5
    clauses = []
    for what in (subject, other):
        negated = rng.random() < 0.4
        word = pick(rng, GOOD if good != negated else BAD)
        clauses.append(f"the {what} was {'not ' if negated else ''}{word}")
    text = f"{clauses[0]} and {clauses[1]} ."
    slots = {"text": text, "subject": subject}
    return Item(text, "good" if good else "bad", slots, ("good", "bad"))


def opinion(rng: np.random.Generator) -> Item:
    """What several reviews agree on, in one sentence."""
    item = review(rng)
    return Item(item.key, f"a {item.answer} {item.slots['subject']} .", item.slots)


# --- form -------------------------------------------------------------------------------------


def acceptable(rng: np.random.Generator) -> Item:
    """Words in order, or not."""
    words = say(sight(rng, 1)).split()[:-1]
    label = pick(rng, ("yes", "no"))
    if label == "no":
        i = int(rng.integers(len(words) - 1))
        words[i], words[i + 1] = words[i + 1], words[i]
    text = f"{' '.join(words)} ."
    return Item(text, label, {"text": text}, ("yes", "no"))


def punctuate(rng: np.random.Generator) -> Item:
    """Two sentences whose full stops are gone."""
    text = f"{say(sight(rng, 1))} {say(sight(rng, 0))}"
    return Item(text, text, {"text": text.replace(" .", "")})


def capitals(rng: np.random.Generator) -> Item:
    """Names in capitals."""
    a, b = several(rng, PEOPLE, 2)
    thing = pick(rng, list(THINGS))
    text = f"{a} gave the {thing} to {b} ."
    return Item(text, text.replace(a, a.title()).replace(b, b.title()), {"text": text})


def segment(rng: np.random.Generator) -> Item:
    """Marks between the phrases of a list without commas."""
    phrases = [phrase(sight(rng, int(rng.integers(2)))) for _ in range(3)]
    return Item(" ".join(phrases), " , ".join(phrases), {"text": " ".join(phrases)})


# --- numbers, words, programs -----------------------------------------------------------------


def calculate(rng: np.random.Generator) -> Item:
    """Sums, differences, the largest of a list, a list in order."""
    kind = int(rng.integers(4))
    m, n = sorted(int(x) for x in rng.integers(0, 11, 2))
    numbers = several(rng, range(21), 4)
    shown = " ".join(map(str, numbers))
    question, answer = (
        (f"{m} + {n}", str(m + n)),
        (f"{n} - {m}", str(n - m)),
        (f"the largest of {shown}", str(max(numbers))),
        (f"sort {shown}", " ".join(map(str, sorted(numbers)))),
    )[kind]
    return Item(question, answer, {"question": question})


def question_type(rng: np.random.Generator) -> Item:
    """What a question asks for."""
    person, thing = pick(rng, PEOPLE), pick(rng, ("book", "cup", "key", "bag"))
    texts = {
        "person": (f"who has the {thing} ?", f"who took the {thing} from {person} ?"),
        "place": (f"where is {person} ?", f"where did {person} leave the {thing} ?"),
        "number": (f"how many {thing}s does {person} have ?", f"how many people see {person} ?"),
        "thing": (f"what does {person} have ?", f"what is near the {thing} of {person} ?"),
        "time": (f"when did {person} take the {thing} ?", f"when does {person} come ?"),
    }
    label = pick(rng, list(texts))
    text = pick(rng, texts[label])
    return Item(text, label, {"question": text}, tuple(texts))


SENSES = {
    "light": (("the {} bag", "a {} coat", "the {} chair"), ("the {} of the lamp", "a {} in the hall", "the {} of the sun")),
    "match": (("lit the fire with a {}", "a {} burns", "a box with one {}"), ("won the {}", "a {} in the park", "the {} is on friday")),
    "letter": (("wrote a {} to ben", "the {} is in the bag", "read the {}"), ("a is the first {}", "the word has one {}", "the last {} of the word")),
}  # fmt: skip


def same_sense(rng: np.random.Generator) -> Item:
    """Does a word mean the same in two phrases?"""
    word = pick(rng, list(SENSES))
    label = pick(rng, ("yes", "no"))
    senses = SENSES[word]
    first = int(rng.integers(2))
    a = pick(rng, senses[first])
    b = pick(rng, [c for c in senses[first if label == "yes" else 1 - first] if c != a])
    slots = {"premise": a.format(word), "claim": b.format(word), "word": word}
    return Item(f"{word} : {a} / {b}", label, slots, ("yes", "no"))


OPERATIONS = {
    "sort it": "sort",
    "reverse it": "reverse",
    "double every number": "double",
    "keep the first {n}": "first {n}",
    "keep the last {n}": "last {n}",
    "add {n} to every number": "add {n}",
}


def program(rng: np.random.Generator) -> Item:
    """Code from its description: two or three calls, one after the other."""
    chosen = several(rng, list(OPERATIONS), int(rng.integers(2, 4)))
    numbers = [int(rng.integers(1, 6)) for _ in chosen]
    described = [text.format(n=n) for text, n in zip(chosen, numbers, strict=True)]
    code = [OPERATIONS[text].format(n=n) for text, n in zip(chosen, numbers, strict=True)]
    text = " , then ".join(described)
    return Item(text, f"x . {' . '.join(code)}", {"text": text})


def _sight_item(s: Sight, text: str) -> Item:
    return Item(f"{text} -> {say(s)}", say(s), {"text": text})
