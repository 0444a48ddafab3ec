"""One sentence about one animal, in either of the world's two languages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from merit.mini.text.items import pick
from merit.mini.text.lexicon import ANIMALS, COLOURS, MOODS, OTHER, PLACES, SIZES, VERBS

KINDS = {"color": COLOURS, "size": SIZES, "mood": MOODS, "place": PLACES, "verb": VERBS}


@dataclass(frozen=True)
class Sight:
    """ "the small red fox sleeps in the park": an adjective that is not told is ""."""

    animal: str
    size: str
    color: str
    mood: str
    verb: str
    place: str

    def adjectives(self) -> list[str]:
        return [word for word in (self.mood, self.size, self.color) if word]

    def told(self) -> list[str]:
        """The kinds of features that the sentence tells."""
        return [kind for kind in KINDS if getattr(self, kind)]


def sight(rng: np.random.Generator, num_adjectives: int = 2) -> Sight:
    """A random sight that tells `num_adjectives` of size, colour and mood."""
    chosen = set(rng.permutation(3)[:num_adjectives].tolist())
    words = [pick(rng, table) for table in (SIZES, COLOURS, MOODS)]
    size, color, mood = (word if i in chosen else "" for i, word in enumerate(words))
    return Sight(pick(rng, list(ANIMALS)), size, color, mood, pick(rng, VERBS), pick(rng, PLACES))


def phrase(s: Sight) -> str:
    return " ".join([*s.adjectives(), s.animal])


def say(s: Sight) -> str:
    return f"the {phrase(s)} {s.verb} in the {s.place} ."


def say_other(s: Sight) -> str:
    """The other language: adjectives follow in the opposite order, place before verb."""
    words = [s.animal, *reversed(s.adjectives()), s.place, s.verb]
    return f"{' '.join(OTHER[word] for word in words)} ."


def phrase_other(s: Sight) -> str:
    return " ".join(OTHER[word] for word in [s.animal, *reversed(s.adjectives())])


def feature(s: Sight, kind: str, value: str) -> str:
    """A short claim about one feature."""
    if kind == "place":
        return f"the {s.animal} is in the {value} ."
    if kind == "verb":
        return f"the {s.animal} {value} ."
    return f"the {s.animal} is {value} ."


def changed(rng: np.random.Generator, s: Sight, kind: str) -> Sight:
    """The same sight but for one feature."""
    now = getattr(s, kind)
    value = pick(rng, [value for value in KINDS[kind] if value != now])
    return replace(s, **{kind: value})
