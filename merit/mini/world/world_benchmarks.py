"""Eight held-out benchmarks in pictures, as rows of VLMEvalKit's TSV format, and eight in words.

Other images (another seed, other handwriting), other wordings than any training example.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from merit.mini.world.base_conversations import (
    NEW_SKILLS,
    description,
    draw_questions,
    explanation,
    facts,
    known_skills,
)
from merit.mini.world.draw import Pen, draw_scene
from merit.mini.world.questions import Question
from merit.mini.world.scene import Scene, sample_scene
from merit.mini.world.skills import Skill, skill
from merit.mini.world.telling import tell
from merit.mini.world.world_tasks import SHORT, lettered, option_prompt

DESCRIBE_WORDING = "please describe this whole image ."
EXPLAIN_WORDING = "please answer both at length and say why ."
EXPLAINED = known_skills(len(NEW_SKILLS))  # what every base knows


@dataclass(frozen=True)
class Recipe:
    """How a benchmark's questions are drawn: a kind of answer, and the skills it asks for."""

    kind: str  # "choice", "exact", "describe" or "explain"
    skills: tuple[str, ...] = ()


RECIPES: dict[str, Recipe] = {
    "mini_scene": Recipe(
        "choice",
        ("count_shape", "count_colour", "count_all", "colour_of", "shape_of", "place_of",
         "common_colour", "ground"),
    ),
    # four options each, so that a guess is right one time in four
    "mini_mcq": Recipe(
        "choice",
        ("read_word", "read_number", "word_kind", "left_digit", "digit_sum", "larger_digit",
         "bar_height", "tallest", "shortest", "second", "bar_right_of", "row_mate", "shape_of",
         "colour_of", "place_of", "ground"),
    ),
    "mini_describe": Recipe("describe"),
    "mini_explain": Recipe("explain"),
    "mini_signs": Recipe("exact", ("read_word", "read_number", "word_kind", "left_digit")),
    "mini_charts": Recipe(
        "exact",
        ("bar_height", "tallest", "shortest", "bars_above", "bar_right_of", "taller", "second"),
    ),
    "mini_digits": Recipe(
        "exact", ("digit_sum", "digit_difference", "larger_digit", "bar_difference")
    ),
    "mini_multihop": Recipe(
        "exact", ("same_colour", "common_colour", "count_pair", "row_mate", "word_kind", "second")
    ),
}  # fmt: skip

# the text benchmarks, in the order of the paper's table 4; the answer is chosen ("choice") by its
# likelihood, or written ("exact")
TOLD_RECIPES: dict[str, Recipe] = {
    "mini_attributes": Recipe("choice", ("colour_of", "shape_of", "ground", "bar_height")),
    "mini_places": Recipe("choice", ("place_of", "row_mate", "bar_right_of")),
    "mini_counts": Recipe("choice", ("count_shape", "count_colour", "count_pair", "bars_above")),
    "mini_ranks": Recipe("choice", ("tallest", "shortest", "second", "common_colour")),
    "mini_reading": Recipe("exact", ("read_word", "read_number", "bar_height", "shape_of")),
    "mini_order": Recipe("exact", ("place_of", "second", "bar_right_of")),
    "mini_arithmetic": Recipe("exact", ("digit_sum", "digit_difference", "bar_difference")),
    "mini_hops": Recipe(
        "exact", ("same_colour", "common_colour", "count_pair", "row_mate", "second")
    ),
}


def told_rows(name: str, num_questions: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """As `benchmark_rows`, about scenes that are told in words; as lm-eval reads them.

    A row has `index`, `question`, `category`, `answer`; with `options`, `answer` is the position of
    the right one.
    """
    recipe = TOLD_RECIPES[name]
    rows: list[dict[str, Any]] = []
    while len(rows) < num_questions:
        subject = skill(recipe.skills[len(rows) % len(recipe.skills)])
        scene, question = _scene_for(subject, rng)
        row: dict[str, Any] = {**_closed_row(recipe.kind, subject, question, rng)}
        if recipe.kind == "choice":
            row["options"] = [row.pop(letter) for letter in "ABCD" if letter in row]
            row["answer"] = "ABCD".index(row["answer"])
            # listed: without them, the likelihoods of a base that answers in sentences are chance
            row["question"] = option_prompt(row["question"], row["options"], 0)
        row["question"] = f"{tell(scene)}\n{row['question']}"
        rows.append({"index": str(len(rows)), **row})
    return rows


def benchmark_rows(
    name: str, num_questions: int, rng: np.random.Generator, pen: Pen
) -> list[dict[str, str]]:
    """`num_questions` rows; skills take turns, so that every skill has about equal weight."""
    recipe = RECIPES[name]
    rows: list[dict[str, str]] = []
    while len(rows) < num_questions:
        if recipe.kind in ("choice", "exact"):
            subject = skill(recipe.skills[len(rows) % len(recipe.skills)])
            scene, question = _scene_for(subject, rng)
            row = _closed_row(recipe.kind, subject, question, rng)
        else:
            scene = sample_scene(rng)
            open_row = _open_row(recipe.kind, scene, rng)
            if open_row is None:
                continue
            row = open_row
        image = base64.b64encode(png(draw_scene(scene, pen))).decode()
        rows.append({"index": str(len(rows)), "image": image, **row})
    return rows


def _scene_for(subject: Skill, rng: np.random.Generator) -> tuple[Scene, Question]:
    while True:
        scene = sample_scene(rng, subject.kinds[int(rng.integers(len(subject.kinds)))])
        question = subject.ask(scene, rng)
        if question is not None:
            return scene, question


def _closed_row(
    kind: str, subject: Skill, question: Question, rng: np.random.Generator
) -> dict[str, str]:
    text = subject.wordings[0].format(**question.slots)
    row = {"question": text, "category": subject.name}
    if kind == "exact":
        return {**row, "question": f"{text} {SHORT[0]}", "answer": question.answer}
    options, letter = lettered(question, rng)
    return {**row, **dict(zip("ABCD", options, strict=False)), "answer": letter}


def _open_row(kind: str, scene: Scene, rng: np.random.Generator) -> dict[str, str] | None:
    named, wrong = facts(scene)
    question, text = DESCRIBE_WORDING, description(scene)
    if kind == "explain":
        asked = draw_questions(scene, rng, 2, EXPLAINED)
        if len(asked) < 2:
            return None
        texts = " ".join(s.wordings[0].format(**q.slots) for s, q in asked)
        questions = [q for _, q in asked]
        question, text = f"{texts} {EXPLAIN_WORDING}", explanation(questions)
        named = [[fact] for q in questions for fact in (q.statement, *_evidence_parts(q.evidence))]
        wrong = [phrase for phrase in wrong if phrase not in texts]
    answer = json.dumps({"facts": named, "wrong": wrong, "text": text})
    return {"question": question, "answer": answer, "category": scene.kind}


def _evidence_parts(evidence: str) -> list[str]:
    """A list of things is as many facts; any other evidence is one."""
    if not evidence.startswith("a "):
        return [evidence]
    return [part.removeprefix("a ") for part in evidence.split(" and ")]


def png(pixels: np.ndarray) -> bytes:
    """PNG bytes; the same pixels are the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
