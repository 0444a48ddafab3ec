"""What the base is tuned on: several turns about one image, answered at length.

The base describes and answers in sentences. It has seen most skills and few short answers;
fine-tuning asks for other styles of answer and some new skills.
"""

from __future__ import annotations

import numpy as np

from merit.mini.world.questions import Question
from merit.mini.world.scene import COLOURS, GRID, SHAPES, Scene, cell, phrase
from merit.mini.world.skills import SKILLS, Skill, askable
from merit.mini.world.world_tasks import SHORT, option_turn, training_wording

DESCRIBE = (
    "describe this image .",
    "please describe what is shown .",
    "describe the whole image .",
    "what can you see here ?",
    "tell me all about the image .",
    "give a long description .",
    "what is in this image ? say all .",
)
READ = ("read the image row by row .", "what is in every row ?")
EXPLAIN = (
    "answer both at length .",
    "tell me both and say why .",
    "answer at length .",
    "please answer both and say why .",
)
SHORT_SHARE, OPTION_SHARE = 0.03, 0.12  # of the single questions; the others get a sentence
# Skills that a base may lack: `known_skills` leaves out the first `num_new`.
NEW_SKILLS = (
    *("row_mate", "second", "bar_difference", "digit_difference", "same_colour", "bars_above"),
    *("count_pair", "common_colour", "digit_sum", "larger_digit", "word_kind", "shortest"),
    *("count_size", "above", "taller", "sign_says"),
)


def known_skills(num_new: int) -> frozenset[str]:
    """The skills of a base that has not seen the first `num_new` of `NEW_SKILLS`."""
    return frozenset(s.name for s in SKILLS) - set(NEW_SKILLS[:num_new])


def description(scene: Scene) -> str:
    """Everything in the scene, one sentence per fact."""
    sentences = [f"the ground is {scene.ground} ."]
    if scene.text:
        verb = "shows" if scene.text.isdigit() else "says"
        sentences.append(f"the sign {verb} {scene.text} .")
    if scene.digits:
        sentences.append(f"the digits are {scene.digits[0]} and {scene.digits[1]} .")
    sentences += [f"the {bar.colour} bar is {bar.height} high ." for bar in scene.bars]
    sentences += [f"a {t.size} {phrase(t)} in {cell(t)} ." for t in scene.things]
    return " ".join(sentences)


def reading(scene: Scene) -> str:
    """The content of every cell, row by row: the dense caption of stage 1 (alignment)."""
    cells = [["none"] * GRID for _ in range(GRID)]
    for thing in scene.things:
        cells[thing.row][thing.column] = f"{thing.size} {phrase(thing)}"
    if scene.text:
        cells[0] = ["sign", scene.text]
    if scene.digits:
        cells[0] = ["digits", str(scene.digits[0]), str(scene.digits[1])]
    if scene.bars:
        cells = [[f"{bar.colour} {bar.height}" for bar in scene.bars]]
    rows = [f"row {i} : {' , '.join(row)} ." for i, row in enumerate(cells, start=1)]
    return f"{scene.ground} ground . {' '.join(rows)}"


def facts(scene: Scene) -> tuple[list[list[str]], list[str]]:
    """(facts, wrong) that the open-answer rubric looks for in a description of the scene."""
    named = [[f"ground is {scene.ground}", f"{scene.ground} ground"]]
    wrong: list[str] = []
    if scene.text:
        named.append([scene.text])
    if scene.digits:
        named += [[f"{a} and {b}", f"{a} {b}", f"{a} + {b}"] for a, b in [scene.digits]]
    named += [[f"{b.colour} bar is {b.height}", f"{b.colour} {b.height}"] for b in scene.bars]
    present = {phrase(t) for t in scene.things}
    for thing in scene.things:
        named.append([f"{thing.size} {phrase(thing)} in {cell(thing)}"])
    named += [[text] for text in sorted(present)]
    if scene.things:
        wrong = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in present]
    return named, wrong


def explanation(questions: list[Question]) -> str:
    """The answers to several questions, each with its evidence."""
    return " ".join(f"{q.statement} . here {q.evidence} ." for q in questions)


def draw_questions(
    scene: Scene, rng: np.random.Generator, count: int, names: frozenset[str]
) -> list[tuple[Skill, Question]]:
    """Up to `count` questions of different skills out of `names`."""
    skills = [s for s in askable(scene) if s.name in names]
    found: list[tuple[Skill, Question]] = []
    for i in rng.permutation(len(skills)):
        question = skills[int(i)].ask(scene, rng)
        if question is not None:
            found.append((skills[int(i)], question))
        if len(found) == count:
            break
    return found


def converse(
    scene: Scene, rng: np.random.Generator, known: frozenset[str]
) -> list[tuple[str, str]]:
    """Turns (prompt, answer) of one conversation about `known` skills."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.5:
        turns.append((DESCRIBE[int(rng.integers(len(DESCRIBE)))], description(scene)))
    asked = draw_questions(scene, rng, 5, known)
    if len(asked) >= 2 and rng.random() < 0.5:
        pair, asked = asked[:2], asked[2:]
        texts = " ".join(training_wording(s, q, rng) for s, q in pair)
        suffix = EXPLAIN[int(rng.integers(len(EXPLAIN)))]
        turns.append((f"{texts} {suffix}", explanation([q for _, q in pair])))
    for subject, question in asked:
        text = training_wording(subject, question, rng)
        style = rng.random()
        if style < SHORT_SHARE:
            turns.append((f"{text} {SHORT[int(rng.integers(3))]}", question.answer))
        elif style < SHORT_SHARE + OPTION_SHARE:
            turns.append(option_turn(text, question, int(rng.integers(3)), rng))
        else:
            turns.append((text, f"{question.statement} ."))
    order = rng.permutation(len(turns))
    return [turns[int(i)] for i in order]
