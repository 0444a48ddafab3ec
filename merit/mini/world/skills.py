"""The 32 skills: what each asks (`merit.mini.world.questions`), of which scenes, in which words.

A skill has one wording for the benchmarks and others for training, so that no benchmark question
is worded as any training question is.
"""

from __future__ import annotations

from dataclasses import dataclass

from merit.mini.world import questions
from merit.mini.world.questions import Ask
from merit.mini.world.scene import Scene


@dataclass(frozen=True)
class Skill:
    """`wordings[0]` is for benchmarks, the others are for training; `{slot}`s are filled in."""

    name: str
    family: str
    kinds: tuple[str, ...]
    wordings: tuple[str, ...]
    ask: Ask


WITH_THINGS = ("shapes",)
ALL_KINDS = ("shapes", "sign", "sum")

SKILLS: tuple[Skill, ...] = (
    Skill("count_shape", "counting", WITH_THINGS, ("how many {what} are in the image ?", "how many {what} are there ?", "count the {what} ."), questions.counting("shape")),
    Skill("count_colour", "counting", WITH_THINGS, ("how many {what} are in the image ?", "how many {what} can you see ?", "count all {what} ."), questions.counting("colour")),
    Skill("count_size", "counting", WITH_THINGS, ("how many {what} are in the image ?", "how many {what} do you find ?", "count every one of the {what} ."), questions.counting("size")),
    Skill("count_all", "counting", WITH_THINGS, ("how many things are in the image ?", "how many things are there ?", "how many things are shown ?"), questions.count_all),
    Skill("count_pair", "multi-hop", WITH_THINGS, ("how many {what} are in the image together ?", "how many {what} are there together ?", "count the {what} together ."), questions.count_pair),
    Skill("presence", "presence", WITH_THINGS, ("is a {what} in the image ?", "is there a {what} ?", "can you see a {what} ?"), questions.presence),
    Skill("colour_of", "classification", WITH_THINGS, ("what is the color of the {what} ?", "what color is the {what} ?", "which color is the {what} ?"), questions.attribute("colour", "shape")),
    Skill("shape_of", "classification", WITH_THINGS, ("what is the shape of the {what} ?", "what shape is the {what} ?", "which shape is the {what} ?"), questions.attribute("shape", "colour")),
    Skill("size_of", "classification", WITH_THINGS, ("what is the size of the {what} ?", "what size is the {what} ?", "name the size of the {what} ."), questions.attribute("size", "phrase")),
    Skill("place_of", "position", WITH_THINGS, ("in which corner is the {what} ?", "where is the {what} ?", "which corner is the {what} in ?"), questions.place_of),
    Skill("left_of", "position", WITH_THINGS, ("is the {what} left of the {other} ?", "is the {what} to the left of the {other} ?", "does the {what} stand left of the {other} ?"), questions.ordering("left of", "column")),
    Skill("above", "position", WITH_THINGS, ("can you see the {what} above the {other} ?", "is the {what} above the {other} ?", "does the {what} stand above the {other} ?"), questions.ordering("above", "row")),
    Skill("ground", "classification", ALL_KINDS, ("which ground can you see ?", "what is the ground like ?", "what ground can be seen ?"), questions.ground),
    Skill("same_colour", "multi-hop", WITH_THINGS, ("how many other things are in the color of the {what} ?", "how many other things share the color of the {what} ?", "count the other things in the color of the {what} ."), questions.same_colour),
    Skill("common_colour", "multi-hop", WITH_THINGS, ("what is the most common color ?", "what color is the most common ?", "name the most common color ."), questions.common_colour),
    Skill("row_mate", "multi-hop", WITH_THINGS, ("which shape is in the same row as the {what} ?", "what shape is in the same row as the {what} ?", "name the shape in the same row as the {what} ."), questions.row_mate),
    Skill("bar_height", "chart reading", ("chart",), ("what is the height of the {what} bar ?", "what height does the {what} bar have ?", "read the height of the {what} bar ."), questions.bar_height),
    Skill("tallest", "chart reading", ("chart",), ("what color does the tallest bar have ?", "what color is the tallest bar ?", "name the tallest bar ."), questions.ranked(0, "tallest")),
    Skill("shortest", "chart reading", ("chart",), ("what color does the shortest bar have ?", "what color is the shortest bar ?", "name the shortest bar ."), questions.ranked(-1, "shortest")),
    Skill("second", "multi-hop", ("chart",), ("what color does the second tallest bar have ?", "what color is the second tallest bar ?", "name the second tallest bar ."), questions.ranked(1, "second tallest")),
    Skill("taller", "comparison", ("chart",), ("please say : is the {what} bar taller than the {other} bar ?", "is the {what} bar taller than the {other} bar ?", "does the {what} bar stand taller than the {other} bar ?"), questions.taller),
    Skill("bar_difference", "arithmetic", ("chart",), ("what is the difference of the {what} and the {other} bar ?", "what is the difference of the {what} bar and the {other} bar ?", "by how many do the {what} bar and the {other} bar differ ?"), questions.bar_difference),
    Skill("bars_above", "chart reading", ("chart",), ("how many bars are taller than {what} ?", "how many bars are over {what} ?", "count the bars over {what} ."), questions.bars_above),
    Skill("bar_right_of", "position", ("chart",), ("what bar is right of the {what} bar ?", "what bar is to the right of the {what} bar ?", "which bar is right of the {what} bar ?"), questions.bar_right_of),
    Skill("read_word", "ocr", ("sign",), ("what word is on the sign ?", "what does the sign say ?", "which word does the sign have ?"), questions.read_word),
    Skill("read_number", "ocr", ("sign",), ("what number does the sign have ?", "what number is on the sign ?", "read the number on the sign ."), questions.read_number),
    Skill("word_kind", "multi-hop", ("sign",), ("what kind of thing does the word on the sign name ?", "what kind of thing does the sign name ?", "name the kind of the word on the sign ."), questions.word_kind),
    Skill("sign_says", "ocr", ("sign",), ("is the word on the sign {what} ?", "does the sign say {what} ?", "is {what} the word on the sign ?"), questions.sign_says),
    Skill("digit_sum", "arithmetic", ("sum",), ("name the sum of the digits .", "what is the sum of the digits ?", "add the digits ."), questions.digit_sum),
    Skill("digit_difference", "arithmetic", ("sum",), ("name the difference of the digits .", "what is the difference of the digits ?", "by how many do the digits differ ?"), questions.digit_difference),
    Skill("larger_digit", "comparison", ("sum",), ("which digit is larger ?", "what is the larger digit ?", "name the larger digit ."), questions.larger_digit),
    Skill("left_digit", "ocr", ("sum",), ("name the left digit .", "what is the left digit ?", "which digit is on the left ?"), questions.left_digit),
)  # fmt: skip


def skill(name: str) -> Skill:
    """The skill called `name`."""
    return next(s for s in SKILLS if s.name == name)


def askable(scene: Scene) -> list[Skill]:
    """The skills that belong to the scene's kind."""
    return [s for s in SKILLS if scene.kind in s.kinds]
