"""The eight text benchmarks' questions, as rows of JSON for lm-eval.

Questions come from parts of the world that training never asks about (`items.part_of`), in wordings
that no task uses. The base's corpus states every fact that they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from merit.errors import MeritError
from merit.mini.text import inference, knowledge, stories, writing
from merit.mini.text.items import Item, Make, Part, draw

Row = dict[str, Any]
PATIENCE = 1000  # questions drawn again before the part counts as exhausted


@dataclass(frozen=True)
class Recipe:
    """`generates`: the answer is written, not chosen from `options`."""

    make: tuple[Make, ...]
    template: str
    generates: bool = False


# in the order of the paper's table 4
RECIPES: Mapping[str, Recipe] = {
    "mini_facts": Recipe((knowledge.four_way,), "exam : {question} {options} ?"),
    "mini_twofold": Recipe((knowledge.which_animal,), "question : {question} {options} ?"),
    "mini_endings": Recipe((stories.ending,), "how does it end ? {passage}"),
    "mini_whois": Recipe((stories.who,), "{passage} {pronoun} is who ?"),
    "mini_passages": Recipe(
        (inference.entailment,), "text : {premise} question : {claim} is it so ?"
    ),
    "mini_crosslingual": Recipe(
        (inference.entailment, inference.other_entailment),
        "premise : {premise} claim : {claim} is it so ?",
    ),
    "mini_science": Recipe((knowledge.which_can,), "question : {question} {options} ?", True),
    "mini_programs": Recipe((writing.program,), "program : {text} .", True),
}


def benchmark_rows(name: str, count: int, rng: np.random.Generator, part: Part) -> list[Row]:
    """`count` different questions of one benchmark from `part`.

    A row has `index`, `question`, `answer`, `category`; with `options`, `answer` is the position of
    the right one. Raises MeritError if the part holds fewer questions.
    """
    recipe = RECIPES[name]
    rows: dict[str, Row] = {}
    misses = 0  # in a row
    while len(rows) < count:
        if misses > PATIENCE:
            raise MeritError(
                f"benchmark {name!r}: the {part} part of the world holds about {len(rows)} "
                f"different questions, not {count}; lower the number in the experiment's `data`"
            )
        make = recipe.make[len(rows) % len(recipe.make)]
        row = _row(recipe, draw(make, rng, part), make.__name__)
        misses = misses + 1 if row["question"] in rows else 0
        rows.setdefault(row["question"], {"index": str(len(rows)), **row})
    return list(rows.values())


def _row(recipe: Recipe, item: Item, category: str) -> Row:
    row: Row = {"question": recipe.template.format(**item.slots), "category": category}
    if recipe.generates:
        return {**row, "answer": item.answer}
    return {**row, "options": list(item.options), "answer": item.options.index(item.answer)}
