"""What can be asked about a scene: functions from a scene to one answered question.

A function returns None if the scene does not allow its question. Wordings are in
`merit.mini.world.skills`. Text is lower case except for option letters, with spaces around
punctuation: the vocabulary has one token per word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from merit.mini.world.scene import (
    COLOURS,
    GROUNDS,
    LEXICON,
    SHAPES,
    SIZES,
    WORDS,
    Bar,
    Scene,
    Thing,
    cell,
    phrase,
    place,
    plural,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One answered question: `choices` are wrong answers, `statement` is the answer as a sentence.

    `evidence` says what in the image decides it; rationales are built from it.
    """

    slots: dict[str, str]
    answer: str
    choices: tuple[str, ...]
    statement: str
    evidence: str


Ask = Callable[[Scene, np.random.Generator], Question | None]


def _where(things: Sequence[Thing]) -> str:
    if not things:
        return "there is none"
    return " and ".join(f"a {phrase(thing)} in {cell(thing)}" for thing in things)


def _one(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


def _others(values: tuple[str, ...], answer: str) -> tuple[str, ...]:
    return tuple(value for value in values if value != answer)


def _yes_no(truth: bool) -> tuple[str, tuple[str, ...]]:
    return ("yes", ("no",)) if truth else ("no", ("yes",))


def _unique(scene: Scene, key: Callable[[Thing], object]) -> list[Thing]:
    counts = Counter(key(thing) for thing in scene.things)
    return [thing for thing in scene.things if counts[key(thing)] == 1]


def _number_question(slots: dict[str, str], number: int, statement: str, evidence: str) -> Question:
    near = (number - 2, number - 1, number + 1, number + 2, number + 3)
    choices = tuple(str(n) for n in near if n >= 0)
    return Question(slots, str(number), choices, statement, evidence)


# --- shapes -------------------------------------------------------------------------------------


def counting(attribute: str) -> Ask:
    values = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}[attribute]

    def ask(scene: Scene, rng: np.random.Generator) -> Question:
        present = sorted({getattr(thing, attribute) for thing in scene.things})
        value = _one(rng, present if rng.random() < 0.8 else values)
        matching = [thing for thing in scene.things if getattr(thing, attribute) == value]
        noun = plural(value) if attribute == "shape" else f"{value} things"
        says = f"the number of {noun} is {len(matching)}"
        return _number_question({"what": noun}, len(matching), says, _where(matching))

    return ask


def count_all(scene: Scene, rng: np.random.Generator) -> Question:
    count = len(scene.things)
    return _number_question({}, count, f"the number of things is {count}", _where(scene.things))


def count_pair(scene: Scene, rng: np.random.Generator) -> Question | None:
    present = sorted({thing.shape for thing in scene.things})
    if len(present) < 2:
        return None
    first, second = (present[int(i)] for i in rng.permutation(len(present))[:2])
    matching = [thing for thing in scene.things if thing.shape in (first, second)]
    nouns = f"{plural(first)} and {plural(second)}"
    says = f"together there are {len(matching)} {nouns}"
    return _number_question({"what": nouns}, len(matching), says, _where(matching))


def presence(scene: Scene, rng: np.random.Generator) -> Question:
    thing = _one(rng, scene.things)
    target = phrase(thing)
    if rng.random() < 0.5:
        target = f"{_one(rng, COLOURS)} {thing.shape}"
        if rng.random() < 0.5:
            target = f"{thing.colour} {_one(rng, SHAPES)}"
    matching = [t for t in scene.things if phrase(t) == target]
    says = f"there is {'a' if matching else 'no'} {target}"
    return Question({"what": target}, *_yes_no(bool(matching)), says, _where(matching))


def attribute(asked: str, given: str) -> Ask:
    """The `asked` attribute of the only thing whose `given` attribute is named."""
    values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES}[asked]
    key: Callable[[Thing], str] = phrase if given == "phrase" else lambda t: str(getattr(t, given))

    def ask(scene: Scene, rng: np.random.Generator) -> Question | None:
        candidates = _unique(scene, key)
        if not candidates:
            return None
        thing = _one(rng, candidates)
        name = f"{thing.colour} thing" if given == "colour" else key(thing)
        answer = getattr(thing, asked)
        says = f"the {name} is a {answer}" if asked == "shape" else f"the {name} is {answer}"
        return Question({"what": name}, answer, _others(values, answer), says, _where([thing]))

    return ask


def place_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    candidates = _unique(scene, phrase)
    if not candidates:
        return None
    thing = _one(rng, candidates)
    name, answer = phrase(thing), place(thing)
    others = _others(("top left", "top right", "bottom left", "bottom right"), answer)
    says = f"the {name} is at the {answer}"
    return Question({"what": name}, answer, others, says, _where([thing]))


def ordering(word: str, coordinate: str) -> Ask:
    def ask(scene: Scene, rng: np.random.Generator) -> Question | None:
        candidates = _unique(scene, phrase)
        pairs = [
            (a, b) for a in candidates for b in candidates
            if getattr(a, coordinate) != getattr(b, coordinate)
        ]  # fmt: skip
        if not pairs:
            return None
        a, b = _one(rng, pairs)
        truth = getattr(a, coordinate) < getattr(b, coordinate)
        slots = {"what": phrase(a), "other": phrase(b)}
        says = f"the {phrase(a)} is {'' if truth else 'not '}{word} the {phrase(b)}"
        return Question(slots, *_yes_no(truth), says, _where([a, b]))

    return ask


def ground(scene: Scene, rng: np.random.Generator) -> Question:
    name = scene.ground
    evidence = f"the ground looks {name}"
    return Question({}, name, _others(GROUNDS, name), f"the ground is {name}", evidence)


def same_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    candidates = _unique(scene, lambda t: t.shape)
    if not candidates or len(scene.things) < 2:
        return None
    thing = _one(rng, candidates)
    matching = [t for t in scene.things if t.colour == thing.colour and t is not thing]
    says = f"the {thing.shape} shares its color with {len(matching)} other things"
    evidence = f"the {thing.shape} is {thing.colour} and the others are {_where(matching)}"
    return _number_question({"what": thing.shape}, len(matching), says, evidence)


def common_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    counts = Counter(thing.colour for thing in scene.things).most_common()
    if len(counts) < 2 or counts[0][1] == counts[1][1]:
        return None
    answer = counts[0][0]
    present = [colour for colour, _ in counts[1:]]
    rest = [colour for colour in COLOURS if colour not in present and colour != answer]
    matching = [thing for thing in scene.things if thing.colour == answer]
    says = f"the most common color is {answer}"
    return Question({}, answer, tuple(present + rest), says, _where(matching))


def row_mate(scene: Scene, rng: np.random.Generator) -> Question | None:
    rows = Counter(thing.row for thing in scene.things)
    unique = _unique(scene, phrase)
    candidates = [thing for thing in unique if rows[thing.row] == 2]
    if not candidates:
        return None
    thing = _one(rng, candidates)
    mate = next(t for t in scene.things if t.row == thing.row and t is not thing)
    name, answer, evidence = phrase(thing), mate.shape, _where([thing, mate])
    says = f"a {answer} is in the same row as the {name}"
    return Question({"what": name}, answer, _others(SHAPES, answer), says, evidence)


# --- charts -------------------------------------------------------------------------------------


def _bars(bars: Sequence[Bar]) -> str:
    return " and ".join(f"the {bar.colour} bar is {bar.height} high" for bar in bars)


def _two_bars(scene: Scene, rng: np.random.Generator) -> tuple[Bar, Bar]:
    first, second = (scene.bars[int(i)] for i in rng.permutation(len(scene.bars))[:2])
    return first, second


def bar_height(scene: Scene, rng: np.random.Generator) -> Question:
    bar = _one(rng, scene.bars)
    evidence = f"the {bar.colour} bar is in column {bar.column + 1}"
    return _number_question({"what": bar.colour}, bar.height, _bars([bar]), evidence)


def ranked(rank: int, name: str) -> Ask:
    def ask(scene: Scene, rng: np.random.Generator) -> Question:
        ordered = sorted(scene.bars, key=lambda bar: -bar.height)
        bar = ordered[rank]
        others = tuple(other.colour for other in scene.bars if other is not bar)
        return Question({}, bar.colour, others, f"the {name} bar is {bar.colour}", _bars(ordered))

    return ask


def taller(scene: Scene, rng: np.random.Generator) -> Question:
    a, b = _two_bars(scene, rng)
    is_taller = a.height > b.height
    says = f"the {a.colour} bar is {'' if is_taller else 'not '}taller than the {b.colour} bar"
    slots = {"what": a.colour, "other": b.colour}
    return Question(slots, *_yes_no(is_taller), says, _bars([a, b]))


def bar_difference(scene: Scene, rng: np.random.Generator) -> Question:
    a, b = _two_bars(scene, rng)
    difference = abs(a.height - b.height)
    says = f"the {a.colour} bar and the {b.colour} bar differ by {difference}"
    slots = {"what": a.colour, "other": b.colour}
    return _number_question(slots, difference, says, _bars([a, b]))


def bars_above(scene: Scene, rng: np.random.Generator) -> Question:
    limit = int(rng.integers(2, 7))
    above = [bar for bar in scene.bars if bar.height > limit]
    says = f"the number of bars over {limit} is {len(above)}"
    return _number_question({"what": str(limit)}, len(above), says, _bars(above) or "there is none")


def bar_right_of(scene: Scene, rng: np.random.Generator) -> Question:
    column = int(rng.integers(len(scene.bars) - 1))
    bar, right = scene.bars[column], scene.bars[column + 1]
    others = tuple(b.colour for b in scene.bars if b is not right)
    says = f"the {right.colour} bar is right of the {bar.colour} bar"
    evidence = f"the {bar.colour} bar is in column {column + 1}"
    return Question({"what": bar.colour}, right.colour, others, says, evidence)


# --- signs and sums -------------------------------------------------------------------------------


def read_word(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.text.isdigit():
        return None
    wrong = tuple(LEXICON[int(i)] for i in rng.permutation(len(LEXICON))[:6])
    says = f"the sign says {scene.text}"
    return Question({}, scene.text, _others(wrong, scene.text), says, "the sign is in row 1")


def read_number(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not scene.text.isdigit():
        return None
    number = int(scene.text)
    wrong = [scene.text[::-1], str(10 + (number + 1) % 90), str(10 + (number + 10) % 90)]
    wrong.append(str(10 + (number + 43) % 90))
    choices = _others(tuple(dict.fromkeys(w for w in wrong if w[0] != "0")), scene.text)
    says = f"the sign shows {scene.text}"
    return Question({}, scene.text, choices, says, "the sign is in row 1")


def word_kind(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.text.isdigit():
        return None
    kind = next(name for name, group in WORDS.items() if scene.text in group)
    statement = f"the sign names a kind of {kind}"
    return Question({}, kind, _others(tuple(WORDS), kind), statement, f"the sign says {scene.text}")


def sign_says(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.text.isdigit():
        return None
    target = scene.text if rng.random() < 0.5 else _one(rng, LEXICON)
    is_said = target == scene.text
    says = f"the sign does {'' if is_said else 'not '}say {target}"
    evidence = f"the sign says {scene.text}"
    return Question({"what": target}, *_yes_no(is_said), says, evidence)


def _digits(scene: Scene) -> str:
    return f"the digits are {scene.digits[0]} and {scene.digits[1]}"


def digit_sum(scene: Scene, rng: np.random.Generator) -> Question:
    total = sum(scene.digits)
    return _number_question({}, total, f"the sum is {total}", _digits(scene))


def digit_difference(scene: Scene, rng: np.random.Generator) -> Question:
    difference = abs(scene.digits[0] - scene.digits[1])
    return _number_question({}, difference, f"the digits differ by {difference}", _digits(scene))


def larger_digit(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.digits[0] == scene.digits[1]:
        return None
    larger = max(scene.digits)
    return _number_question({}, larger, f"the larger digit is {larger}", _digits(scene))


def left_digit(scene: Scene, rng: np.random.Generator) -> Question:
    left = scene.digits[0]
    return _number_question({}, left, f"the left digit is {left}", "it is in row 1 column 1")
